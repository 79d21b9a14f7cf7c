"""What a training step costs in TRL's trainer, in ours, and in ours of another commit, all on the same batches.

One policy and one reference with random weights are trained by all of them in turn. Before anything is timed, each
gives its loss and gradient on the same weights, which must agree. Lengths are drawn from log-normal distributions with
the quantiles of real data (lengths.py). First come figures that do not depend on the machine: positions that policy and
reference are fed and the heads score, operators that torch calls, memory that tensors take beyond that before a step;
then time, relative to that of the present `share_prompt`: above 1, `share_prompt` is faster.

Run: python benchmarks/train_step.py                                       # two CPU cores, a few minutes
     python benchmarks/train_step.py --lengths hh ultrafeedback --micro-batch 4 8 16 --former CHECKOUT
     python benchmarks/train_step.py --device cuda --model-shape llama-3-8b --optimizer none --dtype bfloat16 \
         --lengths ultrafeedback --micro-batch 8 --trl-attention flash_attention_2 --attention flex_attention

CHECKOUT is a folder with a commit whose package has `share_prompt` (git worktree add CHECKOUT COMMIT). On a CPU, set
OMP_NUM_THREADS=1 where other work runs, and read the ratio of processor time.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from trl import DPOConfig, DPOTrainer

sys.path.insert(0, str(Path(__file__).parent.parent))
from checkouts import Checkout
from counting import Counts, Seconds, count, machine, show, timed
from lengths import LENGTHS, pairs
from shapes import SHAPES, SIZES, model

from tests.support import tiny

ROOT = Path(__file__).parent.parent
WAYS: dict[str, dict[str, bool]] = {
    "TRL": {},
    "padding_free": {"padding_free": True},
    "share_prompt": {"share_prompt": True},
    "share_prompt, padding_free": {"share_prompt": True, "padding_free": True},
}
"""Flags of each way to run a step."""
NOW, FORMER = ("TRL", "padding_free", "share_prompt"), tuple(WAYS)[1:]
BASE = "share_prompt"


@dataclass
class Step:
    """What one step cost."""

    seconds: Seconds
    fed: int
    """Positions that both backbones were given."""
    scored: int
    """Positions of which both heads computed logits."""
    forwards: int


class Trainers:
    """Trainers of one version of the package, and TRL's, around one policy and one reference."""

    def __init__(self, options: argparse.Namespace, ways: tuple[str, ...]) -> None:
        self.options, self._folder = options, tempfile.TemporaryDirectory()
        self.trainers = build(options, self._folder.name, ways)
        self.policy, self.reference = (getattr(self.trainers[ways[0]], name) for name in ("model", "ref_model"))
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=1e-6) if options.optimizer == "adamw" else None
        self.batches: list[dict[str, torch.Tensor]] = []

    def load(self, lengths: str, micro_batch: int) -> None:
        """Make the batches: one to warm up, and one for each step."""
        rows = pairs(lengths, micro_batch * (self.options.steps + 1), self.policy.config.vocab_size, seed=0)
        collate = next(iter(self.trainers.values())).data_collator
        batches = [collate(rows[start:][:micro_batch]) for start in range(0, len(rows), micro_batch)]
        self.batches = [{name: t.to(self.options.device) for name, t in batch.items()} for batch in batches]

    def agree(self, way: str) -> tuple[float, float]:
        """Loss of the first batch, and the norm of its gradient."""
        loss = float(self._forward_and_backward(way, 0))
        norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in self.policy.parameters()))
        self.policy.zero_grad()
        return loss, norm

    def count(self, way: str) -> Counts:
        """Count what a step on the first batch calls and allocates."""
        if self.optimizer is not None and not self.optimizer.state:
            self._step(way, 0)  # the first one makes the optimizer's state, which stays
        return count(lambda: self._step(way, 0), self.options.device)

    def step(self, way: str, number: int) -> Step:
        """Train on a batch."""
        dense_head = self.options.device == "cpu"
        done = Step(Seconds(0.0, 0.0), 0, 0, 0)

        def seen(_module: Any, _args: Any, keywords: dict[str, Any], output: Any) -> None:
            fed, hidden = keywords["input_ids"], output.last_hidden_state
            done.fed, done.forwards = done.fed + fed.numel(), done.forwards + 1
            whole = hidden.shape[:2] == fed.shape  # TRL's head leaves the last position out, and others on a GPU
            scored = fed.size(0) * (fed.size(1) - 1) if whole and dense_head else hidden.size(1) * (not whole)
            done.scored += scored

        backbones = [each.base_model for each in (self.policy, self.reference)]
        handles = [backbone.register_forward_hook(seen, with_kwargs=True) for backbone in backbones]
        done.seconds = timed(lambda: self._step(way, number), self.options.device)
        for handle in handles:
            handle.remove()
        return done

    def _step(self, way: str, number: int) -> None:
        self._forward_and_backward(way, number)
        if self.optimizer is not None:
            self.optimizer.step()
        self.policy.zero_grad()

    def _forward_and_backward(self, way: str, number: int) -> torch.Tensor:
        for each in (self.policy, self.reference):
            each.config._attn_implementation = self.options.trl_attention if way == "TRL" else self.options.attention
        trainer = self.trainers[way]
        self.policy.train()
        loss = trainer.compute_loss(self.policy, dict(self.batches[number]))
        loss.backward()
        return loss.detach()


def build(options: argparse.Namespace, folder: str, ways: tuple[str, ...]) -> dict[str, Any]:
    """Trainers by way, around one policy and one reference."""
    from trl_dpo_ext import DPOExtConfig, DPOExtTrainer

    policy, reference = model(options.model_shape, options, 0), model(options.model_shape, options, 1)
    common = {
        "bf16": False,
        "use_cpu": options.device == "cpu",
        "report_to": "none",
        "max_length": None,
        "gradient_checkpointing": options.gradient_checkpointing,
    }
    data = {"train_dataset": tiny.preferences(), "processing_class": tiny.tokenizer()}
    made: dict[str, Any] = {}
    for way in ways:
        implementation = options.trl_attention if way == "TRL" else options.attention
        for each in (policy, reference):
            each.config._attn_implementation = implementation
        kind, config = (DPOTrainer, DPOConfig) if way == "TRL" else (DPOExtTrainer, DPOExtConfig)
        made[way] = kind(policy, reference, config(f"{folder}/{way}", **common, **WAYS[way]), **data)
    return made


@dataclass
class Contestant:
    """One way to run a step, where it runs, and what was measured of it."""

    checkout: Checkout
    way: str
    counts: Counts = field(default_factory=lambda: Counts(0, 0))
    steps: list[Step] = field(default_factory=list)

    def per(self, what: str, count: int) -> float:
        """A figure of all steps, divided by `count`."""
        return sum(getattr(step, what) for step in self.steps) / count


def start(options: argparse.Namespace) -> tuple[list[Checkout], dict[str, tuple[Checkout, str]]]:
    """Processes, and by the name of each contestant its process and its way."""
    now = Checkout(ROOT, "train_step", "Trainers", options, NOW)
    contestants = {way: (now, way) for way in NOW[options.no_trl :]}
    if not options.former:
        return [now], contestants
    former = Checkout(options.former.resolve(), "train_step", "Trainers", options, FORMER)
    return [now, former], {**contestants, **{f"former {way}": (former, way) for way in FORMER}}


def compare(options: argparse.Namespace, contestants: dict[str, Contestant], lengths: str, micro_batch: int) -> str:
    """One table."""
    for checkout in {id(one.checkout): one.checkout for one in contestants.values()}.values():
        checkout.call("load", lengths, micro_batch)
    agree(options, contestants)
    for one in contestants.values():
        one.counts = one.checkout.call("count", one.way)
    for number in range(1, options.steps + 1):
        for one in list(contestants.values())[:: 1 if number % 2 else -1]:
            one.steps.append(one.checkout.call("step", one.way, number))
    return table(options, contestants, micro_batch * options.steps)


def agree(options: argparse.Namespace, contestants: dict[str, Contestant]) -> None:
    """Loss and gradient of all on the same weights."""
    found = {name: one.checkout.call("agree", one.way) for name, one in contestants.items()}
    tolerance = 1e-4 if options.dtype == "float32" else 2e-2
    loss, norm = found[BASE]
    for name, (its_loss, its_norm) in found.items():
        assert math.isclose(loss, its_loss, rel_tol=tolerance), (name, found)
        assert math.isclose(norm, its_norm, rel_tol=10 * tolerance), (name, found)


def table(options: argparse.Namespace, contestants: dict[str, Contestant], count: int) -> str:
    base = contestants[BASE]
    lines = [
        "| | fed per pair | scored per pair | forwards | operators | peak memory (MiB) | pairs per second | time / "
        f"`{BASE}` (range) | processor time |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in contestants.items():
        wall, processor = (ratios(one.steps, base.steps, clock) for clock in ("wall", "processor"))
        lines.append(
            f"| {name} | {one.per('fed', count):.0f} | {one.per('scored', count):.0f} | "
            f"{one.per('forwards', options.steps):.0f} | {one.counts.operators} | {one.counts.peak / 2**20:.0f} | "
            f"{count / sum(step.seconds.wall for step in one.steps):.2f} | {wall} | {processor} |"
        )
    return "\n".join(lines)


def ratios(steps: list[Step], base: list[Step], clock: str) -> str:
    """Median over batches, and the smallest and the largest."""
    found = [getattr(a.seconds, clock) / getattr(b.seconds, clock) for a, b in zip(steps, base, strict=True)]
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--model-shape", default="small", choices=sorted(SHAPES))
    for size in SIZES:
        parser.add_argument(f"--{size.replace('_', '-')}", type=int, help="in place of the shape's own")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--lengths", nargs="+", default=["hh"], choices=sorted(LENGTHS))
    parser.add_argument("--micro-batch", nargs="+", type=int, default=[4])
    parser.add_argument("--steps", type=int, default=4, help="batches for each table")
    parser.add_argument("--trl-attention", default="sdpa", help="attention implementation of TRL's run")
    parser.add_argument("--attention", default="sdpa", help="attention implementation of our run")
    parser.add_argument("--former", type=Path, help="checkout of another commit of this repository")
    parser.add_argument("--no-trl", action="store_true")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--optimizer", default="adamw", choices=["adamw", "none"])
    parser.add_argument("--output", type=Path, help="append the tables to this file")
    return parser.parse_args()


def main() -> None:
    options = parse()
    checkouts, contestants = start(options)
    show(options, machine(options.device))
    for lengths in options.lengths:
        for micro_batch in options.micro_batch:
            fresh = {name: Contestant(*where) for name, where in contestants.items()}
            found = compare(options, fresh, lengths, micro_batch)
            show(options, f"\n{lengths}, {micro_batch} pairs, {options.steps} batches\n\n{found}")
    show(options, f"\nAt the end: {machine(options.device)}")
    for checkout in checkouts:
        checkout.close()


if __name__ == "__main__":
    main()
