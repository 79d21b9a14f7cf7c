"""Log-probs of pairs under a policy and a reference: what every statistic and every written column is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Status = Literal["ok", "cut", "identical", "dropped", "nonfinite"]
"""What became of a row: `cut` by max_length, sides `identical` after that, `dropped` as nothing of a side is left to
score, or `nonfinite` log-probs."""


@dataclass(frozen=True)
class SideScores:
    """One side of all rows; NaN and 0 in rows that were dropped.

    Attributes:
        policy: (rows,) float32, nats; sum of the log-probs of the scored tokens under the policy.
        ref: (rows,) float32, nats; under the reference; NaN everywhere if there is no reference.
        policy_norm: (rows,) float32, nats; Euclidean norm of the token log-probs under the policy.
        ref_norm: (rows,) float32, nats; under the reference.
        tokens: (rows,) int32; scored tokens.
    """

    policy: npt.NDArray[np.float32]
    ref: npt.NDArray[np.float32]
    policy_norm: npt.NDArray[np.float32]
    ref_norm: npt.NDArray[np.float32]
    tokens: npt.NDArray[np.int32]


@dataclass(frozen=True)
class PairScores:
    """All rows of a loaded split in their order.

    Attributes:
        rows: (rows,) int64; numbers in the loaded split, counted from 0.
        status: (rows,) of `Status`.
        chosen: scores of the preferred side.
        rejected: scores of the other side.
        beta: scale of the implicit reward.
        columns: of the loaded split, before it was converted: a dataset with the same rows.
    """

    rows: npt.NDArray[np.int64]
    status: npt.NDArray[Any]
    chosen: SideScores
    rejected: SideScores
    beta: float
    columns: Any

    @property
    def scored(self) -> npt.NDArray[np.bool_]:
        """Which rows have log-probs of both sides: neither dropped nor non-finite, (rows,)."""
        return ~np.isin(self.status, ("dropped", "nonfinite"))


def status_of(
    chosen: SideScores,
    rejected: SideScores,
    cut: npt.NDArray[np.bool_],
    same: npt.NDArray[np.bool_],
    has_reference: bool,
) -> npt.NDArray[Any]:
    """Tell what became of each row, (rows,) of `Status`; the gravest counts.

    Args:
        chosen: scores of the preferred side.
        rejected: scores of the other side.
        cut: whether tokens of a side were removed, (rows,).
        same: whether the sides are equal after that, (rows,).
        has_reference: whether the reference has scored them, too.
    """
    sides = (chosen, rejected)
    finite = [
        np.isfinite(each) for side in sides for each in ((side.policy, side.ref) if has_reference else (side.policy,))
    ]
    lost = (chosen.tokens == 0) | (rejected.tokens == 0)
    conditions = [lost, ~np.logical_and.reduce(finite), same, cut]
    return np.select(conditions, ["dropped", "nonfinite", "identical", "cut"], "ok").astype("<U9")
