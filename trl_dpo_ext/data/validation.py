"""Check preference data before a model is loaded: columns, empty completions, values of extra columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from ..core.columns import WITHIN_LARGEST, Column
from . import columnar
from .batches import DatasetBatch, on_main_process, read_batches
from .columns import column_problem
from .findings import EVERY_ROW, WARNING, Finding, count_rows, numbered
from .messages import ANSWER_FIELDS, is_set
from .public_layouts import missing_sides
from .rows import SIDES, no_answer


@dataclass
class DataReport:
    """What was found in a dataset: problems stop the run, warnings do not."""

    problems: list[str]
    findings: list[Finding]

    @property
    def warnings(self) -> list[str]:
        """The findings, as they are told of a dataset without a name."""
        return [finding.sentence for finding in self.findings]


def check_preferences(
    dataset: Any,
    name: str,
    columns: Mapping[str, Column],
    sides: Sequence[str] = SIDES,
    numbers: Sequence[int] = EVERY_ROW,
) -> DataReport:
    """Check every row of a preference dataset before a model is loaded; of a streamed one, the first row.

    The main process reads the rows, and all processes return its report. Every process has to call this.

    Args:
        dataset: with `chosen` and `rejected`, texts or message lists.
        name: what messages call it, such as `train_dataset`.
        columns: extra columns that the losses read, with the values they may take.
        sides: the columns `chosen` and `rejected`; nothing where they cannot be read, and the extra columns alone are
            checked.
        numbers: the number that messages give each row.
    """
    if not isinstance(dataset, (Dataset, IterableDataset)):
        problem = f"{name} must be a datasets.Dataset or IterableDataset; got {type(dataset).__name__}."
        return DataReport([problem], [])
    return on_main_process(lambda: _check(dataset, name, columns, sides, numbers))


def _check(
    dataset: Dataset | IterableDataset,
    name: str,
    columns: Mapping[str, Column],
    sides: Sequence[str],
    numbers: Sequence[int],
) -> DataReport:
    first = next(iter(dataset), None)
    if first is None:
        return DataReport([f"{name} is empty."], [])
    problems = [] if set(sides) <= set(first) else [f"{name} {missing_sides(first)}"]
    missing = [column for column in columns if column not in first]
    if missing:
        problems.append(
            f"{name} has no column {', '.join(map(repr, missing))}; it has {', '.join(map(repr, first))}. "
            f"Name yours with --dataset_columns {missing[0]}=COLUMN, or rename it with dataset.rename_column."
        )
    findings = _Findings(
        {column: meaning for column, meaning in columns.items() if column in first},
        sides if set(sides) <= set(first) else (),
        numbers,
    )
    if isinstance(dataset, IterableDataset):
        findings.add_rows([first], 0)
    elif findings.read:
        for batch in read_batches(dataset, findings.read):
            findings.add_batch(batch)
    return DataReport(problems + findings.problems(name), findings.findings())


@dataclass
class _Findings:
    """What is wrong with the rows seen so far."""

    columns: Mapping[str, Column]
    sides: Sequence[str]
    """Both sides, or neither where one is missing."""
    numbers: Sequence[int]
    """The number of each row in the dataset that was loaded."""
    total: int = 0
    identical: list[int] = field(default_factory=list)
    """Rows whose sides are the same."""
    found: dict[str, tuple[int, list[int]]] = field(default_factory=dict)
    """By text: place of the column in `read`, and the rows."""
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    """The least and the greatest value of columns that losses have doubts about."""

    @property
    def read(self) -> list[str]:
        """The columns to read, in the order in which a row's problems are listed."""
        return [*self.columns, *self.sides]

    def add_batch(self, batch: DatasetBatch) -> None:
        """Check rows column by column, and row by row what cannot be checked so."""
        self.total += len(batch.table)
        for column, meaning in self.columns.items():
            if not _all_allowed(batch, column, meaning):
                self._add_values(column, (row[column] for row in batch.rows(column)), batch.start)
            if meaning.doubts:
                self._widen(column, _extremes(batch, column, meaning))
        try:
            empty = {side: columnar.empty_completions(batch.column(side)) for side in self.sides}
            identical = columnar.equal_rows(*map(batch.column, self.sides)) if self.sides else np.zeros(0)
        except columnar.UnknownLayoutError:
            self._add_sides(batch.rows(*self.sides), batch.start)
            return
        for side, mask in empty.items():
            if mask.any():
                self._add(no_answer(side), side, (batch.start + np.flatnonzero(mask)).tolist())
        self.identical += (batch.start + np.flatnonzero(identical)).tolist()

    def add_rows(self, rows: Sequence[Mapping[str, Any]], start: int) -> None:
        """Check rows one by one."""
        self.total += len(rows)
        for column in self.columns:
            self._add_values(column, (row[column] for row in rows), start)
        self._add_sides(rows, start)

    def _add_values(self, column: str, values: Iterable[Any], start: int) -> None:
        meaning = self.columns[column]
        for index, value in enumerate(values, start):
            problem = column_problem(value, meaning)
            if problem:
                self._add(f"column {column!r} must be {problem} ({meaning.help.rstrip('.')})", column, [index])

    def _widen(self, column: str, found: tuple[float, float] | None) -> None:
        if found is not None:
            lowest, highest = self.ranges.get(column, found)
            self.ranges[column] = min(lowest, found[0]), max(highest, found[1])

    def _add_sides(self, rows: Iterable[Mapping[str, Any]], start: int) -> None:
        for index, row in enumerate(rows, start) if self.sides else ():
            for side in self.sides:
                if _is_empty(row[side]):
                    self._add(no_answer(side), side, [index])
            self.identical += [index] * bool(row["chosen"] == row["rejected"])

    def _add(self, text: str, column: str, rows: Sequence[int]) -> None:
        self.found.setdefault(text, (self.read.index(column), []))[1].extend(rows)

    @property
    def counted(self) -> int:
        """The number of rows that messages count."""
        return count_rows(self.total, self.numbers)

    def problems(self, name: str) -> list[str]:
        """One line per kind of problem, by the first row that has it."""
        found = [(rows[0], place, text, numbered(rows, self.numbers)) for text, (place, rows) in self.found.items()]
        return [
            f"{name}: {text}; wrong in {len(rows)} of {self.counted} rows, first in row {rows[0]}." + _remedy(text)
            for _, _, text, rows in sorted(found, key=lambda item: item[:2])
        ]

    def findings(self) -> list[Finding]:
        """Likely mistakes."""
        of_columns = [
            Finding("loss_column", WARNING, self.counted, self.counted, sentence, remedy)
            for column, extremes in ({} if self.found else self.ranges).items()
            for sentence, remedy in self.columns[column].doubts_of(*extremes)
        ]
        return [*self._identical(), *of_columns]

    def _identical(self) -> list[Finding]:
        rows = numbered(self.identical, self.numbers)
        number = len(rows)
        if not number:
            return []
        sentence = (
            f"chosen and rejected are identical in {number} of {self.counted} rows; these teach nothing about "
            "preference"
        )
        remedy = 'Filter them out: dataset.filter(lambda row: row["chosen"] != row["rejected"]).'
        return [Finding("identical", WARNING, number, self.counted, sentence, remedy, rows)]


def _remedy(problem: str) -> str:
    if WITHIN_LARGEST in problem:
        return " Scale the column, or filter these rows if the number stands for none."
    return " Filter these rows." if problem in map(no_answer, SIDES) else ""


def _all_allowed(batch: DatasetBatch, column: str, meaning: Column) -> bool:
    try:
        return columnar.all_allowed(batch.column(column), meaning)
    except columnar.UnknownLayoutError:
        return False


def _extremes(batch: DatasetBatch, column: str, meaning: Column) -> tuple[float, float] | None:
    try:
        return columnar.extremes(batch.column(column), meaning)
    except (TypeError, NotImplementedError):  # a type that has no order; what it holds is checked row by row
        rows = [row[column] for row in batch.rows(column)]
    values = rows if meaning.per_token is None else [value for row in rows for value in row or ()]
    if not all(isinstance(value, (int, float)) for value in values):
        return None
    return (float(min(values)), float(max(values))) if values else None


def _is_empty(completion: Any) -> bool:
    if isinstance(completion, list):
        last = (completion[-1] if completion else None) or {}
        return not (last if isinstance(last, str) else is_set(last, ANSWER_FIELDS))
    return not completion
