"""What each kind of reference costs: bytes of weights, and seconds of a forward; for a model of any configuration.

Weights are random: bytes and speed do not depend on them. On a GPU also the peak of memory in a training step, with the
policy in bfloat16. A stored reference is a real store, filled with numbers for the pairs that the other kinds score.

Run: python benchmarks/reference_memory.py [--config FOLDER_OR_HUB_ID]
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from trl_dpo_ext import DPOExtConfig, DPOExtTrainer, load_reference
from trl_dpo_ext.reference.identity.identity import Identity
from trl_dpo_ext.reference.model.memory import weight_bytes
from trl_dpo_ext.reference.store.store import Store

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.support import tiny

KINDS: dict[str, dict[str, Any]] = {
    "fp32": {"ref_dtype": "float32"},
    "bf16": {"ref_dtype": "bfloat16"},
    "int8": {"ref_quantization": "int8", "ref_dtype": "bfloat16"},
    "nf4": {"ref_quantization": "nf4", "ref_dtype": "bfloat16"},
    "nf4, double quantization": {"ref_quantization": "nf4", "ref_double_quant": True, "ref_dtype": "bfloat16"},
}


@dataclass(frozen=True)
class Cost:
    """Of one kind of reference."""

    linear: int
    """Bytes of the linear layers without the output layer, which are those that are quantized."""
    everything: int
    seconds: float
    peak: int | None = None
    """Bytes of GPU memory at most in a training step."""


def configuration(options: argparse.Namespace) -> Any:
    if options.config:
        return AutoConfig.from_pretrained(options.config)
    return LlamaConfig(
        vocab_size=49152,
        hidden_size=options.hidden,
        intermediate_size=8 * options.hidden // 3 // 64 * 64,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        num_key_value_heads=max(1, options.hidden // 64 // 4),
        tie_word_embeddings=True,
    )


def settings_of(kind: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("ref_"): value for name, value in kind.items()}


def forward_seconds(model: Any, ids: torch.Tensor, repeats: int) -> float:
    """Shortest time of a forward up to the last hidden states, as the fused head asks for it: others only add to it."""
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        with torch.no_grad():
            model.base_model(input_ids=ids, use_cache=False)
        if ids.is_cuda:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return min(taken[1:])  # the first warms up


def step_peak(policy: Callable[[], Any], kind: dict[str, Any], ids: torch.Tensor) -> int | None:
    """Bytes of GPU memory at most in one training step of half as many pairs as there are rows; None on a CPU."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"bf16": True, "ref_drift_num_pairs": 0, "gradient_checkpointing": True, "use_cpu": not ids.is_cuda}
        args = DPOExtConfig(folder, report_to="none", **settings, **kind)
        model = policy().to(torch.bfloat16)
        trainer = DPOExtTrainer(model, args=args, train_dataset=tiny.preferences(), processing_class=tiny.tokenizer())
        trainer.create_optimizer()
        mask = torch.zeros_like(ids)
        mask[:, ids.size(1) // 2 :] = 1
        if ids.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": mask}
        trainer.compute_loss(trainer.model, batch).backward()
        trainer.optimizer.step()
        return torch.cuda.max_memory_allocated() if ids.is_cuda else None


def measure(options: argparse.Namespace) -> dict[str, Cost]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = configuration(options)

    def policy() -> Any:
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(device)

    ids = torch.randint(0, config.get_text_config().vocab_size, (options.rows, options.tokens), device=device)
    costs = {}
    model = policy()
    for name, kind in KINDS.items():
        reference = load_reference(model, **settings_of(kind))
        size = weight_bytes(reference)
        seconds = forward_seconds(reference, ids, options.repeats)
        del reference
        gc.collect()
        costs[name] = Cost(size["linear"], size["all"], seconds)
    del model
    if device == "cuda":
        for name, kind in KINDS.items():
            peak = step_peak(policy, kind, ids)
            costs[name] = Cost(costs[name].linear, costs[name].everything, costs[name].seconds, peak)
            torch.cuda.empty_cache()
    return costs


def stored(sequences: int, tokens: int) -> tuple[int, float]:
    """Bytes on disk per completion token of a store, and seconds to look up one batch of 8 sequences."""
    keys = [hashlib.blake2b(str(number).encode(), digest_size=16).digest() for number in range(sequences)]
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(folder, Identity(weights="made up", config="{}"))
        with store.writer() as writer:
            for key in keys:
                writer.add(key, tokens, -generator.exponential(size=tokens).astype(np.float32))
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        loaded = store.load(keys)
        start = time.perf_counter()
        for at in range(0, sequences, 8):
            loaded.values(keys[at : at + 8])
        return round(size / (sequences * tokens)), (time.perf_counter() - start) * 8 / sequences


def table(costs: dict[str, Cost], per_token: int, lookup: float, options: argparse.Namespace) -> str:
    half = costs["bf16"]
    gpu = half.peak is not None
    head = ["reference", "linear layers", "of bf16", "whole model", "of bf16", "forward", "of bf16"]
    rows = [[*head, *(["peak of a training step"] if gpu else [])]]
    for name, cost in costs.items():
        row = [name, mib(cost.linear), f"{cost.linear / half.linear:.3f}"]
        row += [mib(cost.everything), f"{cost.everything / half.everything:.3f}"]
        row += [f"{cost.seconds:.3f} s", f"{cost.seconds / half.seconds:.2f}"]
        rows.append([*row, *([mib(cost.peak)] if cost.peak is not None else [])])
    row = ["stored", "0", "0", "0", "0", f"{lookup:.6f} s", f"{lookup / half.seconds:.1e}"]
    rows.append([*row, *(["as bf16, less its weights"] if gpu else [])])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    where = f"on {torch.cuda.get_device_name()}" if gpu else f"on {torch.get_num_threads()} CPU cores"
    notes = f"Forward: {options.rows} rows of {options.tokens} tokens {where}, up to the last hidden states."
    disk = f"Stored: {per_token} bytes on disk per completion token; looked up, not computed."
    return "\n".join([*lines, "", f"{notes} {disk}"])


def mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="folder or hub id of a configuration (default: a Llama of the sizes below)")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    costs = measure(options)
    print(table(costs, *stored(4096, options.tokens // 2), options))
    double = costs["nf4, double quantization"].linear / costs["bf16"].linear
    assert double <= 0.30, f"linear layers in nf4 with double quantization take {double:.3f} of bf16"


if __name__ == "__main__":
    main()
