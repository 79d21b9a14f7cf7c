"""Collects what is wrong with rows: one line for each kind, with the number of rows and the first of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from datasets import Dataset

from ..errors import InputError
from .batches import read_batches


class RowError(Exception):
    """Raised where a row cannot be read.

    Args:
        problem: what is wrong, in words that fit every such row; after a full stop, how to fix it.
        detail: what this row has.
    """

    def __init__(self, problem: str, detail: str = "") -> None:
        super().__init__(problem)
        self.problem, self.detail = problem, detail


class RowProblems:
    """What is wrong with the rows of a dataset.

    Args:
        name: what messages call it.
    """

    def __init__(self, name: str = "dataset") -> None:
        self._name = name
        self._found: dict[str, tuple[int, int, str]] = {}

    def add(self, row: int, error: RowError) -> None:
        """Count a row; rows are added in their order."""
        first, count, detail = self._found.get(error.problem, (row, 0, error.detail))
        self._found[error.problem] = (first, count + 1, detail)

    def raise_all(self, total: int) -> None:
        """Raise one `InputError` for all of them, if there are any."""
        lines = []
        for text, (first, count, detail) in self._found.items():
            what, stop, remedy = text.partition(". ")
            shown = f" ({detail})" if detail else ""
            fix = f" {remedy}." if stop else ""
            lines.append(f"{self._name}: {what}; wrong in {count} of {total} rows, first in row {first}{shown}.{fix}")
        if lines:
            raise InputError(*lines)


def rows_of(dataset: Dataset, columns: Sequence[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Iterate over the rows of a dataset with their numbers, and those of some columns that it has."""
    names = [name for name in columns if name in dataset.column_names]
    for batch in read_batches(dataset, names):
        yield from enumerate(batch.rows(*names), batch.start)
