"""`DatasetReference`: reference log-probs that the user's datasets hold."""

from __future__ import annotations

import contextlib
from typing import Any

from .. import _trl
from ..errors import InputError
from ..forward.outputs import PairBatch, RefLogps
from .columns import has_reference_columns, refuse_sums, sums_of
from .source import ReferenceSettings, ReferenceSource


class DatasetReference(ReferenceSource):
    """Log-probs that the user's datasets hold, as sums in the columns `ref_chosen_logps` and `ref_rejected_logps`."""

    is_stored = True

    def __init__(self, settings: ReferenceSettings, is_initial_policy: bool = True) -> None:
        super().__init__(settings)
        self.is_initial_policy = is_initial_policy

    def _enter(self, patches: contextlib.ExitStack) -> Any:
        patches.enter_context(_trl.no_reference_model(self.settings.policy_by_name))
        patches.enter_context(_trl.no_model_hash())

    def fill(self, dataset: Any, name: str) -> None:
        """Refuse a dataset without the columns: which reference made those of the others is not known.

        Raises:
            InputError: naming the dataset.
        """
        refuse_sums(self.settings.needs, dataset, name)
        if not has_reference_columns(dataset):
            raise InputError(
                f"The {name} dataset has no columns {' and '.join(_trl.REFERENCE_COLUMNS)}, but this run reads its "
                "reference log-probs from such columns. Add them, or remove them from all datasets to use a store."
            )

    def uncalibrated_logps(self, model: Any, batch: PairBatch) -> RefLogps:
        """Read the sums from the batch."""
        return sums_of(batch)

    def describe(self) -> str:
        """See `ReferenceSource.describe`."""
        return "the dataset's own columns"
