"""Known pitfalls: settings that start and train, but do not train what the user intended.

`estimate` and `train` share this list of checks. `ignore_pitfalls` silences a check by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .formulas import Training
from .strategy import ParallelStrategy

BF16_FROZEN_BELOW = 2e-5
"""Learning rate below which AdamW leaves most bf16 weights unchanged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """The facts about a run that the checks read."""

    training: Training
    strategy: ParallelStrategy
    learning_rate: float
    losses: tuple[tuple[str, dict[str, Any]], ...]
    """Name and hyperparameters of each loss."""
    pairs_per_step: int
    """Pairs per optimizer step."""
    published_pairs_per_step: int | None = None
    """Pairs per optimizer step according to the recipe's header."""
    per_device: int = 1
    accumulation: int = 1


Check = Callable[[RunContext], Iterator[str]]
CHECKS: dict[str, Check] = {}


def _check(function: Check) -> Check:
    CHECKS[function.__name__] = function
    return function


def find_pitfalls(context: RunContext, ignore: Sequence[str] = ()) -> dict[str, list[str]]:
    """Run every check that is not ignored; return the messages of each pitfall found, by its name."""
    found = {name: list(check(context)) for name, check in CHECKS.items() if name not in ignore}
    return {name: messages for name, messages in found.items() if messages}


def format_warnings(pitfalls: Mapping[str, list[str]]) -> list[str]:
    """Format one line per message, with the flag that silences it."""
    return [f"{message} (ignore_pitfalls: {name})" for name, messages in pitfalls.items() for message in messages]


def unknown_pitfalls(names: list[str]) -> list[str]:
    """Return one problem listing the names that no check has, or an empty list."""
    unknown = [name for name in names if name not in CHECKS]
    return [f"ignore_pitfalls: unknown {', '.join(unknown)}; one of {', '.join(CHECKS)}."] if unknown else []


@_check
def bf16_weights(c: RunContext) -> Iterator[str]:
    """AdamW on N(0, 0.02) weights in bf16, 100 steps: at 5e-7 1 % of them moved, at 1e-5 15 %, at 1e-4 86 %."""
    t = c.training
    plain = not c.strategy.shards_optimizer or (c.strategy.is_fsdp and not c.strategy.half_precision)
    if plain and not t.adapter and t.dtype in ("bfloat16", "float16") and c.learning_rate < BF16_FROZEN_BELOW:
        yield (
            f"With {t.dtype} weights and learning_rate={c.learning_rate:g}, most updates are below the resolution of "
            "the dtype and are lost to rounding. Set dtype: float32 (bf16: true still computes in bf16), train an "
            "adapter, or use ZeRO or FSDP, which keep float32 weights."
        )


@_check
def float32_base(c: RunContext) -> Iterator[str]:
    """TRL's default `dtype` is float32, for the frozen weights under an adapter too."""
    t = c.training
    if t.adapter and t.dtype == "float32" and c.strategy.half_precision and not c.strategy.on_cpu:
        yield (
            "The frozen weights under the adapter are float32, which takes twice the memory of bf16 without any "
            "benefit. Set dtype: bfloat16."
        )


@_check
def small_beta(c: RunContext) -> Iterator[str]:
    """Tülu 3 (arXiv 2411.15124), table 20: beta 5 for the length-normalized loss."""
    for name, hyper in c.losses:
        if name == "sigmoid_norm" and hyper.get("beta", 1.0) < 1.0:
            yield (
                f"beta={hyper['beta']:g} is too small for sigmoid_norm: its score is a mean per token, hundreds of "
                "times smaller than DPO's sum, so the gradient nearly vanishes. Tülu 3 and OLMo 2 use beta 5."
            )


@_check
def whole_4bit_weights(c: RunContext) -> Iterator[str]:
    """PEFT's and bitsandbytes' documentation: only a float storage type can be sharded."""
    quantized = c.training.quantized
    if quantized and quantized.bits == 4 and not quantized.shardable and c.strategy.shards_weights:
        yield (
            "4-bit weights stored as bytes cannot be sharded, so every GPU holds all of them. Set "
            "bnb_4bit_quant_storage to the value of dtype (bfloat16)."
        )


@_check
def unsaved_states(c: RunContext) -> Iterator[str]:
    """Launched on two CPU processes: FSDP1 raises in the first checkpoint, FSDP2 in the first step."""
    name = c.training.optimizer
    if c.strategy.is_fsdp and any(word in name for word in ("bnb", "8bit", "paged")):
        when = "saving the first checkpoint" if c.strategy.kind == "fsdp1" else "the first optimizer step"
        yield (
            f"optim: {name} is a bitsandbytes optimizer, and {when} fails under {c.strategy.kind.upper()}. "
            "Use adamw_torch."
        )


@_check
def other_batch(c: RunContext) -> Iterator[str]:
    """The learning rate of a recipe was tuned for its number of pairs per step."""
    published = c.published_pairs_per_step
    if published is None or c.pairs_per_step == published:
        return
    per_pass, noun = c.per_device * c.strategy.processes, "lists" if c.training.completions > 2 else "pairs"
    steps, rest = divmod(published, per_pass)
    fix = f"Set gradient_accumulation_steps: {steps}" if steps and not rest else "Change per_device_train_batch_size"
    yield (
        f"Each step trains on {c.pairs_per_step} {noun} ({c.per_device} x {c.accumulation} accumulated x "
        f"{c.strategy.processes} processes), but the recipe uses {published}. {fix} to match the recipe."
    )
