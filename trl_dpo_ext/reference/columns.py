"""Reference log-probs that a dataset has in columns of its own, as sums."""

from __future__ import annotations

from typing import Any

from .. import _trl
from ..core.pairs import NEEDS, Need
from ..errors import InputError
from ..forward.outputs import PairBatch, RefLogps


def has_reference_columns(dataset: Any) -> bool:
    """Return True if a dataset has the columns `ref_chosen_logps` and `ref_rejected_logps`."""
    return set(_trl.REFERENCE_COLUMNS) <= set(dataset.column_names or ())


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
