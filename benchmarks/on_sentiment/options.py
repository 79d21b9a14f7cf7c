"""The options of a benchmark that makes many runs, keeps their records, and reports of them."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from .records import read


def add_options(parser: argparse.ArgumentParser, *kinds: Any) -> None:
    """Add what to run and to write, and every field of dataclasses with its default."""
    parser.add_argument("--budget_minutes", type=float, help="start no run later than this")
    parser.add_argument("--records", type=Path, help="with --report or --figure: the records; default: those in --out")
    parser.add_argument("--report", type=Path, metavar="MD", help="write the tables; trains nothing")
    parser.add_argument("--figure", type=Path, metavar="SVG", help="draw the figure; trains nothing")
    for kind in kinds:
        for field in dataclasses.fields(kind):
            parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace, *kinds: Any) -> None:
    """End the program with an error where records would be trained into, or a number of a dataclass is too small."""
    if options.records and not (options.report or options.figure):
        parser.error("--records: only --report and --figure read it; runs are kept in --out")
    for field in (field for kind in kinds for field in dataclasses.fields(kind)):
        value = getattr(options, field.name)
        if isinstance(value, (int, float)) and not (value > 0 or value == field.default):
            parser.error(f"--{field.name} {value:g}: give a number above 0")


def write_reports(options: argparse.Namespace, file: Path, report: Any) -> bool:
    """Write the report and the figure that are asked for; returns whether one is.

    Args:
        options: with `report` and `figure`.
        file: of the records; the program ends with an error where that of the task or all runs are missing.
        report: the module with `TASK`, `markdown`, and `figure`.
    """
    if not (options.report or options.figure):
        return False
    found = read(file)
    if len(found) < 2 or not any(record["key"] == report.TASK for record in found):
        raise SystemExit(f"{file} does not hold the records of a task and its runs: run the benchmark first")
    if options.report:
        options.report.write_text(report.markdown(found), encoding="utf-8")
    if options.figure:
        report.figure(found, options.figure)
    return True
