"""Reference log-probs that a dataset has in columns of its own, as sums."""

from __future__ import annotations

from typing import Any

from .. import _trl
from ..core.columns import Column
from ..core.pairs import NEEDS, Need
from ..errors import InputError
from ..forward.outputs import PairBatch, RefLogps

_OLD_COLUMNS = ("reference_chosen_logps", "reference_rejected_logps")
"""As TRL called them before version 0.12."""


def has_reference_columns(dataset: Any) -> bool:
    """Return True if a dataset has the columns `ref_chosen_logps` and `ref_rejected_logps`."""
    return set(_trl.REFERENCE_COLUMNS) <= set(_trl.column_names(dataset))


def read_columns(dataset: Any) -> dict[str, Column]:
    """The reference log-probs that a run with `precompute_ref_log_probs` reads from a dataset's columns, if any."""
    sides = zip(_trl.REFERENCE_COLUMNS, ("chosen", "rejected"), strict=True)
    if not has_reference_columns(dataset):
        return {}
    return {name: Column(f"Sum of the reference's log-probs of the {side} completion.") for name, side in sides}


def lone_column_problem(dataset: Any) -> str | None:
    """Return what is missing where a dataset has reference log-probs of one side alone."""
    names = _trl.column_names(dataset)
    found = [name for name in _trl.REFERENCE_COLUMNS if name in names]
    if len(found) != 1:
        return None
    (other,) = set(_trl.REFERENCE_COLUMNS) - set(found)
    return (
        f"has the column {found[0]!r} without {other!r}, so that its reference log-probs would not be read. Add the "
        f"other one, name it with --dataset_columns {other}=COLUMN, or remove both."
    )


def ignored_columns(dataset: Any, name: str, is_read: bool) -> str | None:
    """Return a warning about reference log-probs in a dataset that the run does not read.

    Args:
        dataset: as given.
        name: what messages call it.
        is_read: whether the run reads such columns where a dataset has both.
    """
    if is_read and has_reference_columns(dataset):
        return None
    names = _trl.column_names(dataset)
    found = [column for column in (*_trl.REFERENCE_COLUMNS, *_OLD_COLUMNS) if column in names]
    if not found:
        return None
    columns = " and ".join(_trl.REFERENCE_COLUMNS)
    return (
        f"{name} has reference log-probs ({', '.join(found)}) that this run does not read: it computes them with its "
        f"reference. To read them, name them {columns} and set precompute_ref_log_probs=True; otherwise remove them."
    )


def refuse_sums(needs: Need, dataset: Any, name: str) -> None:
    """Refuse a dataset's own reference log-probs, which are sums, where losses read more.

    Raises:
        InputError: naming what the losses read.
    """
    more = needs.of_reference & ~Need.REFERENCE
    if more and has_reference_columns(dataset):
        raise InputError(
            f"The losses need {', '.join(NEEDS[need].label for need in more)}, but the {name} dataset has sums of "
            f"reference log-probs ({', '.join(_trl.REFERENCE_COLUMNS)}). Remove those columns, so that a store is used."
        )


def sums_of(batch: PairBatch) -> RefLogps:
    """The reference log-probs that a batch has in such columns, each (pairs,)."""
    chosen, rejected = (batch.inputs[column] for column in _trl.REFERENCE_COLUMNS)
    return RefLogps(chosen, rejected)
