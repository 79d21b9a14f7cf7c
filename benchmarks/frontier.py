r"""Expected reward against divergence from the reference: the DPO paper's controlled sentiment task, without a hub.

A small language model is trained from scratch on sentences of movie reviews; its continuations of sentences'
beginnings are compared by VADER, which is also what rewards are measured by. Every loss trains the same start on the
same pairs, at several strengths and seeds, with right labels and with some flipped. All runs share one store of
reference log-probs.

Run: python benchmarks/frontier.py                                   # goes on where it was interrupted
     python benchmarks/frontier.py --budget_minutes 30 --only sigmoid dpop
     python benchmarks/frontier.py --list
     python benchmarks/frontier.py --match "*flips=0 *"                   # runs whose line in --list fits
     python benchmarks/frontier.py --report frontier.md --figure frontier.svg
     python benchmarks/frontier.py --hidden 384 --layers 5 --vocabulary 4096 --rate 1e-3 --rate_factor 0.6  # 10 million
     python benchmarks/frontier.py --device cuda --model HuggingFaceTB/SmolLM2-135M --rate 5e-5 --epochs 1 \
         --rate_factor 0.04

The first run prepares the task, for which pip downloads vaderSentiment's source distribution (2.5 MB). `--out` keeps
the task, the store, and one line for each run that has ended.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from counting import commit, machine
from on_sentiment import records, report
from on_sentiment.cells import Cell, grid
from on_sentiment.language_model import loaded
from on_sentiment.measure import Judge
from on_sentiment.options import add_options, check_options, write_reports
from on_sentiment.statistics_of_runs import best_of_n
from on_sentiment.task import Settings, Task, fingerprint, prepare
from on_sentiment.training import Plan, run


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("frontier-runs"), help="folder of the task and the records")
    parser.add_argument("--only", nargs="+", default=[], metavar="LOSS", help="only these losses")
    parser.add_argument("--match", default="*", metavar="PATTERN", help="only runs that fit, by * and ?")
    parser.add_argument("--list", action="store_true", help="list the runs, and which are done")
    add_options(parser, Settings, Plan)
    options = parser.parse_args(arguments)
    check_options(parser, options, Settings, Plan)
    if unknown := set(options.only) - {cell.loss for cell in grid()}:
        parser.error(f"--only: not in the grid: {', '.join(sorted(unknown))}")
    if not wanted(options):
        parser.error(f"--match {options.match}: no run of the grid fits; --list shows them")
    return options


def wanted(options: argparse.Namespace) -> list[Cell]:
    """The runs of the grid that the command line names."""
    return [
        cell
        for cell in grid()
        if (not options.only or cell.loss in options.only) and fnmatchcase(cell.record["key"], options.match)
    ]


def chosen(kind: Any, options: argparse.Namespace) -> Any:
    """Return the settings that the command line gives."""
    return kind(**{field.name: getattr(options, field.name) for field in dataclasses.fields(kind)})


def pending(cells: Sequence[Cell], done: Sequence[records.Record]) -> list[Cell]:
    """Those runs that have no record."""
    keys = {record["key"] for record in done}
    return [cell for cell in cells if cell.record["key"] not in keys]


def run_all(
    cells: Sequence[Cell], file: Path, train: Callable[[Cell], records.Record], minutes: float | None = None
) -> bool:
    """Run cells until the minutes have passed, each written when it has ended; returns whether none failed."""
    begun, well = time.monotonic(), True
    for cell in cells:
        if minutes is not None and time.monotonic() - begun > 60 * minutes:
            print(f"{minutes:g} minutes have passed; run again to go on.", flush=True)
            break
        try:
            record = train(cell)
        except Exception:
            traceback.print_exc()
            well = False
            continue
        records.append(file, record)
        last = record["points"][-1]
        print(f"{record['key']}: reward {last['reward']:.3f}, KL {last['kl']:.2f}", flush=True)
    return well


def describe(task: Task, plan: Plan) -> records.Record:
    """The record of the task."""
    return {
        "key": report.TASK,
        "machine": machine(plan.device),
        "commit": commit(),
        "facts": task.facts,
        "plan": dataclasses.asdict(plan),
        "settings": dataclasses.asdict(task.settings),
        "pairs": len(task.pairs),
        "held_out": len(task.held_out),
        "start": statistics.fmean(score for row in task.pool for score in row),
        "best_of_n": best_of_n(task.pool),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, or report."""
    options = parse(arguments)
    settings, plan = chosen(Settings, options), chosen(Plan, options)
    file = options.records or options.out / f"task-{settings.fingerprint}" / f"runs-{fingerprint(plan)}.jsonl"
    done = records.read(file)
    if options.list:
        waiting = pending(wanted(options), done)
        for cell in wanted(options):
            print(f"{'missing' if cell in waiting else 'done   '} {cell.record['key']}")
        return 0
    if write_reports(options, file, report):
        return 0
    task = prepare(options.out, settings, plan.device)
    if not any(record["key"] == report.TASK for record in done):
        records.append(file, describe(task, plan))
    reference, tokenizer = loaded(task.reference, plan.device)
    judge = Judge(task, reference, tokenizer)
    gc.freeze()  # each trainer collects garbage, and would look through all modules
    well = run_all(
        pending(wanted(options), done), file, lambda cell: run(cell, task, judge, plan), options.budget_minutes
    )
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
