"""The options of a benchmark that makes many runs, keeps their records, and reports of them."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any


def add_options(parser: argparse.ArgumentParser, *kinds: Any) -> None:
    """Add what to run and to write, and every field of dataclasses with its default."""
    parser.add_argument("--budget_minutes", type=float, help="start no run later than this")
    parser.add_argument("--records", type=Path, help="records to report of; default: those in --out")
    parser.add_argument("--report", type=Path, metavar="MD", help="write the tables; trains nothing")
    parser.add_argument("--figure", type=Path, metavar="SVG", help="draw the figure; trains nothing")
    for kind in kinds:
        for field in dataclasses.fields(kind):
            parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
