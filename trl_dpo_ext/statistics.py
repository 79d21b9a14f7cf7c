"""Statistics of arrays: quantiles, histograms, intervals, correlations; plain Python numbers, None for nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[Any]
QUANTILES = {"min": 0.0, "p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99, "max": 1.0}
_Z = 1.959963984540054  # two-sided 95 %


def quantiles(values: Numbers) -> dict[str, int | float | None]:
    """Return the quantiles of `QUANTILES`, each the smallest value with at least that share at or below it."""
    if not len(values):
        return dict.fromkeys(QUANTILES)
    found = np.quantile(values, [*QUANTILES.values()], method="inverted_cdf")
    return dict(zip(QUANTILES, found.tolist(), strict=True))


def histogram(values: Numbers) -> dict[str, list[int]]:
    """Count values between powers of two: edges 0, 1, 2, 4, ..., each bin without its upper edge.

    >>> histogram(np.array([0, 1, 3, 4, 7]))
    {'edges': [0, 1, 2, 4, 8], 'counts': [1, 1, 1, 2]}
    """
    if not len(values):
        return {"edges": [0, 1], "counts": [0]}
    top = int(values.max())
    edges = [0, 1, *(1 << power for power in range(1, top.bit_length() + 1))]
    counts, _ = np.histogram(values, bins=[*edges[:-1], edges[-1] - 0.5])
    return {"edges": edges, "counts": counts.tolist()}


def length_summary(values: Numbers) -> dict[str, Any]:
    """Describe token counts: number, mean, quantiles, sum, histogram."""
    mean = float(values.mean()) if len(values) else None
    total = int(values.sum())
    return {"n": len(values), "mean": mean, **quantiles(values), "sum": total, "histogram": histogram(values)}


def wilson(successes: float, number: int) -> list[float] | None:
    """Return the 95 % interval of a share by Wilson; None for no data.

    Args:
        successes: may be fractional, where ties count one half.
        number: of trials.
    """
    if not number:
        return None
    share, z2 = successes / number, _Z * _Z
    center = (share + z2 / (2 * number)) / (1 + z2 / number)
    half = _Z * math.sqrt(share * (1 - share) / number + z2 / (4 * number * number)) / (1 + z2 / number)
    return [max(0.0, center - half), min(1.0, center + half)]


def pearson(left: Numbers, right: Numbers) -> float | None:
    """Return the correlation of two arrays; None where one of them does not vary."""
    if len(left) < 2:
        return None
    left, right = (_centered(values) for values in (left, right))
    scale = math.sqrt(float((left * left).sum()) * float((right * right).sum()))
    return float((left * right).sum()) / scale if scale > 0 else None


def _centered(values: Numbers) -> Numbers:
    """Values without their mean, scaled by a power of two so that no square overflows."""
    _, exponent = math.frexp(np.abs(values).max())
    scaled = np.ldexp(np.asarray(values, np.float64), -exponent)
    return scaled - scaled.mean()


def spearman(left: Numbers, right: Numbers) -> float | None:
    """Return the correlation of two arrays' ranks, ties having their average rank."""
    return pearson(_ranks(left), _ranks(right))


def _ranks(values: Numbers) -> Numbers:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    return (ends - (counts - 1) / 2)[place]


def length_bias(chosen: Numbers, rejected: Numbers) -> dict[str, Any]:
    """Describe how well the rule "the longer answer is the chosen one" does; ties count one half.

    Args:
        chosen: tokens of the chosen answers, (rows,).
        rejected: of the rejected ones, (rows,).
    """
    number = len(chosen)
    difference = chosen.astype(np.int64) - rejected
    longer, equal = int((difference > 0).sum()), int((difference == 0).sum())
    right = longer + equal / 2
    total = int(rejected.sum())
    return {
        "n": number,
        "longer": longer,
        "shorter": number - longer - equal,
        "equal": equal,
        "accuracy": right / number if number else None,
        "interval": wilson(right, number),
        "mean_difference": float(difference.mean()) if number else None,
        "median_difference": quantiles(difference)["p50"],
        "total_ratio": int(chosen.sum()) / total if total else None,
    }


def counted(values: Mapping[Any, int], most: int) -> list[list[Any]]:
    """Return the most frequent values with their counts, ties in the order of their text."""
    return [[value, count] for value, count in sorted(values.items(), key=lambda item: (-item[1], str(item[0])))[:most]]


def finite(value: Any) -> Any:
    """Return a value that JSON can hold: NaN and infinities become None, numpy's numbers plain ones."""
    if isinstance(value, Mapping):
        return {str(key): finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
