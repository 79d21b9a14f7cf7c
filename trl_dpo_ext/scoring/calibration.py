"""Calibration of margins: whether a reward that says 80 % is right in 80 % of the pairs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .measures import Floats, hits, sigmoid

_BINS = 10
_GOLDEN = (math.sqrt(5) - 1) / 2


def calibration(margins: Floats, beta: float) -> dict[str, Any]:
    """Compare the confidence of margins with how often they are right.

    The confidence of a pair is the logistic function of its absolute margin; ties are half right.

    Args:
        margins: of the scored rows, (rows,), in units of the logistic function.
        beta: that the margins are multiplied by.

    Returns:
        `bins` of equal width over [0.5, 1] with `count`, `confidence` and `hit_rate` (None where empty); `ece`, the
        mean distance of both, weighted by count; `nll`, the mean of -log sigmoid(margin); `best_beta`, which would
        minimize it, None where there is no such value or the accuracy does not exceed one half.
    """
    confidence, hit = sigmoid(np.abs(margins)), hits(margins)
    place = np.clip(((confidence - 0.5) * 2 * _BINS).astype(int), 0, _BINS - 1)
    counts = np.bincount(place, minlength=_BINS)
    means = [
        np.bincount(place, weights=values, minlength=_BINS) / np.maximum(counts, 1) for values in (confidence, hit)
    ]
    number = len(margins)
    return {
        "bins": [
            {
                "low": 0.5 + at / (2 * _BINS),
                "high": 0.5 + (at + 1) / (2 * _BINS),
                "count": int(count),
                "confidence": float(means[0][at]) if count else None,
                "hit_rate": float(means[1][at]) if count else None,
            }
            for at, count in enumerate(counts)
        ],
        "ece": float((counts * np.abs(means[1] - means[0])).sum() / number) if number else None,
        "nll": nll(margins) if number else None,
        "best_beta": best_beta(margins, beta),
    }


def nll(margins: Floats) -> float:
    """Return the mean of -log sigmoid(margin)."""
    return float(np.logaddexp(0.0, -margins).mean())


def best_beta(margins: Floats, beta: float) -> float | None:
    """Return the scale of the reward that minimizes the negative log-likelihood, by golden section on its logarithm.

    None where the accuracy is at most one half, or no finite positive scale is best: no margin is negative, or their
    mean is not positive.
    """
    if not len(margins) or beta == 0 or not hits(margins).mean() > 0.5 or not margins.min() < 0 < margins.mean():
        return None
    scale = float(np.abs(margins).max())
    units = margins / scale  # the likelihood's scale is sought for these
    # The derivative is at most scale * mean(u^2) / 4 - mean(u) / 2, hence negative left of `low`. Right of `high` the
    # positive margins contribute less than the smallest value, and the negative ones at least half of it.
    low = math.log(2 * float(units.mean()) / float((units * units).mean()))
    smallest = float(np.abs(units[units != 0]).min())
    high = max(low + 1, math.log((math.log(len(units)) + 5) / smallest))
    return math.exp(_golden_section(lambda at: nll(math.exp(at) * units), low, high)) * beta / scale


def _golden_section(function: Any, low: float, high: float) -> float:
    """Return where a function with one minimum has it."""
    inner = [high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)]
    values = [function(at) for at in inner]
    while high - low > 1e-10:
        if values[0] <= values[1]:
            high = inner[1]
            inner = [high - _GOLDEN * (high - low), inner[0]]
            values = [function(inner[0]), values[0]]
        else:
            low = inner[0]
            inner = [inner[1], low + _GOLDEN * (high - low)]
            values = [values[1], function(inner[1])]
    return (low + high) / 2
