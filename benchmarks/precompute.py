"""The reference pass of TRL, of ours, and of ours of another commit: the same data and weights, in turn.

Prints for each kind of data what does not depend on the machine (positions fed to the backbone and scored by the head,
forwards, operators that torch calls, memory that tensors take beyond the model), and time relative to that of the
present pass: above 1, the present one is faster. All summed log-probs must agree.

Run: python benchmarks/precompute.py [--model FOLDER] [--device cuda --dtype bfloat16]
     python benchmarks/precompute.py --lengths hh ultrafeedback --answers 2 4 --former CHECKOUT
     python benchmarks/precompute.py --turns 4 --least-shared 1 16 64 100000         # conversations
     python benchmarks/precompute.py --system-prompt 16 64 256 --least-shared 1 100000

CHECKOUT is a folder with a commit whose package has the store (git worktree add CHECKOUT COMMIT). On a CPU, set
OMP_NUM_THREADS=1 where other work runs, and read the ratio of processor time. `--least-shared` adds a pass for each
number of tokens from which on sequences of different prompts share what they begin with.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import DPOTrainer

sys.path.insert(0, str(Path(__file__).parent.parent))
from checkouts import Checkout
from counting import Counts, Seconds, count, machine, now, show, timed
from lengths import LENGTHS, SIDES, Row, conversations, pairs, with_system_prompt
from shapes import SHAPES, SIZES, model

from tests.support import tiny

ROOT = Path(__file__).parent.parent
BASE = "ours"


@dataclass
class Pass:
    """What one pass cost."""

    seconds: Seconds = field(default_factory=lambda: Seconds(0.0, 0.0))
    backbone: Seconds = field(default_factory=lambda: Seconds(0.0, 0.0))
    """Of `seconds`, those in the backbone."""
    fed: int = 0
    """Positions that the backbone was given."""
    scored: int = 0
    """Positions of which the head computed logits."""
    attended: int = 0
    """Positions that are no padding."""
    forwards: int = 0
    sums: list[float] = field(default_factory=list)
    """Summed log-probs: of chosen and rejected answers of each row."""


class Passes:
    """The reference pass of TRL and of one version of the package, with one model."""

    def __init__(self, options: argparse.Namespace) -> None:
        from trl_dpo_ext import DPOExtConfig, DPOExtTrainer

        self.options, self._folder = options, tempfile.TemporaryDirectory()
        args = DPOExtConfig(
            self._folder.name,
            precompute_ref_log_probs=True,  # the reference is the policy: no other model is loaded
            precompute_ref_max_tokens=options.max_tokens,
            ref_store=tempfile.mkdtemp(dir=self._folder.name),
            bf16=False,
            use_cpu=options.device == "cpu",
            report_to="none",
            max_length=None,
            disable_tqdm=True,
        )
        data = {"train_dataset": tiny.preferences(), "processing_class": tiny.tokenizer()}
        self.trainer = DPOExtTrainer(_model(options), args=args, **data)
        self.trainer.data_collator = (
            self.trainer.data_collator.collator
        )  # without stored log-probs, as TRL's pass needs
        self.rows: Dataset = Dataset.from_dict({})

    def load(self, rows: list[Row]) -> None:
        """Take other data."""
        self.rows = Dataset.from_list(rows)

    def warm(self, which: str) -> None:
        """Run a pass over a few rows."""
        rows, self.rows = self.rows, self.rows.select(range(2))
        self.run(which)
        self.rows = rows

    def count(self, which: str) -> Counts:
        """Count what a pass calls and allocates."""
        return count(lambda: self._pass(which), self.options.device)

    def run(self, which: str) -> Pass:
        """Run a pass: "TRL", "ours", or "ours, N" for common beginnings of N tokens or more."""
        done = Pass()

        def before(_module: Any, _args: Any, keywords: dict[str, Any]) -> None:
            done.fed, done.forwards = done.fed + keywords["input_ids"].numel(), done.forwards + 1
            done.backbone -= now(self.options.device)

        def after(_module: Any, _args: Any, _output: Any) -> None:
            done.backbone += now(self.options.device)

        backbone, ended = self.trainer.model.base_model, None
        # First in, last out: what our own hooks do to rows and outputs is counted outside the backbone.
        hooks = [
            backbone.register_forward_pre_hook(before, with_kwargs=True),
            backbone.register_forward_hook(after, prepend=True),
        ]

        def run() -> None:
            nonlocal ended
            ended = self._pass(which)

        done.seconds = timed(run, self.options.device)
        for hook in hooks:
            hook.remove()
        if which == "TRL":
            self._tell_of_trl(done, ended)
        else:
            self._tell_of_ours(done)
        return done

    def _pass(self, which: str) -> Any:
        if which == "TRL":
            self.trainer._precompute_model_hash = str(time.time_ns())  # so that its cache is never hit
            return DPOTrainer._precompute_ref_logps(self.trainer, self.rows, "TRL", self.options.batch_size)
        if "," not in which:
            return self._our_pass()
        from trl_dpo_ext.forward import packing

        least_shared, packing.LEAST_SHARED = packing.LEAST_SHARED, int(which.split(",")[1])
        try:
            return self._our_pass()
        finally:
            packing.LEAST_SHARED = least_shared

    def _our_pass(self) -> Any:
        self.trainer.args.ref_store = tempfile.mkdtemp(dir=self._folder.name)
        vars(self.trainer.reference).pop("stored", None)
        return self.trainer._precompute_ref_logps(self.rows, "ours", self.options.batch_size)

    def _tell_of_trl(self, done: Pass, ended: Any) -> None:
        completions = sum(len(row[side]) for row in self.rows for side in SIDES)
        done.attended = completions + 2 * sum(len(row["prompt_ids"]) for row in self.rows)
        done.scored = done.fed if self.options.device == "cpu" else completions  # on a CPU its head scores all
        done.sums = [*ended["ref_chosen_logps"], *ended["ref_rejected_logps"]]

    def _tell_of_ours(self, done: Pass) -> None:
        stored = self.trainer.reference.stored
        done.attended, done.scored = stored.stats.tokens, stored.stats.scored
        collator = stored.collator(self.trainer.data_collator)
        sums = [collator([row])["ref_token_logps"].double().sum(1).tolist() for row in self.rows]
        done.sums = [one for side in zip(*sums, strict=True) for one in side]


def _model(options: argparse.Namespace) -> Any:
    if options.model:
        made = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
        return made.to(options.device)
    return model(options.model_shape, options, 0)


@dataclass
class Contestant:
    """One kind of pass, where it runs, and what was measured of it."""

    checkout: Checkout
    which: str
    counts: Counts = field(default_factory=lambda: Counts(0, 0))
    passes: list[Pass] = field(default_factory=list)


def start(options: argparse.Namespace) -> tuple[list[Checkout], dict[str, tuple[Checkout, str]]]:
    """Processes, and by the name of each contestant its process and what to run there."""
    now = Checkout(ROOT, "precompute", "Passes", options)
    contestants = {BASE: (now, BASE)}
    if not options.no_trl:
        contestants["TRL"] = (now, "TRL")
    for tokens in options.least_shared:
        contestants[f"sharing from {tokens} tokens"] = (now, f"ours, {tokens}")
    if not options.former:
        return [now], contestants
    former = Checkout(options.former.resolve(), "precompute", "Passes", options)
    return [now, former], {**contestants, "former": (former, "ours")}


def data(options: argparse.Namespace) -> dict[str, list[Row]]:
    """Rows by the name of each kind of data."""
    vocabulary = _vocabulary(options)
    kinds: dict[str, list[Row]] = {}
    for lengths in options.lengths:
        shape = (lengths, options.prompts, vocabulary, 0)
        kinds |= {f"{lengths}, {k} answers to each prompt": pairs(*shape, answers=k) for k in options.answers}
        for turns in options.turns:
            count = max(options.prompts // turns, 1)
            kinds[f"{lengths}, conversations of {turns} turns"] = conversations(lengths, count, turns, vocabulary, 0)
        for length in options.system_prompt:
            rows = with_system_prompt(pairs(*shape), length, vocabulary)
            kinds[f"{lengths}, a system prompt of {length} tokens"] = rows
    return kinds


def _vocabulary(options: argparse.Namespace) -> int:
    if options.model:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(options.model).vocab_size
    return options.vocab_size or SHAPES[options.model_shape][2]["vocab_size"]


def compare(options: argparse.Namespace, contestants: dict[str, Contestant], rows: list[Row]) -> str:
    """One table."""
    for checkout in {id(one.checkout): one.checkout for one in contestants.values()}.values():
        checkout.call("load", rows)
    for one in contestants.values():
        one.checkout.call("warm", one.which)
    for turn in range(options.repeats):
        for one in list(contestants.values())[:: -1 if turn % 2 else 1]:
            one.passes.append(one.checkout.call("run", one.which))
    for one in contestants.values():
        one.counts = one.checkout.call("count", one.which)
    return table(contestants, "processor" if options.device == "cpu" else "wall")


def table(contestants: dict[str, Contestant], clock: str) -> str:
    base = contestants[BASE]
    lines = [
        "| | fed | padding | scored | forwards | operators | peak memory (MiB) | seconds | time / present (range) | "
        "processor time | in the backbone |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in contestants.items():
        wall, processor = (ratios(one.passes, base.passes, "seconds", kind) for kind in ("wall", "processor"))
        backbone = ratios(one.passes, base.passes, "backbone", clock)
        first = one.passes[0]
        lines.append(
            f"| {name} | {first.fed} | {1 - first.attended / first.fed:.1%} | {first.scored} | {first.forwards} | "
            f"{one.counts.operators} | {one.counts.peak / 2**20:.0f} | "
            f"{statistics.median(each.seconds.wall for each in one.passes):.1f} | {wall} | {processor} | {backbone} |"
        )
    sums = [torch.tensor(each.sums).double() for one in contestants.values() for each in one.passes]
    apart = max(float((each - sums[0]).abs().max()) for each in sums)
    lines += ["", f"Largest difference of a summed log-prob: {apart:.2g} (largest sum {sums[0].abs().max():.0f})."]
    return "\n".join(lines)


def ratios(passes: list[Pass], base: list[Pass], what: str, clock: str) -> str:
    """Median over repeats, and the smallest and the largest."""
    times = ([getattr(getattr(each, what), clock) for each in of] for of in (passes, base))
    found = [a / b for a, b in zip(*times, strict=True)]
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a model; default: random weights in a published shape")
    parser.add_argument("--model-shape", default="smollm2-135m", choices=sorted(SHAPES))
    for size in SIZES:
        parser.add_argument(f"--{size.replace('_', '-')}", type=int, help="in place of the shape's own")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--lengths", nargs="+", default=["hh"], choices=sorted(LENGTHS))
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--answers", nargs="*", type=int, default=[], help="to each prompt: 2, 4, ...")
    parser.add_argument("--turns", nargs="*", type=int, default=[], help="of conversations, each turn a pair")
    parser.add_argument("--system-prompt", nargs="*", type=int, default=[], help="tokens that all prompts begin with")
    parser.add_argument("--least-shared", nargs="*", type=int, default=[])
    parser.add_argument("--batch-size", type=int, default=8, help="of TRL, in rows of the data")
    parser.add_argument("--max-tokens", type=int, help="of ours, positions in a batch")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--former", type=Path, help="checkout of another commit of this repository")
    parser.add_argument("--no-trl", action="store_true")
    parser.add_argument("--output", type=Path, help="append the tables to this file")
    options = parser.parse_args()
    if not (options.answers or options.turns or options.system_prompt):
        options.answers = [2]
    return options


def main() -> None:
    options = parse()
    checkouts, contestants = start(options)
    show(options, machine(options.device))
    for name, rows in data(options).items():
        fresh = {one: Contestant(*where) for one, where in contestants.items()}
        found = compare(options, fresh, rows)
        show(options, f"\n{name} ({len(rows)} pairs, {options.repeats} repeats)\n\n{found}")
    show(options, f"\nAt the end: {machine(options.device)}")
    for checkout in checkouts:
        checkout.close()


if __name__ == "__main__":
    main()
