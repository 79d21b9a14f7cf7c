"""What a low-rank correction removes of a quantized reference's error: rank against bytes against the margin's error.

Corrections are fitted on pairs of the demo's training set and judged on its held-out pairs, whose phrases differ. The
alternative for the same bytes is to leave layers unquantized, in bfloat16: those with the largest relative error of
their outputs for their size. Results are kept in a file, so that an interrupted run goes on where it was.

Run: python benchmarks/reference_correction.py --model demo/work/model --results results.jsonl
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from trl_dpo_ext import load_reference
from trl_dpo_ext.reference.correction.fit import second_moments
from trl_dpo_ext.reference.correction.layers import dequantized, quantized_layers
from trl_dpo_ext.reference.correction.sequences import padded
from trl_dpo_ext.reference.correction.weights import layer_weight
from trl_dpo_ext.reference.drift.measure import answer_errors
from trl_dpo_ext.reference.model.memory import weight_bytes

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))
from reference_drift import summary, tokens_of

from demo.evaluate import read_pairs
from demo.preferences import DATA

Rows = list[tuple[list[int], int]]
"""Token ids of prompt and answer, and the length of the prompt; chosen half first."""

NF4: dict[str, Any] = {"quantization": "nf4", "double_quant": True}
FP4: dict[str, Any] = {"quantization": "fp4", "double_quant": True}
INT8: dict[str, Any] = {"quantization": "int8"}
PLAN: dict[str, dict[str, Any]] = {
    "nf4, rank 40": {**NF4, "rank": 40},
    "nf4": NF4,
    "nf4, rank 16": {**NF4, "rank": 16},
    "fp4, rank 40": {**FP4, "rank": 40},
    "fp4": FP4,
    "nf4, layers for the bytes of rank 40 left": {**NF4, "bytes_of": 40},
    "int8": INT8,
    "int8, rank 16": {**INT8, "rank": 16},
    "nf4, rank 80": {**NF4, "rank": 80},
    "nf4, rank 40, 128 pairs": {**NF4, "rank": 40, "pairs": 128},
}


@torch.inference_mode()
def scored(model: Any, rows: Rows, batch_size: int = 26) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of the answers' tokens, and which there are, each (rows, tokens)."""
    longest = max(len(whole) - prompt for whole, prompt in rows)
    logps, mask = torch.zeros(len(rows), longest, dtype=torch.float64), torch.zeros(len(rows), longest).bool()
    order = sorted(range(len(rows)), key=lambda index: len(rows[index][0]))
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        hidden = model.base_model(**padded([rows[index][0] for index in batch], "cpu")).last_hidden_state
        for row, index in enumerate(batch):
            whole, prompt = rows[index]
            logits = model.lm_head(hidden[row, prompt - 1 : len(whole) - 1]).float()
            chosen = logits.gather(1, torch.tensor(whole[prompt:])[:, None])[:, 0]
            logps[index, : len(whole) - prompt] = (chosen - logits.logsumexp(dim=1)).double()
            mask[index, : len(whole) - prompt] = True
    return logps, mask


def tokens(tokenizer: Any, pairs: list[Any]) -> Rows:
    return [tokens_of(tokenizer, pair, side) for side in ("chosen", "rejected") for pair in pairs]


@torch.no_grad()
def relative_errors(reference: Any, start: Any, data: list[list[int]]) -> dict[str, float]:
    """The squared error of each layer's outputs over their square, from one forward."""
    found: dict[str, float] = {}
    inputs = padded(data, "cpu")
    mask = inputs["attention_mask"].bool()

    def measure(name: str) -> Any:
        def hook(layer: Any, given: Any) -> None:
            moments, exact = second_moments(given[0][mask].float()), layer_weight(start, name)
            wrong = exact - dequantized(layer)
            found[name] = float(((wrong @ moments) * wrong).sum() / ((exact @ moments) * exact).sum())

        return hook

    handles = [layer.register_forward_pre_hook(measure(name)) for name, layer in quantized_layers(reference).items()]
    reference.base_model(**inputs, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def most_sensitive(start: Any, kind: dict[str, Any], data: list[list[int]], rank: int) -> list[str]:
    """The layers with the largest relative error for their size that cost, unquantized, what terms of a rank cost."""
    reference = load_reference(start, **kind)
    layers = quantized_layers(reference)
    budget = sum(rank * (layer.in_features + layer.out_features + 4) for layer in layers.values())
    saved = 2 - weight_bytes(reference)["linear"] / sum(x.in_features * x.out_features for x in layers.values())
    cost = {name: saved * layer.in_features * layer.out_features for name, layer in layers.items()}
    errors = relative_errors(reference, start, data)
    kept, spent = [], 0.0
    for name in sorted(errors, key=lambda name: errors[name] / cost[name], reverse=True):
        if spent + cost[name] <= budget:
            kept.append(name)
            spent += cost[name]
    return kept


def results(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    file = Path(options.results)
    done = {row["name"]: row for row in map(json.loads, file.read_text().splitlines())} if file.is_file() else {}
    todo = [name for name in PLAN if name not in done and (not options.only or name in options.only)]
    if todo:
        torch.set_float32_matmul_precision("medium" if options.fast else "highest")
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        held_out = tokens(tokenizer, read_pairs(DATA / "test.jsonl"))
        train = read_pairs(DATA / "train.jsonl")[options.skip :]
        start = load_reference(options.model, dtype="float32")
        exact, mask = scored(start, held_out)
        in_bf16 = weight_bytes(start)["linear"] / 2
    for name in todo:
        settings = dict(PLAN[name])
        rank, pairs = settings.pop("rank", 0), settings.pop("pairs", options.pairs)
        data = [whole for pair in train[:pairs] for whole, _ in tokens(tokenizer, [pair])]
        began = time.process_time()
        with_precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        if "bytes_of" in settings:
            rank_of = settings.pop("bytes_of")
            settings["skip_modules"] = most_sensitive(start, settings, data[:32], rank_of)
        correction = {"correction_rank": rank, "correction_data": data} if rank else {}
        reference = load_reference(start, **settings, **correction)
        torch.set_float32_matmul_precision(with_precision)
        made = time.process_time()
        logps, _ = scored(reference, held_out)
        skipped = settings.get("skip_modules", [])  # which are in float32 here, for one precision of all products
        doubled = sum(2 * start.get_submodule(layer).weight.numel() for layer in skipped)
        row = {
            "name": name,
            "share": (weight_bytes(reference)["linear"] - doubled) / in_bf16,
            "tokens": sum(map(len, data)) if rank else 0,
            "errors": summary(answer_errors(logps, exact, mask)),
            "seconds": [made - began, time.process_time() - made],
            "skipped": skipped,
        }
        with file.open("a") as out:
            out.write(json.dumps(row) + "\n")
        done[name] = row
        print(json.dumps(row), flush=True)
        del reference
        gc.collect()
    yield from (done[name] for name in PLAN if name in done)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo/work/model")
    parser.add_argument("--results", default="reference_correction.jsonl", help="file that results are added to")
    parser.add_argument("--pairs", type=int, default=32, help="pairs that a correction is fitted on")
    parser.add_argument("--skip", type=int, default=16, help="training pairs before them, as a run measures on these")
    parser.add_argument("--only", nargs="+", choices=[*PLAN], metavar="NAME", help="references to measure")
    parser.add_argument("--fast", action="store_true", help="score with products in bfloat16, where the CPU has them")
    options = parser.parse_args()
    print("| reference | share of bf16's bytes | per answer | margin | margin, rms | make | score |")
    print("|---|---|---|---|---|---|---|")
    for row in results(options):
        answer, answer_std, margin, margin_std, rms = row["errors"]
        make, score = row["seconds"]
        print(
            f"| {row['name']} | {row['share']:.3f} | {answer:+.2f} ± {answer_std:.2f} | {margin:+.2f} ± "
            f"{margin_std:.2f} | {rms:.2f} | {make:.0f} s | {score:.0f} s |"
        )


if __name__ == "__main__":
    main()
