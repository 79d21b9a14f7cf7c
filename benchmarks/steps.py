"""Training steps of several trainers around one policy and one reference: what each costs, and whether they agree."""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from trl import DPOConfig, DPOTrainer

sys.path.insert(0, str(Path(__file__).parent.parent))
from counting import Counts, Seconds, count, timed
from shapes import SHAPES, SIZES, model

from tests.support import tiny

Batch = dict[str, torch.Tensor]


def add_options(parser: argparse.ArgumentParser, model_shape: str) -> None:
    """Add the options that `Steps` reads; `model_shape` is the default of one."""
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--model-shape", default=model_shape, choices=sorted(SHAPES))
    for size in SIZES:
        parser.add_argument(f"--{size.replace('_', '-')}", type=int, help="in place of the shape's own")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--trl-attention", default="sdpa", help="attention implementation of TRL's run")
    parser.add_argument("--attention", default="sdpa", help="attention implementation of our run")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--optimizer", default="adamw", choices=["adamw", "none"])
    parser.add_argument("--output", type=Path, help="append the tables to this file")


@dataclass(frozen=True)
class Way:
    """A trainer, and how it is fed."""

    flags: Mapping[str, Any] = field(default_factory=dict)
    """Of its configuration."""
    trl: bool = False
    """Whether it is TRL's own."""
    lists: bool = False
    """Whether it trains on lists."""


@dataclass
class Step:
    """What one step cost."""

    seconds: Seconds
    fed: int = 0
    """Positions that both backbones were given."""
    scored: int = 0
    """Positions of which both heads computed logits."""
    forwards: int = 0


class Steps:
    """Training steps of trainers of one version of the package, and of TRL's, around one policy and one reference.

    Args:
        options: `model_shape` and sizes in place of its own, `device`, `dtype`, `attention`, `trl_attention`,
            `optimizer`, and `gradient_checkpointing`.
        ways: the trainers by name.
    """

    def __init__(self, options: argparse.Namespace, ways: Mapping[str, Way]) -> None:
        self.options, self.ways, self._folder = options, ways, tempfile.TemporaryDirectory()
        self.policy, self.reference = (model(options.model_shape, options, seed) for seed in range(2))
        self.trainers = {name: self._trainer(name) for name in ways}
        if options.gradient_checkpointing:  # transformers turns it on when training begins
            self.policy.gradient_checkpointing_enable({"use_reentrant": False})
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=1e-6) if options.optimizer == "adamw" else None
        self.batches: dict[str, list[list[Batch]]] = {}
        """By way, for each step, its micro-batches, whose losses are averaged."""

    def _trainer(self, name: str) -> Any:
        from trl_dpo_ext import DPOExtConfig, DPOExtTrainer

        way, data = self.ways[name], tiny.preferences()
        if way.lists:
            from tests.support.lists import lists

            data = lists()
        self._use_attention_of(name)
        kind, config = (DPOTrainer, DPOConfig) if way.trl else (DPOExtTrainer, DPOExtConfig)
        args = config(
            f"{self._folder.name}/{name}",
            bf16=False,
            use_cpu=self.options.device == "cpu",
            report_to="none",
            max_length=None,
            gradient_checkpointing=self.options.gradient_checkpointing,
            **way.flags,
        )
        return kind(self.policy, self.reference, args, train_dataset=data, processing_class=tiny.tokenizer())

    def collate(self, collator: Callable[[list[Any]], Batch], rows: list[Any]) -> Batch:
        """A batch on the device."""
        return {name: value.to(self.options.device) for name, value in collator(rows).items()}

    def agree(self, name: str) -> tuple[float, float]:
        """Loss of the first step, and the norm of its gradient."""
        loss = float(self.gradient(name, 0))
        norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in self.policy.parameters()))
        self.policy.zero_grad()
        return loss, norm

    def count(self, name: str) -> Counts:
        """Count what the first step calls and allocates."""
        if self.optimizer is not None and not self.optimizer.state:
            self.run(name, 0)  # the first one makes the optimizer's state, which stays
        return count(lambda: self.run(name, 0), self.options.device)

    def step(self, name: str, number: int) -> Step:
        """Train, and tell what it took."""
        done = Step(Seconds(0.0, 0.0))

        def seen(_module: Any, _args: Any, keywords: dict[str, Any], output: Any) -> None:
            fed, hidden = keywords["input_ids"], output.last_hidden_state
            done.fed, done.forwards = done.fed + fed.numel(), done.forwards + 1
            done.scored += self._scored(fed, hidden)

        backbones = [each.base_model for each in (self.policy, self.reference)]
        handles = [backbone.register_forward_hook(seen, with_kwargs=True) for backbone in backbones]
        done.seconds = timed(lambda: self.run(name, number), self.options.device)
        for handle in handles:
            handle.remove()
        return done

    def _scored(self, fed: torch.Tensor, hidden: torch.Tensor) -> int:
        """Positions of which the head computes logits."""
        if hidden.shape[:2] != fed.shape:  # only those that are scored are left of a packed row
            return hidden.size(1)
        if self.options.device == "cpu":  # TRL's head leaves out the last position of each row
            return fed.size(0) * (fed.size(1) - 1)
        return int(self._fed["completion_mask"][:, 1:].sum())

    def run(self, name: str, number: int) -> None:
        """Train, as `step` does."""
        self.gradient(name, number)
        if self.optimizer is not None:
            self.optimizer.step()
        self.policy.zero_grad()

    def gradient(self, name: str, number: int) -> torch.Tensor:
        """Forward and backward; the loss."""
        self._use_attention_of(name)
        self.policy.train()
        losses, micro_batches = [], self.batches[name][number]
        for self._fed in micro_batches:
            loss = self.trainers[name].compute_loss(self.policy, dict(self._fed)) / len(micro_batches)
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def _use_attention_of(self, name: str) -> None:
        for each in (self.policy, self.reference):
            implementation = self.options.trl_attention if self.ways[name].trl else self.options.attention
            each.config._attn_implementation = implementation


@dataclass
class Contestant:
    """One way to run a step, where it runs, and what was measured of it."""

    call: Callable[..., Any]
    """Calls a method of `Steps` by its name."""
    way: str
    counts: Counts = field(default_factory=lambda: Counts(0, 0))
    steps: list[Step] = field(default_factory=list)

    def per(self, what: str, count: int) -> float:
        """A figure of all steps, divided by `count`."""
        return sum(getattr(step, what) for step in self.steps) / count


def measure(contestants: Mapping[str, Contestant], steps: int) -> None:
    """Let all count their first step, and then run the others in turn."""
    for one in contestants.values():
        one.counts = one.call("count", one.way)
    for number in range(1, steps + 1):
        for one in list(contestants.values())[:: 1 if number % 2 else -1]:
            one.steps.append(one.call("step", one.way, number))


def agree(contestants: Mapping[str, Contestant], dtype: str) -> dict[str, tuple[float, float]]:
    """Loss and norm of the gradient of all on the same weights, by name, which must be the same."""
    found = {name: one.call("agree", one.way) for name, one in contestants.items()}
    tolerance = 1e-4 if dtype == "float32" else 2e-2
    loss, norm = next(iter(found.values()))
    for name, (its_loss, its_norm) in found.items():
        assert math.isclose(loss, its_loss, rel_tol=tolerance), (name, found)
        assert math.isclose(norm, its_norm, rel_tol=10 * tolerance), (name, found)
    return found


def ratios(steps: list[Step], base: list[Step], clock: str) -> tuple[float, float, float]:
    """The times of steps relative to others on the same batches: median, smallest, and largest."""
    found = [getattr(a.seconds, clock) / getattr(b.seconds, clock) for a, b in zip(steps, base, strict=True)]
    return statistics.median(found), min(found), max(found)


def spread(found: tuple[float, float, float]) -> str:
    """What `ratios` has found, as text."""
    return "{:.2f} ({:.2f} to {:.2f})".format(*found)
