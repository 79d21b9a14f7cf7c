"""Rewards and margins of pairs: what statistics, expressions and written columns are made of."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .pair_scores import PairScores, SideScores

Floats = npt.NDArray[np.float64]
Normalize = Literal["sum", "mean"]
ReferenceFree = Literal["sum", "mean", "norm"]


@dataclass(frozen=True)
class Measures:
    """Rewards of all rows, in float64; NaN in rows without log-probs.

    Attributes:
        reward_chosen: (rows,), beta * log-ratio of the chosen side (or what `normalize` and `reference_free` say).
        reward_rejected: (rows,), of the rejected side.
        margin: (rows,), their difference; exactly 0 for identical sides.
        p_chosen: (rows,), the logistic function of the margin: the probability that the chosen side is better.
        correct: (rows,), 1 for a positive margin, 1/2 for none, 0 for a negative one.
        margin_per_token: (rows,), difference of both rewards, each divided by the scored tokens of its side.
    """

    reward_chosen: Floats
    reward_rejected: Floats
    margin: Floats
    p_chosen: Floats
    correct: Floats
    margin_per_token: Floats


def measure(scores: PairScores, normalize: Normalize = "sum", reference_free: ReferenceFree | None = None) -> Measures:
    """Compute the rewards of all rows.

    Args:
        scores: of the rows.
        normalize: `mean` divides each log-ratio by the scored tokens of its side.
        reference_free: reward without a reference: beta times the `sum`, `mean` or negative `norm` of log-probs.
    """
    values = [score_of(side, normalize, reference_free) for side in (scores.chosen, scores.rejected)]
    with np.errstate(invalid="ignore", over="ignore"):
        chosen, rejected = (np.where(scores.scored, scores.beta * value, np.nan) for value in values)
        margin = np.where(scores.scored & (scores.status == "identical"), 0.0, chosen - rejected)
        is_mean = normalize == "mean" if reference_free is None else reference_free == "mean"
        counts = (1, 1) if is_mean else (_counts(scores.chosen), _counts(scores.rejected))
        per_token = chosen / counts[0] - rejected / counts[1]
        return Measures(chosen, rejected, margin, sigmoid(margin), hits(margin), per_token)


def score_of(side: SideScores, normalize: Normalize = "sum", reference_free: ReferenceFree | None = None) -> Floats:
    """Return the reward of one side without its scale beta, (rows,); the arguments are those of `measure`."""
    return free_score(side, reference_free) if reference_free else _log_ratio(side, normalize == "mean")


def free_score(side: SideScores, kind: ReferenceFree, of_reference: bool = False) -> Floats:
    """Return the score of one side without a reference: sum, mean per token, or negative norm of log-probs, (rows,).

    Source of `norm` and `mean`: allenai/reward-bench, `rewardbench/dpo.py`.
    """
    if kind == "norm":
        return -(side.ref_norm if of_reference else side.policy_norm).astype(np.float64)
    total = (side.ref if of_reference else side.policy).astype(np.float64)
    return total / _counts(side) if kind == "mean" else total


def swapped(scores: PairScores, where: npt.NDArray[np.bool_]) -> PairScores:
    """Exchange the sides of marked rows; the columns stay as they are."""

    def mixed(side: SideScores, other: SideScores) -> SideScores:
        names = [field.name for field in dataclasses.fields(SideScores)]
        return SideScores(**{name: np.where(where, getattr(other, name), getattr(side, name)) for name in names})

    chosen, rejected = mixed(scores.chosen, scores.rejected), mixed(scores.rejected, scores.chosen)
    return dataclasses.replace(scores, chosen=chosen, rejected=rejected)


def sigmoid(values: Any) -> Any:
    """Return the logistic function without overflow."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(values, np.float64)))


def hits(margins: Floats) -> Floats:
    """Return 1 for a positive margin, 1/2 for a tie, 0 for a negative one, NaN for NaN."""
    return (np.sign(margins) + 1) / 2


def _log_ratio(side: SideScores, mean: bool) -> Floats:
    ratio = side.policy.astype(np.float64) - side.ref
    return ratio / _counts(side) if mean else ratio


def _counts(side: SideScores) -> Floats:
    """Scored tokens; NaN instead of 0."""
    return np.where(side.tokens > 0, side.tokens, np.nan)
