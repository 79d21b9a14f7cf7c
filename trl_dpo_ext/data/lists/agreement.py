"""How the order of rewards agrees with given scores: the best completion, Kendall's tau-b, pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[Any]
_ROWS_AT_ONCE = 1024


def best_first(rewards: Numbers) -> list[int]:
    """Return the indices of completions, the highest reward first, ties by index, NaN last.

    >>> best_first(np.array([0.5, 2.0, 0.5]))
    [1, 0, 2]
    """
    return np.argsort(-rewards, kind="stable").tolist()


def top_credit(rewards: Numbers, best: npt.NDArray[np.bool_]) -> float:
    """Return 1 if the completion with the highest reward is a best one; completions with equal rewards share it.

    Source: allenai/reward-bench, `reroll_and_score_dataset` in `rewardbench/utils.py`, where one completion is best.

    >>> top_credit(np.array([1.0, 1.0, 0.0]), np.array([True, False, False]))
    0.5
    """
    top = rewards == rewards.max()
    return float((top & best).sum() / top.sum())


@dataclass(frozen=True)
class Agreement:
    """How the rewards of one prompt's completions agree with given scores.

    Attributes:
        credit: of `top_credit`.
        place: of the best completion by reward, from 1; the first of several best ones, before equal rewards.
        pairs: counted pairs.
    """

    credit: float
    place: int
    pairs: PairCounts

    @classmethod
    def of(cls, rewards: Numbers, scores: Numbers) -> Agreement | None:
        """Compare the completions that have both; None where the scores do not order them.

        Args:
            rewards, scores: (completions,), NaN for none.
        """
        known = np.isfinite(rewards) & np.isfinite(scores)
        rewards, scores = rewards[known], scores[known]
        if not len(scores) or scores.min() == scores.max():
            return None
        best = scores == scores.max()
        place = 1 + int((rewards > rewards[best].max()).sum())
        return cls(top_credit(rewards, best), place, PairCounts.of(rewards, scores))


@dataclass(frozen=True)
class PairCounts:
    """Pairs of completions of one prompt, by the order of scores and that of rewards.

    Attributes:
        concordant: pairs that both order alike.
        discordant: pairs that they order differently.
        reward_ties: pairs that only the scores order.
        score_ties: pairs that only the rewards order.
    """

    concordant: int
    discordant: int
    reward_ties: int
    score_ties: int

    @classmethod
    def of(cls, rewards: Numbers, scores: Numbers) -> PairCounts:
        """Count pairs of one prompt; both arrays are finite, (completions,)."""
        counts = np.zeros(4, np.int64)
        for start in range(0, len(rewards), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            by_reward, by_score = (_order(values[rows, None], values[None]) for values in (rewards, scores))
            product = by_reward * by_score
            ties = (by_reward == 0) & (by_score != 0), (by_score == 0) & (by_reward != 0)
            counts += [int(each.sum()) for each in (product > 0, product < 0, *ties)]
        return cls(*(counts // 2).tolist())  # each pair was seen from both sides

    @property
    def ordered(self) -> int:
        """Number of pairs that the scores order."""
        return self.concordant + self.discordant + self.reward_ties

    @property
    def right(self) -> float:
        """Number of ordered pairs whose rewards have the same order; equal rewards count one half."""
        return self.concordant + self.reward_ties / 2

    @property
    def tau_b(self) -> float | None:
        """Kendall's tau-b; None where rewards or scores are all equal."""
        agreed = self.concordant + self.discordant
        size = math.sqrt((agreed + self.reward_ties) * (agreed + self.score_ties))
        return (self.concordant - self.discordant) / size if size else None


def _order(left: Numbers, right: Numbers) -> npt.NDArray[np.int8]:
    """1 where the left number is greater, -1 where the right one is; no difference of numbers, which may overflow."""
    return (left > right).astype(np.int8) - (left < right)
