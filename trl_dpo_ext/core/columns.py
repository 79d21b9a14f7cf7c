"""Dataset columns that loss variants read beside the answers, such as scores, with the values that they may hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Column:
    """What a dataset column means and which values it may hold.

    Args:
        help: one sentence; shown in tables and in error messages.
        ge: lowest value.
        le: highest value.
        gt: what every value is above.
        gt_zero_with: a hyperparameter of the loss and the value with which 0 is not allowed either.
        per_token: the side whose completion the column holds a list of values for, one per token; None for one value
            per pair.
    """

    help: str
    ge: float | None = None
    le: float | None = None
    gt: float | None = None
    gt_zero_with: tuple[str, str] | None = None
    per_token: Literal["chosen", "rejected"] | None = None

    def broken_bound(self, value: float) -> str | None:
        """Return the first bound that `value` breaks, such as `">= 0"`, or None."""
        if not math.isfinite(value):
            return "finite"
        if self.gt is not None and value <= self.gt:
            return f"> {self.gt:g}"
        if self.ge is not None and value < self.ge:
            return f">= {self.ge:g}"
        if self.le is not None and value > self.le:
            return f"<= {self.le:g}"
        return None

    def under(self, hyper: Mapping[str, Any]) -> Column:
        """Return what the column may hold in a run with these hyperparameters."""
        name, value = self.gt_zero_with or ("", None)
        return replace(self, gt=0.0) if value is not None and hyper.get(name) == value else self


SCORE_COLUMNS = {
    "score_chosen": Column("Score of the chosen side, such as a reward model's."),
    "score_rejected": Column("Score of the rejected side, on the same scale."),
}
P_CHOSEN_COLUMN = {"p_chosen": Column("Probability that the chosen side is better.", ge=0, le=1)}
COLUMNS_OF_SCORES = (*SCORE_COLUMNS, "margin")
"""The columns of pairs that the scores of lists fill."""
