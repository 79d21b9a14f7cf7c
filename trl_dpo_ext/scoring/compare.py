"""Compare two policies on the same rows: a paired test of their accuracies."""

from __future__ import annotations

from typing import Any

import numpy as np

from .blocks import accuracy
from .measures import Floats, hits

RESAMPLES = 10_000
_EDGES = (0.025, 0.975)


def compare(first: Floats, second: Floats, seed: int = 0) -> dict[str, Any]:
    """Compare the accuracies of two policies by a paired bootstrap.

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
        return {**found, "difference": None, "interval": None, "resamples": RESAMPLES}
    values, counts = np.unique(hits(second) - hits(first), return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(first), counts / len(first), RESAMPLES)
    means = np.sort(drawn @ values / len(first))
    interval = np.quantile(means, _EDGES, method="inverted_cdf").tolist()
    difference = found["second"]["accuracy"] - found["first"]["accuracy"]
    return {**found, "difference": difference, "interval": interval, "resamples": RESAMPLES}
