"""The reference pass of TRL and ours: same model, same data, one process, alternating.

Prints, for data with the lengths of Anthropic's HH harmless set and for short prompts with long completions, the ratio
of time, of token positions fed to the backbone and of positions scored by the head, the share of padding, the time in
the backbone and outside it, and the largest difference in a summed log-prob.

Run: python benchmarks/precompute.py [--model FOLDER] [--device cuda --dtype bfloat16] [--write FILE]
Without --model: random weights in the shape of SmolLM2-135M.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from trl import DPOTrainer

from trl_dpo_ext import DPOExtConfig, DPOExtTrainer

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.support import tiny

TRL_BATCH_SIZE = 8


@dataclass(frozen=True)
class Lengths:
    """Token counts: mean and median of a log-normal distribution for the prompt, means for the completions."""

    prompt: tuple[float, float]
    chosen: float
    rejected: float
    longest: int


SETTINGS = {
    "HH harmless": Lengths((149, 122), 42, 52, 880),
    "short prompts, long completions": Lengths((20, 18), 400, 420, 1000),
}


def data(lengths: Lengths, pairs: int, vocabulary: int) -> Dataset:
    random = np.random.default_rng(0)
    mean, median = lengths.prompt
    prompts = random.lognormal(np.log(median), np.sqrt(2 * np.log(mean / median)), pairs)

    def completions(mean: float) -> np.ndarray:
        # With this spread batches of 8 in dataset order feed 3.7 times the positions that are needed, and batches of
        # 32 feed 5.2 times, as was counted on the set itself.
        spread = 1.05
        return random.lognormal(np.log(mean) - spread**2 / 2, spread, pairs)

    def ids(counts: np.ndarray) -> list[list[int]]:
        counts = np.clip(counts, 2, lengths.longest).astype(int)
        return [random.integers(10, vocabulary, count).tolist() for count in counts]

    return Dataset.from_dict(
        {
            "prompt_ids": ids(prompts),
            "chosen_ids": ids(completions(lengths.chosen)),
            "rejected_ids": ids(completions(lengths.rejected)),
        }
    )


@dataclass
class Measured:
    """One pass."""

    seconds: float = 0.0
    backbone_seconds: float = 0.0
    fed: int = 0
    scored: int = 0
    attended: int = 0


@contextlib.contextmanager
def measuring(trainer: Any, device: torch.device) -> Iterator[Measured]:
    """Counts what goes through the backbone, and what the head is given."""
    measured = Measured()
    backbone = trainer.model.base_model
    begun = 0.0

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def before(_module: Any, _args: Any, keywords: dict[str, Any]) -> None:
        nonlocal begun
        measured.fed += keywords["input_ids"].numel()
        begun = clock()

    def after(_module: Any, _args: Any, output: Any) -> None:
        measured.backbone_seconds += clock() - begun

    # First in, last out: what our own hooks do to rows and outputs is counted outside the backbone.
    handles = [
        backbone.register_forward_pre_hook(before, with_kwargs=True),
        backbone.register_forward_hook(after, prepend=True),
    ]
    start = clock()
    try:
        yield measured
    finally:
        measured.seconds = clock() - start
        for handle in handles:
            handle.remove()


def trl_pass(trainer: Any, dataset: Dataset, device: torch.device) -> tuple[Measured, np.ndarray]:
    trainer._precompute_model_hash = str(time.time_ns())  # so that its cache is never hit
    with measuring(trainer, device) as measured:
        done = DPOTrainer._precompute_ref_logps(trainer, dataset, "TRL", TRL_BATCH_SIZE)
    rows = [len(r["prompt_ids"]) + len(r[side]) for r in dataset for side in ("chosen_ids", "rejected_ids")]
    measured.attended = sum(rows)
    completions = sum(len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in dataset)
    measured.scored = completions if device.type == "cuda" else measured.fed  # on a CPU its head scores every position
    return measured, np.array([done["ref_chosen_logps"], done["ref_rejected_logps"]])


def our_pass(trainer: Any, dataset: Dataset, device: torch.device) -> tuple[Measured, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        trainer.args.ref_store = str(Path(folder) / "refs")
        vars(trainer.reference).pop("stored", None)
        with measuring(trainer, device) as measured:
            trainer._precompute_ref_logps(dataset, "ours", TRL_BATCH_SIZE)
        report = trainer.reference.stored.stats
        measured.attended, measured.scored = report.tokens, report.scored
        collator = trainer.reference.stored.collator(trainer.data_collator.collator)
        sums = [collator([row])["ref_token_logps"].double().sum(1).numpy() for row in dataset]
    return measured, np.array(sums).T


def show(name: str, theirs: list[Measured], ours: list[Measured], difference: float, largest: float) -> str:
    def middle(passes: list[Measured], what: str) -> float:
        return statistics.median(getattr(one, what) for one in passes)

    lines = [f"{name}:"]
    lines.append(f"  {'':24}{'TRL':>12}{'ours':>12}{'ratio':>8}")
    for label, what in [
        ("seconds", "seconds"),
        ("  in the backbone", "backbone_seconds"),
        ("positions fed", "fed"),
        ("positions scored", "scored"),
    ]:
        a, b = middle(theirs, what), middle(ours, what)
        lines.append(f"  {label:24}{a:12.1f}{b:12.1f}{a / b:8.2f}")
    outside = [[one.seconds - one.backbone_seconds for one in passes] for passes in (theirs, ours)]
    a, b = map(statistics.median, outside)
    lines.append(f"  {'  outside it':24}{a:12.1f}{b:12.1f}{a / b:8.2f}")
    padding = [1 - passes[0].attended / passes[0].fed for passes in (theirs, ours)]
    lines.append(f"  {'padding':24}{padding[0]:12.1%}{padding[1]:12.1%}")
    lines.append(f"  largest difference of a summed log-prob: {difference:.2g} nats (largest sum {largest:.0f})")
    return "\n".join(lines)


def smollm2_shape() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=8192,
            rope_theta=100000,
            tie_word_embeddings=True,
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder of a model; default: random weights in SmolLM2-135M's shape")
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--write", help="also write what is printed to this file")
    options = parser.parse_args()
    device = torch.device(options.device)
    dtype = getattr(torch, options.dtype)
    model = AutoModelForCausalLM.from_pretrained(options.model) if options.model else smollm2_shape()
    model = model.to(device, dtype)
    name = Path(options.model).name if options.model else "random weights"
    text = [
        f"{platform.machine()}, {torch.get_num_threads()} threads"
        if device.type == "cpu"
        else torch.cuda.get_device_name(device),
        f"model: {name}, {model.num_parameters() / 1e6:.0f}M parameters, {options.dtype}; "
        f"{options.pairs} pairs; TRL's batch size {TRL_BATCH_SIZE}; median of {options.repeats}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        # A loss that needs no reference: none is loaded beside the model whose passes are measured.
        args = DPOExtConfig(
            folder, loss_type="sft", bf16=False, use_cpu=device.type == "cpu", report_to="none", max_length=None
        )
        trainer = DPOExtTrainer(model, args=args, train_dataset=tiny.preferences(), processing_class=tiny.tokenizer())
        for name in options.settings:
            dataset = data(SETTINGS[name], options.pairs, model.config.vocab_size)
            warm = dataset.select(range(2))
            trl_pass(trainer, warm, device)
            our_pass(trainer, warm, device)
            theirs, ours, sums = [], [], []
            for _ in range(options.repeats):
                for passes, run in ((theirs, trl_pass), (ours, our_pass)):
                    measured, logps = run(trainer, dataset, device)
                    passes.append(measured)
                    sums.append(logps)
            difference = max(float(np.abs(sums[0] - other).max()) for other in sums[1:])
            text.append(show(name, theirs, ours, difference, float(np.abs(sums[0]).max())))
            print("\n".join(text), flush=True)
    if options.write:
        Path(options.write).write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
