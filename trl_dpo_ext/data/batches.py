"""Read a dataset in batches, as Arrow columns or as rows, on the main process for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
from accelerate import PartialState
from datasets import Dataset

from .. import _trl

_ROWS_AT_ONCE = 1000
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class DatasetBatch:
    """Some rows of a dataset that follow one another."""

    start: int
    """Index of the first row."""
    table: pa.Table
    dataset: Dataset

    def column(self, name: str) -> pa.Array:
        """Return a column as it is stored."""
        chunks = self.table.column(name)
        return chunks.chunk(0) if chunks.num_chunks == 1 else pa.concat_arrays(chunks.chunks)

    def rows(self, *columns: str) -> Iterator[Mapping[str, Any]]:
        """Iterate over some columns of the rows, decoded to Python values."""
        plain = self.dataset.select_columns(list(columns)).with_format(None)
        values_of = plain[self.start : self.start + len(self.table)]
        for values in zip(*(values_of[name] for name in columns), strict=True):
            yield dict(zip(columns, values, strict=True))

    def rows_at(self, places: Sequence[int], columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        """Iterate over some columns of some rows, decoded to Python values; `places` count from the batch's start."""
        if len(places) == len(self.table):
            yield from self.rows(*columns)
            return
        plain = self.dataset.select_columns(list(columns)).with_format(None)
        values_of = plain[[self.start + place for place in places]]
        for values in zip(*(values_of[name] for name in columns), strict=True):
            yield dict(zip(columns, values, strict=True))


def read_batches(dataset: Dataset, columns: Sequence[str]) -> Iterator[DatasetBatch]:
    """Read some columns of a dataset from the first row to the last, whatever its format."""
    stored = dataset.select_columns(list(columns)).with_format("arrow")
    for start in range(0, len(dataset), _ROWS_AT_ONCE):
        yield DatasetBatch(start, stored[start : start + _ROWS_AT_ONCE], dataset)


def on_main_process(compute: Callable[[], Result]) -> Result:
    """Return what `compute` returns on the main process; the others wait for it. Every process has to call this."""
    computed = compute() if PartialState().is_main_process else None
    return _trl.gather_object(computed)[0]
