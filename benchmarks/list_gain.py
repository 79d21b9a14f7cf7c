r"""What lists gain over one pair of each list, at equal cost: the same number of positions fed to the policy.

The demo's generator gives each question four answers: right or wrong, short or padded. A small language model, which is
first taught all kinds of answers to all questions, is trained on lists, or on one pair of each, and measured on
questions about other facts: how it orders their answers, and what it answers itself. A pair costs less than a list, so
training on pairs takes more steps and sees more prompts.

Run: python benchmarks/list_gain.py                          # goes on where it was interrupted
     python benchmarks/list_gain.py --only pl all --budget_minutes 10
     python benchmarks/list_gain.py --report list_gain.md --figure list_gain.svg

`--out` keeps the start and one line for each run that has ended.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from counting import commit, machine
from on_facts import report
from on_facts.cells import WAYS, Cell, grid
from on_facts.measure import answers, own_answers
from on_facts.task import Settings, Task, prepare
from on_facts.training import Plan, run
from on_sentiment import records
from on_sentiment.language_model import loaded
from on_sentiment.options import add_options, check_options, write_reports
from on_sentiment.task import fingerprint


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("list-gain-runs"), help="folder of the start and the records")
    names = [way.name for way in WAYS]
    parser.add_argument("--only", nargs="+", default=names, choices=names, metavar="WAY", help=f"of {', '.join(names)}")
    add_options(parser, Settings, Plan)
    options = parser.parse_args(arguments)
    check_options(parser, options, Settings, Plan)
    return options


def describe(task: Task, plan: Plan) -> records.Record:
    """The record of the task."""
    model, tokenizer = loaded(task.start, "cpu")
    return {
        "key": report.TASK,
        "machine": machine("cpu"),
        "commit": commit(),
        "parameters": sum(each.numel() for each in model.parameters()),
        "plan": dataclasses.asdict(plan),
        "train": len(task.train),
        "held_out": len(task.held_out),
        "before": own_answers(tokenizer, task.held_out, answers(model, tokenizer, task.held_out)),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, or report."""
    options = parse(arguments)

    def chosen(kind: Any) -> Any:
        return kind(**{field.name: getattr(options, field.name) for field in dataclasses.fields(kind)})

    settings, plan = chosen(Settings), chosen(Plan)
    file = options.records or options.out / f"task-{settings.fingerprint}" / f"runs-{fingerprint(plan)}.jsonl"
    if write_reports(options, file, report):
        return 0
    done = {record["key"]: record for record in records.read(file)}
    begun = time.monotonic()
    for cell in grid():
        if cell.way.name in options.only and cell.key not in done:
            if options.budget_minutes is not None and time.monotonic() - begun > 60 * options.budget_minutes:
                print(f"{options.budget_minutes:g} minutes have passed; run again to go on.", flush=True)
                break
            done |= _run(cell, prepare(options.out, settings, cell.seed), plan, file, report.TASK not in done)
    return 0


def _run(cell: Cell, task: Task, plan: Plan, file: Path, first: bool) -> dict[str, records.Record]:
    """Run a cell, and write its record; the first one writes that of the task before it."""
    made = [describe(task, plan)] if first else []
    made.append(run(cell, task, plan))
    for record in made:
        records.append(file, record)
    last = made[-1]["points"][-1]
    print(f"{cell.key}: top-1 {last['top1']:.2f}, pairs {last['pairs']:.2f}", flush=True)
    return {record["key"]: record for record in made}


if __name__ == "__main__":
    sys.exit(main())
