"""Dataset columns that loss variants read beside the answers, such as scores, with the values that they may hold."""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Doubt = tuple[str, str]
"""What a loss makes of a column's values that is hardly meant, without a period at its end, and what to do."""
RangeCheck = Callable[[float, float, Mapping[str, Any]], Doubt | None]
"""`check(lowest, highest, hyperparameters)`, given the range of a whole dataset's values."""

LARGEST = 1e15
"""The largest size of a number. Losses take the difference of two, square it, and scale it by hyperparameters, and
batches add numbers up: float32 holds all of that for numbers up to here, and ends at 3.4e38."""
WITHIN_LARGEST = f"from {-LARGEST:g} to {LARGEST:g}"
"""The bound that a larger number breaks."""


def as_float32(value: float) -> float:
    """Return a number as batches hold it: infinite if float32 has none so large, and 0 if none so small."""
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except (OverflowError, struct.error):  # the latter of a whole number beyond float64
        return math.inf if value > 0 else -math.inf


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
        doubts: what is said of a dataset whose values turn off or reverse the loss, or a part of it.
    """

    help: str
    ge: float | None = None
    le: float | None = None
    gt: float | None = None
    gt_zero_with: tuple[str, str] | None = None
    per_token: Literal["chosen", "rejected"] | None = None
    doubts: tuple[RangeCheck, ...] = ()

    def broken_bound(self, value: float) -> str | None:
        """Return the first bound that `value` breaks, such as `">= 0"`, or None."""
        held = as_float32(value)
        if not math.isfinite(held):
            return "finite" if value != value or abs(value) == math.inf else "finite in float32"
        if self.gt is not None and min(value, held) <= self.gt:
            return f"> {self.gt:g}"
        if self.ge is not None and value < self.ge:
            return f">= {self.ge:g}"
        if self.le is not None and value > self.le:
            return f"<= {self.le:g}"
        return None if abs(value) <= LARGEST else WITHIN_LARGEST

    def under(self, hyper: Mapping[str, Any]) -> Column:
        """Return what the column may hold in a run with these hyperparameters."""
        name, value = self.gt_zero_with or ("", None)
        gt = 0.0 if value is not None and hyper.get(name) == value else self.gt
        doubts = tuple(functools.partial(_with_hyper, check, hyper) for check in self.doubts)
        return replace(self, gt=gt, doubts=doubts)

    def joined(self, other: Column) -> Column:
        """Return what the column may hold where two losses read it."""
        bounds = {name: _stricter(max, getattr(self, name), getattr(other, name)) for name in ("ge", "gt")}
        return replace(self, **bounds, le=_stricter(min, self.le, other.le), doubts=self.doubts + other.doubts)

    def doubts_of(self, lowest: float, highest: float) -> list[Doubt]:
        """Return what is said of values from `lowest` to `highest`, of a column that `under` returned."""
        found = (check(lowest, highest, {}) for check in self.doubts)
        return [*dict.fromkeys(doubt for doubt in found if doubt is not None)]


def _with_hyper(check: RangeCheck, hyper: Mapping[str, Any], lowest: float, highest: float, _: Any) -> Doubt | None:
    return check(lowest, highest, hyper)


def _stricter(choose: Callable[[list[float]], float], *bounds: float | None) -> float | None:
    given = [bound for bound in bounds if bound is not None]
    return choose(given) if given else None


SCORE_COLUMNS = {
    "score_chosen": Column("Score of the chosen side, such as a reward model's."),
    "score_rejected": Column("Score of the rejected side, on the same scale."),
}
COLUMNS_OF_SCORES = (*SCORE_COLUMNS, "margin")
"""The columns of pairs that the scores of lists fill."""


def _without_preference(lowest: float, highest: float, _: Mapping[str, Any]) -> Doubt | None:
    if lowest == highest == 0.5:
        return "p_chosen is 0.5 in every row, so neither side is preferred", "Give the probabilities of a judge."
    if highest < 0.5:
        remedy = "If the column holds the probability of the rejected side, give 1 minus it."
        return f"p_chosen is at most {highest:g}, so the rejected side is preferred in every row", remedy
    return None


P_CHOSEN_COLUMN = {
    "p_chosen": Column("Probability that the chosen side is better.", ge=0, le=1, doubts=(_without_preference,))
}
