"""What `--relabel`, `--keep` and `--weigh` make of rows: which are exchanged, which are kept, what they weigh."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset

from ..errors import InputError, collecting
from .column_values import Vector, arrow_column, as_vector
from .expressions import Columns, Expression
from .partners import SIGNED, check_signed, exchange_sides, side_pairs, side_problems
from .written_columns import PREFIX, RELABELED, STATUS, TYPES

Read = Callable[[str], Any]
"""Returns a column as Arrow stores it."""
_SIGNED_OF_OURS = ("dpo_margin", "dpo_margin_per_token")


@dataclass(frozen=True)
class Selection:
    """The three expressions.

    Attributes:
        keep: which rows are written; None for all.
        relabel: which rows have their sides exchanged, before anything else; None for no row.
        weigh: weight of each row; None for none.
        weight_column: where weights are written.
        signed_columns: columns that `relabel` negates; None for `margin` where a dataset has it.
        dataset_columns: names that the run gives to columns of the dataset.
    """

    keep: str | None = None
    relabel: str | None = None
    weigh: str | None = None
    weight_column: str = "weight"
    signed_columns: Sequence[str] | None = None
    dataset_columns: Mapping[str, str] | None = None

    def problems(self, dataset: Dataset) -> list[str]:
        """Return what is wrong with the expressions and columns for a dataset, before a model is loaded.

        The expressions are computed with numbers in place of those that a model has still to find.
        """
        names = dataset.column_names
        problems = []
        if self.weigh and self.weight_column in (*TYPES, RELABELED):
            problems.append(f"--weight_column {self.weight_column}: `score` writes this column. Choose another name.")
        elif self.weigh and self.weight_column in names:
            problems.append(f"--weight_column {self.weight_column}: the dataset has this column. Choose another name.")
        missing = [name for name in self.signed_columns or () if name not in names]
        if missing:
            listed = ", ".join(names)
            problems.append(
                f"--signed_columns: no column is called {', '.join(missing)}; the "
                f"dataset has {listed}. Name one of these."
            )
        with collecting(problems):
            _computed(self, [*dict.fromkeys([*names, *TYPES])], _with_placeholders(dataset), len(dataset))
        if self.relabel:
            problems += side_problems(names, self.dataset_columns)
            for name in set(self.signed_columns or SIGNED) & set(names):
                with collecting(problems):
                    check_signed(dataset.features.arrow_schema.field(name).type, name)
        return problems

    @property
    def signed(self) -> tuple[str, ...]:
        """Columns that are negated where sides are exchanged."""
        return (*(SIGNED if self.signed_columns is None else self.signed_columns), *_SIGNED_OF_OURS)

    @property
    def _keep(self) -> Expression | None:
        return Expression(self.keep, "keep") if self.keep is not None else None

    @property
    def _relabel(self) -> Expression | None:
        return Expression(self.relabel, "relabel") if self.relabel is not None else None

    @property
    def _weigh(self) -> Expression | None:
        return Expression(self.weigh, "weigh") if self.weigh is not None else None


@dataclass(frozen=True)
class Selected:
    """What becomes of each row.

    Attributes:
        relabeled: (rows,) of bool: whose sides are exchanged.
        kept: (rows,) of bool.
        weights: (rows,) of float64; None without `--weigh`. A row that was dropped weighs 0 if it has no value.
    """

    relabeled: npt.NDArray[np.bool_]
    kept: npt.NDArray[np.bool_]
    weights: npt.NDArray[np.float64] | None

    def counts(self) -> dict[str, int]:
        """Return the numbers of rows: all, exchanged ones, kept ones, and exchanged ones that are kept."""
        return {
            "rows": len(self.kept),
            "relabeled": int(self.relabeled.sum()),
            "kept": int(self.kept.sum()),
            "kept_relabeled": int((self.kept & self.relabeled).sum()),
        }


def select(selection: Selection, names: Sequence[str], read: Read, numbers: Vector) -> Selected:
    """Compute the expressions.

    Args:
        selection: the expressions.
        names: columns, with what `score` has added.
        read: returns one of them as Arrow stores it.
        numbers: of the rows, for errors.

    Raises:
        InputError: expressions that cannot be computed, or a kept row that has a weight below 0 or none.
    """
    relabeled, kept, weights, columns = _computed(selection, names, read, len(numbers))
    if weights is not None:
        weights = _weights(weights, kept, columns.read(STATUS) == "dropped", numbers)
    return Selected(relabeled, kept, weights)


def _computed(selection: Selection, names: Sequence[str], read: Read, rows: int) -> tuple[Vector, Vector, Any, Columns]:
    """Which rows are exchanged and kept, and the values of `--weigh`; and the columns as they are then."""
    problems = list[str]()
    relabeled, kept, weights = np.zeros(rows, bool), np.ones(rows, bool), None
    with collecting(problems):
        if selection._relabel:
            relabeled = selection._relabel.condition(_named(names, read, rows))
    columns = _relabeled_columns(selection, names, read, relabeled) if selection.relabel else _named(names, read, rows)
    with collecting(problems):
        if selection._keep:
            kept = selection._keep.condition(columns)
    with collecting(problems):
        if selection._weigh:
            weights = selection._weigh.number(columns)
    if problems:
        raise InputError(*problems)
    return relabeled, kept, weights, columns


def _with_placeholders(dataset: Dataset) -> Read:
    rows = len(dataset)

    def read(name: str) -> Any:
        if name not in TYPES:
            return arrow_column(dataset, name)
        kind = TYPES[name].pa_type
        return pa.array(["ok"] * rows, kind) if name == STATUS else pa.array(np.ones(rows)).cast(kind)

    return read


def relabeled_before(names: Sequence[str], read: Read) -> Any:
    """Return which rows a former run has exchanged, (rows,) of bool; False where none did."""
    if RELABELED not in names:
        return False
    marks = as_vector(read(RELABELED), RELABELED)
    if marks.dtype != bool:
        raise InputError(
            f"--relabel writes the column {RELABELED!r}, which the dataset has with other values. Rename that column."
        )
    return marks


def _weights(weights: Vector, kept: Vector, dropped: Vector, numbers: Vector) -> npt.NDArray[np.float64]:
    weights = np.where(dropped & np.isnan(weights), 0.0, weights)
    wrong = kept & ~(np.isfinite(weights) & (weights >= 0))
    if wrong.any():
        at = int(wrong.argmax())
        found = "none" if np.isnan(weights[at]) else f"{weights[at]:g}"
        raise InputError(
            f"--weigh: weights must be 0 or more and finite; row {int(numbers[at])} has {found} "
            f"({int(wrong.sum())} rows in all). Change the expression, or leave these rows out with --keep."
        )
    return weights


def _relabeled_columns(selection: Selection, names: Sequence[str], read: Read, relabeled: Vector) -> Columns:
    """Columns as they are after sides were exchanged."""
    pairs, where = side_pairs(names, selection.dataset_columns), pa.array(relabeled)

    def exchanged(name: str) -> Any:
        if name == RELABELED:
            return pa.array(relabeled ^ relabeled_before(names, read))
        needed = [name, pairs[name]] if name in pairs else [name]
        table = pa.table([read(each) for each in needed], names=needed)
        return exchange_sides(table, where, selection.signed, selection.dataset_columns)[name]

    return _named([*dict.fromkeys([*names, RELABELED])], exchanged, len(relabeled))


def _named(names: Sequence[str], read: Read, rows: int) -> Columns:
    """Columns under their names, and those of `score` without their prefix, too."""
    given = dict.fromkeys([*names, *TYPES])
    short = {name.removeprefix(PREFIX): name for name in TYPES}
    doubtful = {
        alias: f"{alias!r} is a column of the dataset, and short for {name}. Write {name}, or rename the column"
        for alias, name in short.items()
        if alias in given
    }
    known = [*given, *(alias for alias in short if alias not in given)]

    def vector(name: str) -> Vector:
        column = name if name in given else short[name]
        return as_vector(_chunked(read(column)), column)

    return Columns(known, vector, rows, doubtful)


def _chunked(column: Any) -> pa.ChunkedArray:
    return column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
