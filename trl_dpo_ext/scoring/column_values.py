"""Columns of a dataset as arrays: numbers with NaN for null, conditions, and texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
from datasets import ClassLabel, Dataset

from ..errors import InputError

Vector = npt.NDArray[Any]
"""(rows,) of float64 with NaN for null, of bool with False for null, or of texts with None for null."""
_compute: Any = pyarrow.compute  # its functions are made at run time
_EXACT = 2**53
"""Integers up to here are float64 numbers, too."""


def arrow_column(dataset: Dataset, name: str) -> pa.ChunkedArray:
    """Return one column as it is stored."""
    return dataset.select_columns([name]).with_format("arrow")[:][name]


def as_vector(column: pa.ChunkedArray, name: str) -> Vector:
    """Convert a column.

    Raises:
        InputError: it holds neither numbers, conditions nor texts, or integers that float64 cannot tell apart.
    """
    kind = column.type
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan)
    if pa.types.is_boolean(kind):
        return _compute.fill_null(column, False).to_numpy().astype(bool)
    if pa.types.is_integer(kind):
        ends = _compute.min_max(column).as_py()
        if max(abs(ends["min"] or 0), abs(ends["max"] or 0)) > _EXACT:
            raise InputError(
                f"Column {name!r} holds integers beyond 2**53, which cannot be compared exactly. Store them as texts."
            )
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return _compute.fill_null(column.cast(pa.float64(), safe=False), np.nan).to_numpy().astype(np.float64)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        values = np.empty(len(column), dtype=object)
        values[:] = column.to_pylist()
        return values
    raise InputError(
        f"Column {name!r} holds {kind}; numbers, texts, or true and false are needed. Choose "
        "another column, or convert it."
    )


def numeric_column(dataset: Dataset, name: str, flag: str) -> Vector:
    """Read one column of numbers, NaN for null; raises what `check_numeric` does."""
    check_numeric(dataset, name, flag)
    column = arrow_column(dataset, name)
    return _compute.fill_null(column.cast(pa.float64(), safe=False), np.nan).to_numpy().astype(np.float64)


def check_numeric(dataset: Dataset, name: str, flag: str) -> None:
    """Check a column of numbers.

    Raises:
        InputError: it does not exist or holds something else; `flag` says who asked for it.
    """
    if name not in dataset.column_names:
        raise InputError(missing_column(dataset, name, flag))
    if not is_numeric(dataset, name):
        kind = dataset.features.arrow_schema.field(name).type
        raise InputError(
            f"--{flag}: column {name!r} holds {kind}; numbers are needed. Choose another column, or convert it."
        )


def is_numeric(dataset: Dataset, name: str) -> bool:
    """Whether a column holds numbers, or nothing but null."""
    kind = dataset.features.arrow_schema.field(name).type
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
    return any(test(kind) for test in tests)


def labels(dataset: Dataset, name: str) -> list[str | None]:
    """Return a column's values as texts: the names of classes, numbers as JSON writes them, None for null."""
    feature, values = dataset.features[name], arrow_column(dataset, name).to_pylist()
    if isinstance(feature, ClassLabel):
        return [None if value is None or value < 0 else str(feature.int2str(value)) for value in values]
    return [None if value is None else str(value) for value in values]


def missing_column(dataset: Dataset, name: str, flag: str) -> str:
    """Return the sentence for a column that does not exist."""
    return f"--{flag} {name}: no such column; the dataset has {', '.join(dataset.column_names)}."
