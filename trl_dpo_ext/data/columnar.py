"""Check whole columns of preference data at once, where their Arrow layout is one of the usual ones.

A completion is text, or a list of messages. Every function gives what the same question asked row by row in Python
gives, in a few Arrow calls; a layout that it does not know raises `UnknownLayoutError`, and the caller goes row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from ..core.columns import Column
from .messages import ANSWER_FIELDS

Mask = npt.NDArray[np.bool_]
ArrowColumn = Any
"""A `pyarrow.Array`."""

pc: Any = pyarrow.compute  # its functions are made when it is imported, so type checkers miss them


class UnknownLayoutError(TypeError):
    """A column has an Arrow type that is not checked by column."""


def empty_completions(column: ArrowColumn) -> Mask:
    """Mark the rows of `chosen` or `rejected` without a completion.

    Returns:
        True where the text is empty or null, or where the last message has nothing to say; shape (rows,).
    """
    return ~_has_any(column, ANSWER_FIELDS) if _is_list(column.type) else ~is_truthy(column)


def only_in_fields(column: ArrowColumn, names: Sequence[str]) -> Mask:
    """Mark the rows of `chosen` or `rejected` whose last message has nothing to say but in these fields; (rows,)."""
    if is_text(column.type) or pa.types.is_null(column.type):
        return np.zeros(len(column), dtype=bool)
    return _has_any(column, names) & ~_has_any(column, [name for name in ANSWER_FIELDS if name not in names])


def _has_any(column: ArrowColumn, names: Sequence[str]) -> Mask:
    """Mark the rows whose last message says something in one of the fields."""
    lengths = list_lengths(column)
    spoken = np.zeros(len(column), dtype=bool)
    messages = column.flatten()
    if not pa.types.is_struct(messages.type):
        raise UnknownLayoutError(f"messages of type {messages.type}")
    last = messages.take(pa.array(lengths.cumsum()[lengths > 0] - 1))
    given = fields(last)
    answers = [is_truthy(given[name]) for name in names if name in given]
    spoken[lengths > 0] = np.logical_or.reduce(answers) if answers else False
    return spoken


def equal_rows(left: ArrowColumn, right: ArrowColumn) -> Mask:
    """Mark the rows in which both columns hold the same value; nulls are the same, NaN is not; shape (rows,)."""
    null_left, null_right = is_null(left), is_null(right)
    both_null = null_left & null_right
    if pa.types.is_null(left.type) or pa.types.is_null(right.type):
        return both_null
    if _is_list(left.type) and _is_list(right.type):
        return both_null | (_equal_lists(left, right) & ~null_left & ~null_right)
    if pa.types.is_struct(left.type) and pa.types.is_struct(right.type):
        return both_null | (_equal_structs(left, right) & ~null_left & ~null_right)
    if not (_is_plain(left.type) and (left.type == right.type or (is_text(left.type) and is_text(right.type)))):
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


def extremes(column: ArrowColumn, meaning: Column) -> tuple[float, float] | None:
    """Return the least and the greatest value of an extra column whose values are all allowed; None without values."""
    found = pc.min_max(column if meaning.per_token is None else column.flatten()).as_py()
    return None if found["min"] is None else (float(found["min"]), float(found["max"]))


def list_lengths(column: ArrowColumn) -> npt.NDArray[np.int64]:
    """Return the number of items of each row of a list column; 0 for a null."""
    if not _is_list(column.type):
        raise UnknownLayoutError(f"lists of type {column.type}")
    return _lengths(column)


_LAST_BYTES = 8


def may_start_with(texts: ArrowColumn, starts: ArrowColumn) -> Mask:
    """Mark the rows in which a text may begin with the other column's text, by a few bytes at that text's end.

    No row is missed: where the answer is False, the text begins otherwise; shape (rows,).
    """
    (data, begins, ends), (others, other_begins, other_ends) = _bytes(texts), _bytes(starts)
    lengths = other_ends - other_begins
    may = (lengths > 0) & (lengths <= ends - begins)
    rows = np.flatnonzero(may)
    for back in range(1, _LAST_BYTES + 1):
        offsets = np.maximum(lengths[rows] - back, 0)
        rows = rows[data[begins[rows] + offsets] == others[other_begins[rows] + offsets]]
    may = np.zeros(len(may), dtype=bool)
    may[rows] = True
    return may


def _bytes(texts: ArrowColumn) -> tuple[npt.NDArray, npt.NDArray, npt.NDArray]:
    """The bytes of all texts, and where each begins and ends in them; (rows,)."""
    kind = np.int64 if pa.types.is_large_string(texts.type) else np.int32
    _, offsets, data = texts.buffers()
    places = np.frombuffer(offsets, dtype=kind)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    return np.frombuffer(data or b"", dtype=np.uint8), places[:-1], places[1:]


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
    ours, others = fields(left), fields(right)
    if set(ours) != set(others):
        return np.zeros(len(left), dtype=bool)
    parts = [equal_rows(field, others[name]) for name, field in ours.items()]
    return np.logical_and.reduce([np.ones(len(left), dtype=bool), *parts])


def is_truthy(column: ArrowColumn) -> Mask:
    """Mark values whose bool() is True in Python; shape (rows,)."""
    if pa.types.is_null(column.type):
        return np.zeros(len(column), dtype=bool)
    if is_text(column.type):
        return _as_mask(pc.greater(pc.binary_length(column), 0))
    if _is_list(column.type):
        return _lengths(column) > 0
    raise UnknownLayoutError(f"completions of type {column.type}")


def fields(structs: ArrowColumn) -> dict[str, ArrowColumn]:
    """Return the fields of structs by name; a null struct has null fields."""
    names = [structs.type.field(index).name for index in range(structs.type.num_fields)]
    return dict(zip(names, structs.flatten(), strict=True))


def _lengths(column: ArrowColumn) -> npt.NDArray[np.int64]:
    return pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def is_null(column: ArrowColumn) -> Mask:
    """Mark nulls; shape (rows,)."""
    return column.is_null().to_numpy(zero_copy_only=False)


def _as_mask(answers: ArrowColumn) -> Mask:
    return pc.fill_null(answers, False).to_numpy(zero_copy_only=False)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_plain(kind: pa.DataType) -> bool:
    return is_text(kind) or pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)
