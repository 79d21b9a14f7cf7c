"""What a loss without a reference costs in TRL's trainer and in ours: same loss, same data, one process, alternating.

`sft` is the one such loss that both have. TRL loads a reference model for it and runs it on every batch; ours loads
none. Prints seconds per step of each, their ratio, and the bytes of model weights held.

Run: python benchmarks/reference_free.py
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer

from trl_dpo_ext import DPOExtConfig, DPOExtTrainer

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.support import tiny


def model(folder: str, layers: int, hidden: int, vocabulary: int) -> str:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def trainer(kind: type, config: type, folder: str, output_dir: str) -> Any:
    args = config(
        output_dir=output_dir,
        loss_type=["sft"],
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        gradient_checkpointing=False,
    )
    return kind(folder, args=args, train_dataset=tiny.preferences())


def batch(pairs: int, prompt: int, completion: int, vocabulary: int, device: torch.device) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = prompt + completion
    completion_mask = torch.zeros(2 * pairs, tokens, dtype=torch.long)
    completion_mask[:, prompt:] = 1
    built = {
        "input_ids": torch.randint(5, vocabulary, (2 * pairs, tokens), generator=generator),
        "attention_mask": torch.ones(2 * pairs, tokens, dtype=torch.long),
        "completion_mask": completion_mask,
    }
    return {name: tensor.to(device) for name, tensor in built.items()}


def step_seconds(trainer: Any, inputs: dict[str, torch.Tensor]) -> tuple[float, float]:
    start = time.perf_counter()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    if inputs["input_ids"].is_cuda:
        torch.cuda.synchronize()
    trainer.model.zero_grad()
    return time.perf_counter() - start, float(loss)


def weight_bytes(trainer: Any) -> int:
    models = [m for m in (trainer.model, trainer.ref_model) if m is not None]
    return sum(p.numel() * p.element_size() for m in models for p in m.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=122)
    parser.add_argument("--completion", type=int, default=47)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = model(f"{folder}/model", options.layers, options.hidden, options.vocabulary)
        both = {
            "TRL": trainer(DPOTrainer, DPOConfig, path, f"{folder}/trl"),
            "ours": trainer(DPOExtTrainer, DPOExtConfig, path, f"{folder}/ours"),
        }
    inputs = batch(options.pairs, options.prompt, options.completion, options.vocabulary, both["TRL"].model.device)
    seconds: dict[str, list[float]] = {name: [] for name in both}
    losses = {}
    for _ in range(options.repeats + 1):
        for name, one in both.items():
            elapsed, losses[name] = step_seconds(one, inputs)
            seconds[name].append(elapsed)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}  # the first warms up
    assert losses["TRL"] == losses["ours"], losses
    for name, one in both.items():
        print(f"{name:5s} {medians[name]:7.3f} s per step   {weight_bytes(one) / 2**20:7.0f} MiB of weights")
    weights = weight_bytes(both["TRL"]) / weight_bytes(both["ours"])
    print(f"ratio {medians['TRL'] / medians['ours']:7.2f} in time and {weights:.2f} in weights")


if __name__ == "__main__":
    main()
