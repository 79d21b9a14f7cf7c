"""The result of `inspect`: an object for JSON, terminal and page, and the rows behind it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from ..data.findings import LEVELS, Finding
from ..errors import InputError
from ..statistics import finite
from .pair_table import PairTable
from .row_view import even_sample, row_views

ROW_FILES = (".jsonl", ".parquet")
"""Endings of files that `write_rows` writes."""
_LISTED = 10


@dataclass
class Inspection:
    """What `inspect_preferences` found; `data` is what JSON, terminal and page show."""

    data: dict[str, Any]
    """`kind`, `format`, `versions`, `date`, `arguments`, `splits` (blocks of statistics each), `overlap`, `findings`,
    `examples`."""
    tables: dict[str, PairTable] = field(default_factory=dict, repr=False)
    """The measured rows of each split."""
    found: dict[str, list[Finding]] = field(default_factory=dict, repr=False)
    """The findings of each split, with all their rows."""

    def json(self) -> str:
        """Return `data` as JSON text."""
        return json.dumps(self.data, ensure_ascii=False, allow_nan=False, indent=1)

    def worst(self) -> str | None:
        """Return the gravest level of a finding that is not ignored; None where there is none."""
        levels = [each["level"] for each in self.data["findings"] if not each["ignored"]]
        return max(levels, key=LEVELS.index, default=None)

    def rows(self, numbers: Sequence[int], split: str = "train", whole: bool = True) -> list[dict[str, Any]]:
        """Return some rows with token ids, texts and findings; of a list, its best completion beside each other one.

        Args:
            numbers: of the rows in the loaded split, counted from 0.
            split: `train` or `test`.
            whole: whether all completions of a list are given, and not the best and one other.

        Raises:
            InputError: a row does not exist, or was dropped.
        """
        table = self.tables[split]
        places: dict[int, list[int]] = {}
        for place in (table.examples.shown if whole else table.examples.first).tolist():
            places.setdefault(int(table.numbers[place]), []).append(place)
        loaded = table.loaded if table.origin is None else len(table.origin)
        problems = []
        for number in numbers:
            if number in places:
                continue
            exists = 0 <= number < loaded
            why = "was dropped" if exists else f"does not exist; there are {loaded}"
            reason = "nothing of it can be learned" if table.of_lists else "its prompt alone fills max_length"
            why += f": {reason}" if np.isin(number, table.dropped) else ""
            problems.append(f"Row {number} of the {split} split {why}.")
        if problems:
            raise InputError(*problems)
        return finite(
            row_views(table, split, [place for number in numbers for place in places[number]], self.found[split])
        )

    def rows_with(self, name: str, most: int) -> list[dict[str, Any]]:
        """Return the first rows that have a finding; of the training split first.

        Args:
            name: of the finding.
            most: how many rows, at most.
        """
        rows: list[dict[str, Any]] = []
        for split, table in self.tables.items():
            kept = set(table.numbers.tolist())
            of_split = [number for f in self.found[split] if f.name == name for number in f.rows if number in kept]
            rows += self.rows(of_split[: most - len(rows)], split)
        return rows

    def without_rows(self, name: str) -> str:
        """Say why `rows_with` returns nothing.

        Args:
            name: of the finding.
        """
        found = [
            (split, finding) for split, findings in self.found.items() for finding in findings if finding.name == name
        ]
        if not found:
            return f"Nothing has the finding {name}."
        numbered = [(split, finding.rows) for split, finding in found if len(finding.rows)]
        if not numbered:
            return f"{name} is a finding of the dataset, and not of single rows."
        listed = "; ".join(f"{split} {', '.join(map(str, rows[:_LISTED]))}" for split, rows in numbered)
        return f"{name} is a finding of rows that are not trained, and have no sequences to show: {listed}."

    def sample(self, most: int) -> list[dict[str, Any]]:
        """Return rows for a page: first those with findings, at most half of them for one finding, then others.

        Args:
            most: how many rows, at most.
        """
        chosen: dict[str, dict[int, None]] = {split: {} for split in self.tables}
        for split, table in self.tables.items():
            kept = set(table.numbers.tolist())
            for finding in self.found[split]:
                for number in itertools.islice((each for each in finding.rows if each in kept), max(most // 2, 1)):
                    if sum(map(len, chosen.values())) < most:
                        chosen[split][number] = None
        for split, table in self.tables.items():
            left = most - sum(map(len, chosen.values()))
            others = [number for number in dict.fromkeys(table.numbers.tolist()) if number not in chosen[split]]
            chosen[split] |= dict.fromkeys(others[place] for place in even_sample(len(others), left) if left > 0)
        return [row for split, numbers in chosen.items() for row in self.rows(sorted(numbers), split)]

    def _repr_html_(self) -> str:
        from .terminal import as_html

        return as_html(self.data)


def write_rows(result: Inspection, file: Path) -> int:
    """Write one line per loaded row: its number, lengths and findings; return the number of lines.

    A list has one line for each completion but its best, which is the chosen one of all of them.

    Args:
        result: of `inspect_preferences`.
        file: ends in `.jsonl` or `.parquet`.

    Raises:
        InputError: it ends in anything else.
    """
    if file.suffix not in ROW_FILES:
        raise InputError(f"--write_rows {file}: a file of rows must end in .jsonl or .parquet.")
    parts = [_row_lines(table, split, result.found[split]) for split, table in result.tables.items()]
    lines = Dataset.from_list([line for part in parts for line in part])
    if file.suffix == ".jsonl":
        lines.to_json(str(file), lines=True, force_ascii=False)
    else:
        lines.to_parquet(str(file))
    return len(lines)


def _row_lines(table: PairTable, split: str, findings: Sequence[Finding]) -> list[dict[str, Any]]:
    names: dict[int, list[str]] = {}
    for finding in findings:
        for row in finding.rows:
            names.setdefault(int(row), []).append(finding.name)
    rows, shown = table.rows, table.examples.shown.tolist()
    lines = [
        {
            "split": split,
            "row": int(number),
            "n_prompt": int(rows.prompt[at]),
            "n_chosen": int(rows.sides[at, 0]),
            "n_rejected": int(rows.sides[at, 1]),
            "cut_chosen": int(rows.cut[at, 0]),
            "cut_rejected": int(rows.cut[at, 1]),
            "first_difference": None if rows.same[at] else int(rows.common[at]),
            "findings": names.get(int(number), []),
        }
        for at, number in zip(shown, table.numbers[shown].tolist(), strict=True)
    ]
    empty = dict.fromkeys(("n_prompt", "n_chosen", "n_rejected", "cut_chosen", "cut_rejected", "first_difference"))
    lines += [{"split": split, "row": int(row), **empty, "findings": ["dropped"]} for row in table.dropped.tolist()]
    return sorted(lines, key=lambda line: line["row"])
