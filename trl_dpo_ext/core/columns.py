"""Dataset columns that loss variants read beside the answers, such as scores, with the values that they may hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Column:
    """What a dataset column means and which values it may hold.

    Args:
        help: one sentence; shown in tables and in error messages.
        ge: lowest value.
        le: highest value.
        per_token: the side whose completion the column holds a list of values for, one per token; None for one value
            per pair.
    """

    help: str
    ge: float | None = None
    le: float | None = None
    per_token: Literal["chosen", "rejected"] | None = None

    def broken_bound(self, value: float) -> str | None:
        """Return the first bound that `value` breaks, such as `">= 0"`, or None."""
        if not math.isfinite(value):
            return "finite"
        if self.ge is not None and value < self.ge:
            return f">= {self.ge:g}"
        if self.le is not None and value > self.le:
            return f"<= {self.le:g}"
        return None


SCORE_COLUMNS = {
    "score_chosen": Column("Score of the chosen side, such as a reward model's."),
    "score_rejected": Column("Score of the rejected side, on the same scale."),
}
P_CHOSEN_COLUMN = {"p_chosen": Column("Probability that the chosen side is better.", ge=0, le=1)}
