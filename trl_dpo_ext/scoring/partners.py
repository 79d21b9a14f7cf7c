"""Which columns change with the sides: pairs of chosen and rejected, and differences of both."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ..errors import InputError

MIRRORED = frozenset({"p_chosen", "dpo_p_chosen", "dpo_correct"})
"""Columns that become 1 minus their value: probabilities that the chosen side is better."""
SIGNED = ("margin",)
"""Columns that become negative unless `--signed_columns` names others."""
_compute: Any = pyarrow.compute  # its functions are made at run time
_WORDS = re.compile(r"[^\W_]+")


def partners(names: Iterable[str]) -> dict[str, str]:
    """Return for each column of one side the one of the other: its name with the word chosen or rejected exchanged.

    >>> partners(["chosen", "rejected", "score_chosen", "score_rejected", "ref_chosen_logps", "chosen_by"])
    {'chosen': 'rejected', 'rejected': 'chosen', 'score_chosen': 'score_rejected', 'score_rejected': 'score_chosen'}
    """
    known = dict.fromkeys(names)
    found = {name: other for name in known if (other := _exchanged(name)) is not None and other in known}
    return found


def alone(names: Iterable[str]) -> list[str]:
    """Return the columns that are named after one side and have no partner; probabilities excepted."""
    known = dict.fromkeys(names)
    return [name for name in known if _exchanged(name) not in (None, *known) and name not in MIRRORED]


def _exchanged(name: str) -> str | None:
    words = {"chosen": "rejected", "rejected": "chosen"}
    found = _WORDS.sub(lambda word: words.get(word[0], word[0]), name)
    return found if found != name else None


def exchange_sides(table: pa.Table, where: pa.Array, signed: Sequence[str] = SIGNED) -> pa.Table:
    """Exchange the sides of marked rows: pairs of columns, also inside of structs; signed and mirrored columns.

    Args:
        table: rows.
        where: marked rows, (rows,) of bool.
        signed: columns that are negated.

    Raises:
        InputError: two columns of a pair have types that have nothing in common, or a signed one holds no numbers.
    """
    names, pairs = table.column_names, partners(table.column_names)
    columns = [_changed(table, name, pairs, where, signed) for name in names]
    return pa.table(columns, names=names)


def exchanged_types(schema: pa.Schema) -> dict[str, pa.DataType]:
    """Return the types of columns that differ between the sides of a pair, as one type for both.

    Raises:
        InputError: two types have nothing in common; all such pairs.
    """
    found, problems = {}, []
    for name, other in partners(schema.names).items():
        mine, theirs = schema.field(name).type, schema.field(other).type
        if mine == theirs:
            continue
        try:
            both = [pa.schema([("", kind)]) for kind in (mine, theirs)]
            found[name] = pa.unify_schemas(both, promote_options="permissive").field(0).type
        except (pa.ArrowTypeError, pa.ArrowInvalid, pa.ArrowNotImplementedError):
            if name < other:
                problems.append(
                    f"--relabel exchanges {name!r} and {other!r}, but the one holds {mine} and the other {theirs}. "
                    "Convert or remove one of them."
                )
    if problems:
        raise InputError(*problems)
    return found


def _changed(
    table: pa.Table, name: str, pairs: dict[str, str], where: pa.Array, signed: Sequence[str]
) -> pa.ChunkedArray | pa.Array:
    column = _joined(table[name])
    if name in pairs:
        kind = exchanged_types(table.select([name, pairs[name]]).schema).get(name, column.type)
        return _mixed(column.cast(kind), _joined(table[pairs[name]]).cast(kind), where)
    if name in MIRRORED and pa.types.is_floating(column.type):
        return _compute.if_else(where, _compute.subtract(pa.scalar(1, column.type), column), column)
    if name in signed:
        return _negated(column, name, where)
    return _inside(column, where)


def check_signed(kind: pa.DataType, name: str) -> None:
    """Raise an `InputError` for a type that holds no numbers below 0."""
    if pa.types.is_unsigned_integer(kind):
        raise InputError(f"--signed_columns: column {name!r} holds {kind}, which has no negative values. Leave it out.")
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
        raise InputError(f"--signed_columns: column {name!r} holds {kind}; numbers are needed. Leave it out.")


def _negated(column: pa.Array, name: str, where: pa.Array) -> pa.Array:
    check_signed(column.type, name)
    if pa.types.is_null(column.type):
        return column
    return _compute.if_else(where, _compute.subtract(pa.scalar(0, column.type), column), column)


def _inside(column: pa.Array, where: pa.Array) -> pa.Array:
    """A struct whose own pairs are exchanged; any other column as it is."""
    if not pa.types.is_struct(column.type):
        return column
    fields = [column.type.field(at) for at in range(column.type.num_fields)]
    if len({field.name for field in fields}) < len(fields) or not fields:
        return column
    parts = pa.table(column.flatten(), names=[field.name for field in fields])
    changed = [_joined(each) for each in exchange_sides(parts, where, ()).columns]
    typed = [field.with_type(each.type) for field, each in zip(fields, changed, strict=True)]
    return pa.StructArray.from_arrays(changed, fields=typed, mask=_compute.is_null(column))


def _mixed(column: pa.Array, other: pa.Array, where: pa.Array) -> pa.Array:
    """The other column's values in marked rows; for every type, whereas `if_else` lacks some."""
    number = len(column)
    both = pa.chunked_array([column, other])
    marked = where.to_numpy(zero_copy_only=False)
    return _joined(both.take(pa.array(np.arange(number) + number * marked)))


def _joined(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    if isinstance(column, pa.Array):
        return column
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
