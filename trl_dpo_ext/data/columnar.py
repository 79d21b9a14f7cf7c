"""Check whole columns of preference data at once, where their Arrow layout is one of the usual ones.

A completion is text, or a list of messages. Every function gives what the same question asked row by row in Python
gives, in a few Arrow calls; a layout that it does not know raises `UnknownLayoutError`, and the caller goes row by row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from ..core.columns import Column

Mask = npt.NDArray[np.bool_]
ArrowColumn = Any
"""A `pyarrow.Array`."""

pc: Any = pyarrow.compute  # its functions are made when it is imported, so type checkers miss them

ANSWER_FIELDS = ("content", "tool_calls", "thinking")
"""A message with any of these says something."""


class UnknownLayoutError(TypeError):
    """A column has an Arrow type that is not checked by column."""


def empty_completions(column: ArrowColumn) -> Mask:
    """Mark the rows of `chosen` or `rejected` without a completion.

    Returns:
        True where the text is empty or null, or where the last message has nothing to say; shape (rows,).
    """
    if not _is_list(column.type):
        return ~_truthy(column)
    lengths = _lengths(column)
    spoken = np.zeros(len(column), dtype=bool)
    messages = column.flatten()
    if not pa.types.is_struct(messages.type):
        raise UnknownLayoutError(f"messages of type {messages.type}")
    last = messages.take(pa.array(lengths.cumsum()[lengths > 0] - 1))
    fields = _fields(last)
    answers = [_truthy(fields[name]) for name in ANSWER_FIELDS if name in fields]
    spoken[lengths > 0] = np.logical_or.reduce(answers) if answers else False
    return ~spoken


def equal_rows(left: ArrowColumn, right: ArrowColumn) -> Mask:
    """Mark the rows in which both columns hold the same value; nulls are the same, NaN is not; shape (rows,)."""
    null_left, null_right = _is_null(left), _is_null(right)
    both_null = null_left & null_right
    if pa.types.is_null(left.type) or pa.types.is_null(right.type):
        return both_null
    if _is_list(left.type) and _is_list(right.type):
        return both_null | (_equal_lists(left, right) & ~null_left & ~null_right)
    if pa.types.is_struct(left.type) and pa.types.is_struct(right.type):
        return both_null | (_equal_structs(left, right) & ~null_left & ~null_right)
    if not (_is_plain(left.type) and (left.type == right.type or (_is_text(left.type) and _is_text(right.type)))):
        raise UnknownLayoutError(f"columns of types {left.type} and {right.type}")
    right = right if left.type == right.type else right.cast(left.type)
    return both_null | _as_mask(pc.equal(left, right))


def all_allowed(column: ArrowColumn, meaning: Column) -> bool:
    """Return True if every value of an extra column is a number that it may take.

    Bounds are those of one interval, so all values are within them if the least and the greatest are.
    """
    if meaning.per_token is not None:
        if not _is_list(column.type):
            raise UnknownLayoutError(f"values per token of type {column.type}")
        if column.null_count:
            return False
        column = column.flatten()
    if not len(column):
        return True
    if not (pa.types.is_integer(column.type) or column.type in (pa.float32(), pa.float64())):
        raise UnknownLayoutError(f"numbers of type {column.type}")
    if column.null_count or not pc.all(pc.is_finite(column)).as_py():
        return False
    extremes = pc.min_max(column).as_py()
    return all(meaning.broken_bound(float(extremes[end])) is None for end in ("min", "max"))


def list_lengths(column: ArrowColumn) -> npt.NDArray[np.int64]:
    """Return the number of items of each row of a list column; 0 for a null."""
    if not _is_list(column.type):
        raise UnknownLayoutError(f"lists of type {column.type}")
    return _lengths(column)


def _equal_lists(left: ArrowColumn, right: ArrowColumn) -> Mask:
    lengths, others = _lengths(left), _lengths(right)
    equal = lengths == others
    compared = equal & (lengths > 0)
    if compared.any():
        kept = pa.array(compared)
        items = equal_rows(left.filter(kept).flatten(), right.filter(kept).flatten())
        row_of_item = np.repeat(np.flatnonzero(compared), lengths[compared])
        equal[row_of_item[~items]] = False
    return equal


def _equal_structs(left: ArrowColumn, right: ArrowColumn) -> Mask:
    fields, others = _fields(left), _fields(right)
    if set(fields) != set(others):
        return np.zeros(len(left), dtype=bool)
    parts = [equal_rows(field, others[name]) for name, field in fields.items()]
    return np.logical_and.reduce([np.ones(len(left), dtype=bool), *parts])


def _truthy(column: ArrowColumn) -> Mask:
    """As Python's bool() of every value."""
    if pa.types.is_null(column.type):
        return np.zeros(len(column), dtype=bool)
    if _is_text(column.type):
        return _as_mask(pc.greater(pc.binary_length(column), 0))
    if _is_list(column.type):
        return _lengths(column) > 0
    raise UnknownLayoutError(f"completions of type {column.type}")


def _fields(structs: ArrowColumn) -> dict[str, ArrowColumn]:
    """By name; a null struct has null fields."""
    names = [structs.type.field(index).name for index in range(structs.type.num_fields)]
    return dict(zip(names, structs.flatten(), strict=True))


def _lengths(column: ArrowColumn) -> npt.NDArray[np.int64]:
    return pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def _is_null(column: ArrowColumn) -> Mask:
    return column.is_null().to_numpy(zero_copy_only=False)


def _as_mask(answers: ArrowColumn) -> Mask:
    return pc.fill_null(answers, False).to_numpy(zero_copy_only=False)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_plain(kind: pa.DataType) -> bool:
    return _is_text(kind) or pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)
