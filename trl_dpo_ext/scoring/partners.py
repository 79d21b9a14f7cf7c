"""Which columns change with the sides: pairs of chosen and rejected, and differences of both."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from .. import _trl
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


def side_pairs(names: Sequence[str], mapping: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return `partners`, with the columns that a dataset calls otherwise and `dataset_columns` names.

    >>> side_pairs(["good", "bad"], {"chosen": "good", "rejected": "bad"})
    {'good': 'bad', 'bad': 'good'}
    """
    sources = {ours: source for ours, source in (mapping or {}).items() if source in names}
    return partners(names) | {sources[ours]: sources[other] for ours, other in partners(sources).items()}


def side_problems(names: Sequence[str], mapping: Mapping[str, str] | None = None) -> list[str]:
    """Return why the sides of a dataset cannot be exchanged: they are not two whole columns.

    Args:
        names: columns of the dataset.
        mapping: `dataset_columns`.
    """
    mapping = mapping or {}
    if "winner" in mapping:
        where = f"a column {mapping['winner']!r} that names the better one"
    elif set(_trl.TOKEN_IDS) <= set(names):
        return []
    else:
        missing = [source for side in ("chosen", "rejected") if (source := mapping.get(side, side)) not in names]
        if not missing:
            return []
        where = f"no column {' and no column '.join(map(repr, missing))}"
    return [
        f"--relabel exchanges the columns of the two sides, and the dataset has {where}. Give it the columns 'chosen' "
        "and 'rejected', or leave out --relabel."
    ]


def exchange_sides(
    table: pa.Table, where: pa.Array, signed: Sequence[str] = SIGNED, mapping: Mapping[str, str] | None = None
) -> pa.Table:
    """Exchange the sides of marked rows: pairs of columns, also inside of structs and lists; signed, mirrored columns.

    Args:
        table: rows.
        where: marked rows, (rows,) of bool.
        signed: columns that are negated.
        mapping: `dataset_columns`.

    Raises:
        InputError: two columns of a pair have types that have nothing in common, or a signed one holds no numbers.
    """
    names, pairs = table.column_names, side_pairs(table.column_names, mapping)
    columns = [_changed(table, name, pairs, where, signed) for name in names]
    return pa.table(columns, names=names)


def exchanged_types(schema: pa.Schema, mapping: Mapping[str, str] | None = None) -> dict[str, pa.DataType]:
    """Return the types of columns that change where sides of two types are exchanged, as one type for both.

    Raises:
        InputError: two types have nothing in common; all such pairs.
    """
    pairs = side_pairs(schema.names, mapping)
    problems: list[str] = []
    made = {field.name: _type_of(schema, field, pairs, problems) for field in schema}
    if problems:
        raise InputError(*dict.fromkeys(problems))
    return {name: kind for name, kind in made.items() if kind != schema.field(name).type}


def _type_of(
    schema: pa.Schema, field: pa.Field, pairs: Mapping[str, str], problems: list[str], outer: str = ""
) -> pa.DataType:
    """The type of one column: that of both sides of a pair, or with such types inside."""
    name, kind = field.name, field.type
    if name not in pairs:
        return _type_inside(kind, problems, f"{outer}{name}.")
    theirs = schema.field(pairs[name]).type
    try:
        both = [pa.schema([("", each)]) for each in (kind, theirs)]
        return kind if kind == theirs else pa.unify_schemas(both, promote_options="permissive").field(0).type
    except (pa.ArrowTypeError, pa.ArrowInvalid, pa.ArrowNotImplementedError):
        if name < pairs[name]:
            problems.append(
                f"--relabel exchanges {outer + name!r} and {outer + pairs[name]!r}, but the one holds {kind} and the "
                f"other {theirs}. Convert or remove one of them."
            )
        return kind


def _type_inside(kind: pa.DataType, problems: list[str], outer: str) -> pa.DataType:
    if not _holds_sides(kind):
        return kind
    if pa.types.is_struct(kind):
        schema = pa.schema(list(_fields(kind)))
        pairs = partners(schema.names)
        return pa.struct([each.with_type(_type_of(schema, each, pairs, problems, outer)) for each in schema])
    item = kind.value_field
    changed = item.with_type(_type_inside(item.type, problems, outer))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(changed, kind.list_size)
    return pa.large_list(changed) if pa.types.is_large_list(kind) else pa.list_(changed)


def _holds_sides(kind: pa.DataType) -> bool:
    """Whether a struct somewhere inside has the two sides of something, or a probability."""
    if pa.types.is_struct(kind):
        names = [field.name for field in _fields(kind)]
        if len({*names}) < len(names):
            return False
        return bool(partners(names) or MIRRORED & {*names}) or any(_holds_sides(field.type) for field in _fields(kind))
    return _is_list(kind) and _holds_sides(kind.value_type)


def _is_list(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _fields(kind: Any) -> list[pa.Field]:
    return [kind.field(at) for at in range(kind.num_fields)]


def _changed(
    table: pa.Table, name: str, pairs: dict[str, str], where: pa.Array, signed: Sequence[str]
) -> pa.ChunkedArray | pa.Array:
    column = _joined(table[name])
    if name in pairs:
        kind = _type_of(table.schema, table.schema.field(name), pairs, [])
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
    """A struct whose own pairs are exchanged, or lists of such structs; any other column as it is."""
    if not _holds_sides(column.type):
        return column
    if _is_list(column.type):
        return _inside_lists(column, where)
    fields = _fields(column.type)
    parts = pa.table(column.flatten(), names=[field.name for field in fields])
    changed = [_joined(each) for each in exchange_sides(parts, where, ()).columns]
    typed = [field.with_type(each.type) for field, each in zip(fields, changed, strict=True)]
    return pa.StructArray.from_arrays(changed, fields=typed, mask=_compute.is_null(column))


def _inside_lists(column: Any, where: pa.Array) -> pa.Array:
    """Lists with what is exchanged inside their elements; a row that is null stays so."""
    kind = column.type
    plain = column.cast(pa.large_list(kind.value_field))
    lengths = _compute.fill_null(_compute.list_value_length(plain), 0).to_numpy(zero_copy_only=False)
    elements = _inside(plain.flatten(), pa.array(np.repeat(where.to_numpy(zero_copy_only=False), lengths)))
    bounds = pa.array(np.append(0, np.cumsum(lengths, dtype=np.int64)))
    item = kind.value_field.with_type(elements.type)
    made = pa.LargeListArray.from_arrays(bounds, elements, type=pa.large_list(item), mask=_compute.is_null(plain))
    return made.cast(_type_inside(kind, [], ""))


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
