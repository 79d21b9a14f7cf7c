"""Known traps of a run: settings that start and train, and then train something else than was meant.

One list of checks for `estimate` and for `train`. Each has a name, by which `ignore_pitfalls` silences it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .formulas import Training
from .strategy import ParallelStrategy

BF16_FROZEN_BELOW = 2e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """What the checks look at."""

    training: Training
    engine: ParallelStrategy
    learning_rate: float
    losses: tuple[tuple[str, dict[str, Any]], ...]
    """Name and hyperparameters of every loss."""
    batch: int
    """Pairs per optimizer step."""
    published_batch: int | None = None
    """The same, as the recipe's header has it."""
    per_device: int = 1
    accumulation: int = 1


Check = Callable[[RunContext], Iterator[str]]
CHECKS: dict[str, Check] = {}


def _check(function: Check) -> Check:
    CHECKS[function.__name__.strip("_")] = function
    return function


def find_pitfalls(situation: RunContext, ignore: Sequence[str] = ()) -> dict[str, list[str]]:
    """What to say of each trap that the run walks into, by its name; not of those in `ignore`."""
    found = {name: list(check(situation)) for name, check in CHECKS.items() if name not in ignore}
    return {name: messages for name, messages in found.items() if messages}


def warnings_of(traps: Mapping[str, list[str]]) -> list[str]:
    """One line per trap, with the way to silence it."""
    return [f"{message} (ignore_pitfalls: {name})" for name, messages in traps.items() for message in messages]


def unknown_pitfalls(names: list[str]) -> list[str]:
    """What is wrong with the names given to `ignore_pitfalls`."""
    unknown = [name for name in names if name not in CHECKS]
    return [f"ignore_pitfalls: unknown {', '.join(unknown)}; one of {', '.join(CHECKS)}."] if unknown else []


@_check
def bf16_weights(s: RunContext) -> Iterator[str]:
    """AdamW on N(0, 0.02) weights in bf16, 100 steps: at 5e-7 1 % of them moved, at 1e-5 15 %, at 1e-4 86 %."""
    t = s.training
    plain = s.engine.kind in ("single", "ddp") or (s.engine.is_fsdp and not s.engine.half)
    if plain and not t.adapter and t.dtype in ("bfloat16", "float16") and s.learning_rate < BF16_FROZEN_BELOW:
        yield (
            f"Weights in {t.dtype} hardly move at learning_rate {s.learning_rate:g}: most updates are smaller than the "
            "distance to the next number, and are rounded away. Set dtype: float32 (bf16: true still computes in "
            "bf16), train an adapter, or use ZeRO or FSDP, which keep float32 weights."
        )


@_check
def float32_base(s: RunContext) -> Iterator[str]:
    """TRL's default `dtype` is float32, for the frozen weights under an adapter too."""
    t = s.training
    if t.adapter and t.dtype == "float32" and s.engine.half and not s.engine.on_cpu:
        yield (
            "The frozen weights under the adapter are in float32, twice what bf16 takes, and gain nothing by it. Set "
            "dtype: bfloat16."
        )


@_check
def small_beta(s: RunContext) -> Iterator[str]:
    """Tülu 3 (arXiv 2411.15124), table 20: beta 5 for the length-normalized loss."""
    for name, hyper in s.losses:
        if name == "sigmoid_norm" and hyper.get("beta", 1.0) < 1.0:
            yield (
                f"beta={hyper['beta']:g} with sigmoid_norm: the score is a mean per token, some hundred times smaller "
                "than DPO's sum, and the loss hardly pulls. Tülu 3 and OLMo 2 use beta 5."
            )


@_check
def whole_4bit_weights(s: RunContext) -> Iterator[str]:
    """PEFT's and bitsandbytes' documentation: only a float storage type can be split."""
    quantized = s.training.quantized
    if quantized and quantized.bits == 4 and not quantized.shardable and s.engine.shards_weights:
        yield (
            "4-bit weights in bytes are not split: every GPU holds all of them. Set bnb_4bit_quant_storage to what "
            "dtype says (bfloat16)."
        )


@_check
def unsaved_states(s: RunContext) -> Iterator[str]:
    """Launched on two CPU processes: FSDP1 raises in the first checkpoint, FSDP2 in the first step."""
    name = s.training.optimizer
    if s.engine.is_fsdp and any(word in name for word in ("bnb", "8bit", "paged")):
        when = "fails when its states are first saved" if s.engine.kind == "fsdp1" else "cannot step"
        yield f"optim: {name} is bitsandbytes', which {when} under {s.engine.kind.upper()}. Use adamw_torch."


@_check
def other_batch(s: RunContext) -> Iterator[str]:
    """The learning rate of a recipe belongs to its number of pairs per step."""
    if s.published_batch is None or s.batch == s.published_batch:
        return
    per_pass = s.per_device * s.engine.processes
    steps, rest = divmod(s.published_batch, per_pass)
    fix = f"Set gradient_accumulation_steps: {steps}" if steps and not rest else "Change per_device_train_batch_size"
    yield (
        f"A step takes {s.batch} pairs ({s.per_device} x {s.accumulation} accumulated x {s.engine.processes} "
        f"processes), the recipe's {s.published_batch}. {fix} to train as it says."
    )
