"""What K answers under one prompt cost to train: as all of their pairs, by TRL and by us, and as a list.

One policy and one reference with random weights are trained on the same lists, in turn, in one process: as rows of
pairs, which hold each answer K - 1 times and the prompt K (K - 1) times, and as lists, by a loss of pairs
(`list_pairs all`) and by a loss of lists (`pl`). Before anything is timed, all ways with the same objective give their
loss and gradient on the same weights, which must agree. First come figures that do not depend on the machine:
positions that policy and reference are fed and that their heads score, which must be those that the lengths of prompts
and answers give, operators that torch calls, memory that tensors take beyond that before a step. Times are those of TRL
on all pairs divided by those of each way: above 1, TRL is slower.

Run: python benchmarks/lists.py                                       # two CPU cores, half an hour
     python benchmarks/lists.py --reference stored --answers 4
     python benchmarks/lists.py --device cuda --dtype bfloat16 --model-shape qwen2.5-0.5b --gradient-checkpointing

On a CPU, set OMP_NUM_THREADS=1 where other work runs, and read the ratio of processor time.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from counting import commit, machine, show
from lengths import LENGTHS, lists
from steps import Batch, Contestant, Steps, Way, add_options, agree, measure, ratios, spread

List = Mapping[str, Any]
Sequences = list[tuple[int, int]]
"""The length of the prompt and of the answer of each."""
PAIRS, PL, SHARE = {"list_pairs": "all"}, {"loss_type": "pl"}, {"share_prompt": True}
WAYS: dict[str, Way] = {
    "TRL, all pairs": Way(trl=True),
    "TRL, pair by pair": Way(trl=True),
    "pairs": Way(),
    "pairs, share_prompt": Way(SHARE),
    "lists": Way(PAIRS, lists=True),
    "lists, share_prompt": Way({**PAIRS, **SHARE}, lists=True),
    "pl": Way(PL, lists=True),
    "pl, share_prompt": Way({**PL, **SHARE}, lists=True),
}
BASE, SINGLE = "TRL, all pairs", "TRL, pair by pair"
"""The latter accumulates the gradient over micro-batches of one pair; all others have one micro-batch."""


class ListSteps(Steps):
    """Training steps on lists in each of the ways.

    Args:
        options: as `Steps` reads them, and `reference`: live or stored.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._stored = options.reference == "stored"
        self._store = tempfile.TemporaryDirectory()
        super().__init__(options, {name: self._with_reference(way) for name, way in WAYS.items()})

    def _with_reference(self, way: Way) -> Way:
        if not self._stored:
            return way
        flags = {"precompute_ref_log_probs": True} | ({} if way.trl else {"ref_store": self._store.name})
        return dataclasses.replace(way, flags={**way.flags, **flags})

    def load(self, steps: Sequence[Sequence[List]]) -> None:
        """Take the lists of each step."""
        self.batches = {name: [self._micro_batches(name, rows) for rows in steps] for name in self.ways}

    def _micro_batches(self, name: str, rows: Sequence[List]) -> list[Batch]:
        if self.ways[name].lists:
            return [self._batch(name, list(rows))]
        pairs = [pair for row in rows for pair in pairs_of(row)]
        return [self._batch(name, some) for some in ([[pair] for pair in pairs] if name == SINGLE else [pairs])]

    def _batch(self, name: str, rows: list[Any]) -> Batch:
        trainer, ours = self.trainers[name], not self.ways[name].trl
        if not self._stored:
            return self.collate(trainer.data_collator, rows)
        batch = self.collate(trainer.data_collator.collator if ours else trainer.data_collator, rows)
        stored = logps(self.reference, batch)  # as a store would have them
        chosen, rejected = stored.sum(dim=1).chunk(2)
        return batch | (
            {"ref_token_logps": stored} if ours else {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        )


def pairs_of(row: List) -> Iterator[dict[str, list[int]]]:
    """All pairs of a list, whose best answers come first."""
    for chosen, rejected in itertools.combinations(row["list_ids"], 2):
        yield {"prompt_ids": row["prompt_ids"], "chosen_ids": chosen, "rejected_ids": rejected}


def logps(model: Any, batch: Batch) -> torch.Tensor:
    """Log-probs of the answers of a batch, (rows, tokens - 1) float32."""
    found = torch.zeros_like(batch["input_ids"][:, 1:], dtype=torch.float32)
    for row, (ids, attended) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
        ids = ids[: int(attended.sum())]
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1].float()
        found[row, : len(ids) - 1] = logits.log_softmax(dim=-1).gather(1, ids[1:, None])[:, 0]
    return found * batch["completion_mask"][:, 1:]


def sequences(name: str, rows: Sequence[List]) -> list[Sequences]:
    """What a way has in its micro-batches: each pair's answers, or the answers of the lists."""
    lengths = [(len(row["prompt_ids"]), [len(ids) for ids in row["list_ids"]]) for row in rows]
    if WAYS[name].lists:  # of an odd number of answers, the shortest one fills up the last pair of TRL's batch
        full = [(prompt, answers + [min(answers)] * (len(answers) % 2)) for prompt, answers in lengths]
        return [[(prompt, answer) for prompt, answers in full for answer in answers]]
    pairs = [[(prompt, a) for a in pair] for prompt, answers in lengths for pair in itertools.combinations(answers, 2)]
    return pairs if name == SINGLE else [[each for pair in pairs for each in pair]]


def positions(name: str, rows: Sequence[List], dense_head: bool) -> tuple[int, int]:
    """What a way has to feed to each model for lists, and what each head has to score.

    Args:
        dense_head: whether TRL's head scores prompts and padding, too, as it does on a CPU.
    """
    micro_batches = sequences(name, rows)
    scored = sum(answer for some in micro_batches for _, answer in some)
    if "share_prompt" in name:  # what is the same once; the last token of an answer is only predicted
        once = sum(len(row["prompt_ids"]) + sum(len(ids) - 1 for ids in row["list_ids"]) for row in rows)
        return once, scored
    sizes = [(len(some), max(prompt + answer for prompt, answer in some)) for some in micro_batches]
    fed = sum(number * width for number, width in sizes)
    return fed, sum(number * (width - 1) for number, width in sizes) if dense_head else scored


def objective(name: str) -> str:
    """What a way minimizes: the loss of all pairs, or the loss of lists."""
    return "pl" if name.startswith("pl") else "pairs"


def compare(steps: ListSteps, rows: Sequence[Sequence[List]]) -> dict[str, Contestant]:
    """Check and measure all ways; the first lists warm up."""
    steps.load(rows)
    contestants = {name: Contestant(lambda method, *given: getattr(steps, method)(*given), name) for name in WAYS}
    for what in ("pairs", "pl"):
        agree({name: one for name, one in contestants.items() if objective(name) == what}, steps.options.dtype)
    measure(contestants, len(rows) - 1)
    check(steps, rows[1:], contestants)
    return contestants


def check(steps: Steps, rows: Sequence[Sequence[List]], contestants: Mapping[str, Contestant]) -> None:
    """Check that what was counted is what the lengths give."""
    models = 1 if steps.options.reference == "stored" else 2
    for name, one in contestants.items():
        for some, step in zip(rows, one.steps, strict=True):
            fed, scored = positions(name, some, steps.options.device == "cpu")
            assert (step.fed, step.scored) == (models * fed, models * scored), (name, step, fed, scored)


def records(contestants: Mapping[str, Contestant], steps: int, clock: str) -> dict[str, dict[str, Any]]:
    """The figures of each way: per step, and times relative to TRL's."""
    base = contestants[BASE]
    found = {}
    for name, one in contestants.items():
        found[name] = {
            **{what: one.per(what, steps) for what in ("fed", "scored", "forwards")},
            "fed_relative": base.per("fed", steps) / one.per("fed", steps),
            "operators": one.counts.operators,
            "peak_mib": one.counts.peak / 2**20,
            "seconds": sum(getattr(step.seconds, clock) for step in one.steps) / steps,
            **{kind: ratios(base.steps, one.steps, kind) for kind in ("wall", "processor")},
        }
    return found


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures as Markdown."""
    lines = [
        "| | fed | TRL's / it | scored | forwards | operators | peak memory (MiB) | seconds | TRL's time / its time "
        "(range) | processor time |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        lines.append(
            f"| {name} | {one['fed']:.0f} | {one['fed_relative']:.2f} | {one['scored']:.0f} | {one['forwards']:.0f} | "
            f"{one['operators']} | {one['peak_mib']:.0f} | {one['seconds']:.1f} | {spread(one['wall'])} | "
            f"{spread(one['processor'])} |"
        )
    return "\n".join(lines)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, model_shape="smollm2-narrow")
    parser.set_defaults(optimizer="none")
    parser.add_argument("--lengths", default="ultrafeedback", choices=sorted(LENGTHS))
    parser.add_argument("--answers", nargs="+", type=int, default=[2, 4, 7], help="to each prompt")
    parser.add_argument("--lists", type=int, default=1, help="in a step")
    parser.add_argument("--steps", type=int, default=3, help="for each table")
    parser.add_argument("--reference", default="live", choices=["live", "stored"])
    parser.add_argument("--records", type=Path, help="append the figures to this file as lines of JSON")
    return parser.parse_args(argv)


def main() -> None:
    options = parse()
    steps, clock = ListSteps(options), "processor" if options.device == "cpu" else "wall"
    show(options, machine(options.device))
    for answers in options.answers:
        count = options.lists * (options.steps + 1)
        rows = lists(options.lengths, count, answers, steps.policy.config.vocab_size, seed=answers)
        compared = compare(steps, [rows[at:][: options.lists] for at in range(0, count, options.lists)])
        found = records(compared, options.steps, clock)
        setting = {"answers": answers, "lengths": options.lengths, "lists": options.lists, "steps": options.steps}
        title = f"{options.lengths}, {answers} answers, {options.reference} reference"
        size = f"lists in a step: {options.lists}, steps: {options.steps}"
        show(options, f"\n### {title} ({size})\n\n{table(found)}")
        if options.records:
            line = {**setting, "reference": options.reference, "machine": machine(options.device), "commit": commit()}
            with options.records.open("a") as file:
                file.write(f"{json.dumps({**line, 'ways': found})}\n")
    show(options, f"\nAt the end: {machine(options.device)}")


if __name__ == "__main__":
    main()
