"""What a training step costs in TRL's trainer and in ours with shared prompts: one process, both alternating.

One policy and one reference with random weights are trained by both trainers in turn, on the same batches. Before
anything is timed, both give their loss and gradient on the same weights, which must agree. Lengths are drawn from
log-normal distributions with the quantiles of real data (`LENGTHS`). Prints pairs per second, positions fed to the
backbones and scored by the heads per pair, peak memory above what rests between steps, and the ratio.

Run: python benchmarks/train_step.py                                       # two CPU cores, a few minutes
     python benchmarks/train_step.py --lengths short-prompts
     python benchmarks/train_step.py --device cuda --model-shape llama-3-8b --optimizer none --dtype bfloat16 \
         --lengths ultrafeedback --micro-batch 8 --trl-attention flash_attention_2 --attention flex_attention
"""

from __future__ import annotations

import argparse
import ctypes
import math
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM
from trl import DPOConfig, DPOTrainer

from trl_dpo_ext import DPOExtConfig, DPOExtTrainer

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.support import tiny

# Median and mean of a log-normal distribution, in tokens. Anthropic's HH harmless test split with SmolLM2's tokenizer
# has prompts of median 122, mean 149 and at most 880, completions of mean 42 and 52; their medians here follow from an
# assumed sigma of 0.8. UltraFeedback's medians are about 170 and 240; its means here are assumed.
LENGTHS: dict[str, dict[str, tuple[float, float]]] = {
    "hh": {"prompt": (122, 149), "chosen": (30, 42), "rejected": (38, 52)},
    "ultrafeedback": {"prompt": (170, 220), "chosen": (240, 290), "rejected": (240, 290)},
    "short-prompts": {"prompt": (8, 9), "chosen": (350, 380), "rejected": (350, 380)},
}
LONGEST = {"prompt": 880, "chosen": 1024, "rejected": 1024}
SHAPES: dict[str, tuple[type, type, dict[str, int]]] = {
    "small": (
        LlamaConfig,
        LlamaForCausalLM,
        {
            "vocab_size": 49152,
            "hidden_size": 512,
            "intermediate_size": 1536,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
        },
    ),
    "qwen2.5-0.5b": (
        Qwen2Config,
        Qwen2ForCausalLM,
        {
            "vocab_size": 151936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
    ),
    "llama-3-8b": (
        LlamaConfig,
        LlamaForCausalLM,
        {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
        },
    ),
}


@dataclass
class Contestant:
    """A trainer, the attention that its models use, and what was measured of it."""

    trainer: Any
    attention: str
    seconds: list[float] = field(default_factory=list)
    fed: int = 0
    scored: int = 0
    peak: int = 0


def model(shape: str, options: argparse.Namespace, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    config, kind, sizes = SHAPES[shape]
    sizes = {name: getattr(options, name, None) or size for name, size in sizes.items()}
    with torch.device(options.device):  # and in the dtype wanted: 8 billion float32 weights would take 32 GB at first
        return kind._from_config(config(max_position_embeddings=8192, **sizes), dtype=getattr(torch, options.dtype))


def pairs(lengths: str, count: int, vocabulary: int, seed: int) -> list[dict[str, list[int]]]:
    draw = random.Random(seed)

    def tokens(part: str) -> list[int]:
        median, mean = LENGTHS[lengths][part]
        length = draw.lognormvariate(math.log(median), math.sqrt(2 * math.log(mean / median)))
        return [draw.randrange(5, vocabulary) for _ in range(min(max(round(length), 1), LONGEST[part]))]

    return [{f"{part}_ids": tokens(part) for part in ("prompt", "chosen", "rejected")} for _ in range(count)]


def build(options: argparse.Namespace, folder: str) -> dict[str, Contestant]:
    """Both trainers around one policy and one reference."""
    policy, reference = model(options.model_shape, options, 0), model(options.model_shape, options, 1)
    common = {
        "bf16": False,
        "use_cpu": options.device == "cpu",
        "report_to": "none",
        "max_length": None,
        "gradient_checkpointing": options.gradient_checkpointing,
        "per_device_train_batch_size": options.micro_batch,
    }
    data = {"train_dataset": tiny.preferences(), "processing_class": tiny.tokenizer()}
    stock = DPOTrainer(policy, reference, DPOConfig(f"{folder}/trl", **common), **data)
    flags = {"share_prompt": not options.no_share_prompt, "padding_free": options.padding_free}
    for each in (policy, reference):
        each.config._attn_implementation = options.attention
    ours = DPOExtTrainer(policy, reference, DPOExtConfig(f"{folder}/ours", **common, **flags), **data)
    ours.data_collator = stock.data_collator
    return {"TRL": Contestant(stock, options.trl_attention), "ours": Contestant(ours, options.attention)}


def forward_and_backward(one: Contestant, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    for each in (one.trainer.model, one.trainer.ref_model):
        each.config._attn_implementation = one.attention
    one.trainer.model.train()
    loss = one.trainer.compute_loss(one.trainer.model, dict(inputs))
    loss.backward()
    return loss.detach()


def gradient_norm(trainer: Any) -> float:
    return math.sqrt(sum(float(p.grad.double().square().sum()) for p in trainer.model.parameters()))


@contextmanager
def counting(one: Contestant) -> Iterator[None]:
    """Inside, positions that pass through policy and reference are counted."""
    dense_head = next(one.trainer.model.parameters()).device.type == "cpu"

    def count(_module: Any, _args: Any, kwargs: dict[str, Any], output: Any) -> None:
        fed, hidden = kwargs["input_ids"], output.last_hidden_state
        one.fed += fed.numel()
        whole = hidden.shape[:2] == fed.shape  # TRL's head leaves the last position out, and others on a GPU
        one.scored += fed.size(0) * (fed.size(1) - 1) if whole and dense_head else hidden.size(1) * (not whole)

    backbones = [each.base_model for each in (one.trainer.model, one.trainer.ref_model)]
    handles = [backbone.register_forward_hook(count, with_kwargs=True) for backbone in backbones]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def peak_bytes(device: str, run: Callable[[], object]) -> int:
    """Most memory that `run` held at a time above what there was before."""
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # else what the last step freed, and the allocator kept, would not be counted
    done, seen = threading.Event(), [resident()]

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return max(seen) - seen[0]


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def seconds(device: str, run: Callable[[], object]) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(options: argparse.Namespace, both: dict[str, Contestant]) -> None:
    """Fill in what each contestant costs on the same batches."""
    policy = both["TRL"].trainer.model
    vocabulary = policy.config.vocab_size
    examples = pairs(options.lengths, options.micro_batch * (options.steps + 1), vocabulary, seed=0)
    collate = both["TRL"].trainer.data_collator
    batches = [
        {name: tensor.to(options.device) for name, tensor in collate(examples[start:][: options.micro_batch]).items()}
        for start in range(0, len(examples), options.micro_batch)
    ]
    agree(both, batches[0])
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6) if options.optimizer == "adamw" else None

    def step(one: Contestant, inputs: dict[str, torch.Tensor]) -> None:
        forward_and_backward(one, inputs)
        if optimizer is not None:
            optimizer.step()
        policy.zero_grad()

    for one in both.values():  # warms up: kernels, the optimizer's state, the comparison on the first batch
        step(one, batches[0])
    for one in both.values():
        one.peak = peak_bytes(options.device, lambda one=one: step(one, batches[0]))
    for turn, inputs in enumerate(batches[1:]):
        for one in list(both.values())[:: 1 if turn % 2 else -1]:
            one.seconds.append(seconds(options.device, lambda one=one, inputs=inputs: step(one, inputs)))
    for inputs in batches[1:]:
        for one in both.values():
            with counting(one), torch.no_grad():
                one.trainer.compute_loss(one.trainer.model, dict(inputs))


def agree(both: dict[str, Contestant], inputs: dict[str, torch.Tensor]) -> None:
    """Loss and gradient of both on the same weights."""
    found = {}
    for name, one in both.items():
        loss = float(forward_and_backward(one, inputs))
        found[name] = (loss, gradient_norm(one.trainer))
        one.trainer.model.zero_grad()
    (loss, norm), (our_loss, our_norm) = found.values()
    print(f"loss {loss:.6f} and {our_loss:.6f}, gradient norm {norm:.6g} and {our_norm:.6g}")
    tolerance = 1e-4 if both["TRL"].trainer.model.dtype == torch.float32 else 2e-2
    assert math.isclose(loss, our_loss, rel_tol=tolerance), found
    assert math.isclose(norm, our_norm, rel_tol=10 * tolerance), found


def table(options: argparse.Namespace, both: dict[str, Contestant]) -> str:
    count = options.micro_batch * options.steps
    lines = ["| | pairs per second | fed per pair | scored per pair | peak memory (MiB) |", "|---|---|---|---|---|"]
    for name, one in both.items():
        lines.append(
            f"| {name} ({one.attention}) | {count / sum(one.seconds):.2f} | {one.fed / count:.0f} | "
            f"{one.scored / count:.0f} | {one.peak / 2**20:.0f} |"
        )
    trl, ours = both.values()
    per_step = statistics.median(a / b for a, b in zip(trl.seconds, ours.seconds, strict=True))
    lines.append("")
    lines.append(
        f"Ratio of pairs per second: **{sum(trl.seconds) / sum(ours.seconds):.2f}** "
        f"(median over {options.steps} batches {per_step:.2f})"
    )
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--model-shape", default="small", choices=sorted(SHAPES))
    for size in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"):
        parser.add_argument(f"--{size.replace('_', '-')}", type=int, help="in place of the shape's own")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--lengths", default="hh", choices=sorted(LENGTHS))
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--trl-attention", default="sdpa", help="attention implementation of TRL's run")
    parser.add_argument("--attention", default="sdpa", help="attention implementation of our run")
    parser.add_argument("--no-share-prompt", action="store_true")
    parser.add_argument("--padding-free", action="store_true")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--optimizer", default="adamw", choices=["adamw", "none"])
    parser.add_argument("--output", type=Path, help="append the table to this file")
    return parser.parse_args()


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        both = build(options, folder)
        compare(options, both)
    shown = table(options, both)
    print(shown)
    if options.output:
        settings = " ".join(sys.argv[1:]).replace(f" --output {options.output}", "")
        with options.output.open("a") as file:
            file.write(f"\n`train_step.py {settings}`\n\n{shown}\n")


if __name__ == "__main__":
    main()
