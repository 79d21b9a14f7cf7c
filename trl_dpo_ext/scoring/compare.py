"""Compare two policies on the same rows: a paired test of their accuracies and margins."""

from __future__ import annotations

from typing import Any

import numpy as np

from .blocks import accuracy
from .measures import Floats, hits

RESAMPLES = 10_000
_EDGES = (0.025, 0.975)
_DRAWS_AT_ONCE = 4_000_000


def compare(first: Floats, second: Floats, seed: int = 0) -> dict[str, Any]:
    """Compare the accuracies and margins of two policies by a paired bootstrap.

    A resample draws rows with replacement. As the difference of a row has five values at most, drawing how often each
    value comes (a multinomial) is the same, whatever the number of rows.

    Args:
        first: margins of the first policy, (rows,); NaN in rows without log-probs.
        second: of the second one, for the same rows.
        seed: of the random numbers.

    Returns:
        `n`, rows that both have scored; `first` and `second`, see `blocks.accuracy`; `difference` of the accuracies,
        second minus first, with its 95 % `interval`; `first_only` and `second_only`, rows that one alone has right.
    """
    both = np.isfinite(first) & np.isfinite(second)
    first, second = first[both], second[both]
    found: dict[str, Any] = {"n": len(first), "first": accuracy(first), "second": accuracy(second)}
    found |= {"first_only": int(((first > 0) & (second <= 0)).sum())}
    found |= {"second_only": int(((second > 0) & (first <= 0)).sum())}
    if not len(first):
        return {**found, "difference": None, "interval": None, "margin": None, "resamples": RESAMPLES}
    values, counts = np.unique(hits(second) - hits(first), return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(first), counts / len(first), RESAMPLES)
    means = np.sort(drawn @ values / len(first))
    interval = np.quantile(means, _EDGES, method="inverted_cdf").tolist()
    difference = found["second"]["accuracy"] - found["first"]["accuracy"]
    margin = {"first": float(first.mean()), "second": float(second.mean()), **_mean_difference(second - first, seed)}
    return {**found, "difference": difference, "interval": interval, "margin": margin, "resamples": RESAMPLES}


def _mean_difference(differences: Floats, seed: int) -> dict[str, Any]:
    """The mean of paired differences, and its interval from resampled rows."""
    generator, number = np.random.default_rng(seed), len(differences)
    at_once = max(1, _DRAWS_AT_ONCE // number)
    means = [
        differences[generator.integers(number, size=(min(at_once, RESAMPLES - start), number))].mean(axis=1)
        for start in range(0, RESAMPLES, at_once)
    ]
    interval = np.quantile(np.concatenate(means), _EDGES, method="inverted_cdf").tolist()
    return {"difference": float(differences.mean()), "interval": interval}
