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
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from checkouts import Checkout
from counting import machine, show
from lengths import LENGTHS, pairs
from steps import Contestant, Steps, Way, add_options, agree, measure, ratios, spread

ROOT = Path(__file__).parent.parent
WAYS: dict[str, Way] = {
    "TRL": Way(trl=True),
    "padding_free": Way({"padding_free": True}),
    "share_prompt": Way({"share_prompt": True}),
    "share_prompt, padding_free": Way({"share_prompt": True, "padding_free": True}),
}
NOW, FORMER = ("TRL", "padding_free", "share_prompt"), tuple(WAYS)[1:]
BASE = "share_prompt"


class Trainers(Steps):
    """Trainers of one version of the package, and TRL's, on batches of pairs."""

    def __init__(self, options: argparse.Namespace, ways: tuple[str, ...]) -> None:
        super().__init__(options, {way: WAYS[way] for way in ways})

    def load(self, lengths: str, micro_batch: int) -> None:
        """Make the batches: one to warm up, and one for each step."""
        rows = pairs(lengths, micro_batch * (self.options.steps + 1), self.policy.config.vocab_size, seed=0)
        collator = next(iter(self.trainers.values())).data_collator
        batches = [[self.collate(collator, rows[at:][:micro_batch])] for at in range(0, len(rows), micro_batch)]
        self.batches = dict.fromkeys(self.trainers, batches)


def start(options: argparse.Namespace) -> tuple[list[Checkout], dict[str, tuple[Checkout, str]]]:
    """Processes, and by the name of each contestant its process and its way."""
    now = Checkout(ROOT, "train_step", "Trainers", options, NOW)
    contestants = {way: (now, way) for way in NOW[options.no_trl :]}
    if not options.former:
        return [now], contestants
    former = Checkout(options.former.resolve(), "train_step", "Trainers", options, FORMER)
    return [now, former], {**contestants, **{f"former {way}": (former, way) for way in FORMER}}


def compare(
    options: argparse.Namespace, contestants: dict[str, tuple[Checkout, str]], lengths: str, micro_batch: int
) -> str:
    """One table."""
    for checkout in {id(checkout): checkout for checkout, _ in contestants.values()}.values():
        checkout.call("load", lengths, micro_batch)
    fresh = {name: Contestant(checkout.call, way) for name, (checkout, way) in contestants.items()}
    agree(fresh, options.dtype)
    measure(fresh, options.steps)
    return table(options, fresh, micro_batch * options.steps)


def table(options: argparse.Namespace, contestants: dict[str, Contestant], count: int) -> str:
    base = contestants[BASE]
    lines = [
        "| | fed per pair | scored per pair | forwards | operators | peak memory (MiB) | pairs per second | time / "
        f"`{BASE}` (range) | processor time |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in contestants.items():
        wall, processor = (spread(ratios(one.steps, base.steps, clock)) for clock in ("wall", "processor"))
        lines.append(
            f"| {name} | {one.per('fed', count):.0f} | {one.per('scored', count):.0f} | "
            f"{one.per('forwards', options.steps):.0f} | {one.counts.operators} | {one.counts.peak / 2**20:.0f} | "
            f"{count / sum(step.seconds.wall for step in one.steps):.2f} | {wall} | {processor} |"
        )
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, model_shape="small")
    parser.add_argument("--lengths", nargs="+", default=["hh"], choices=sorted(LENGTHS))
    parser.add_argument("--micro-batch", nargs="+", type=int, default=[4])
    parser.add_argument("--steps", type=int, default=4, help="batches for each table")
    parser.add_argument("--former", type=Path, help="checkout of another commit of this repository")
    parser.add_argument("--no-trl", action="store_true")
    return parser.parse_args()


def main() -> None:
    options = parse()
    checkouts, contestants = start(options)
    show(options, machine(options.device))
    for lengths in options.lengths:
        for micro_batch in options.micro_batch:
            found = compare(options, contestants, lengths, micro_batch)
            show(options, f"\n{lengths}, {micro_batch} pairs, {options.steps} batches\n\n{found}")
    show(options, f"\nAt the end: {machine(options.device)}")
    for checkout in checkouts:
        checkout.close()


if __name__ == "__main__":
    main()
