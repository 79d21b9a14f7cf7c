"""What the runs' records say: means and intervals over seeds, and how far a loss is above DPO's own curve."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from .records import Record

T_95 = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Two-sided quantiles of Student's t by degrees of freedom; the last one stands for all larger ones."""
BASELINE = "sigmoid"


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds."""

    mean: float
    half: float
    """Half of its 95 % interval; NaN for one seed."""
    seeds: int

    @property
    def differs(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.half < abs(self.mean)

    @property
    def p(self) -> float:
        """Probability of a mean at least this far from 0 by chance; NaN for one seed.

        >>> round(estimate([1.0, 2.0, 3.0]).p, 4)
        0.0742
        """
        if not self.half > 0:
            return math.nan
        return _p_of_t(_quantile(self.seeds) * abs(self.mean) / self.half, self.seeds - 1)

    def text(self, digits: int, sign: bool = False) -> str:
        """The mean and half the interval."""
        shown = f"{self.mean:{'+' if sign else ''}.{digits}f}"
        return shown if math.isnan(self.half) else f"{shown} ± {self.half:.{digits}f}"


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean with its interval by Student's t.

    >>> estimate([1.0, 2.0, 3.0])
    Estimate(mean=2.0, half=2.4843..., seeds=3)
    """
    count = len(values)
    half = math.nan
    if count > 1:
        half = _quantile(count) * statistics.stdev(values) / math.sqrt(count)
    return Estimate(statistics.fmean(values), half, count)


def _quantile(seeds: int) -> float:
    return T_95[min(seeds - 1, len(T_95) - 1)]


def _p_of_t(t: float, freedom: int) -> float:
    """Two-sided p of Student's t (Abramowitz and Stegun, 26.7.3 and 26.7.4).

    >>> [round(_p_of_t(T_95[freedom], freedom), 4) for freedom in (1, 2, 3, 4, 9)]
    [0.05, 0.05, 0.05, 0.05, 0.05]
    """
    angle, odd = math.atan(t / math.sqrt(freedom)), freedom % 2
    term, total = 1.0, 0.0
    for power in range(1 + odd, freedom, 2):
        total += term * math.cos(angle) ** (power - 1)
        term *= power / (power + 1)
    inside = math.sin(angle) * total
    return 1 - (2 / math.pi * (angle + inside) if odd else inside)


def holm(found: Sequence[float]) -> list[float]:
    """Correct p-values for their number, by Holm's method, in the same order.

    >>> [round(value, 4) for value in holm([0.03, 0.01, 0.5])]
    [0.06, 0.03, 0.5]
    """
    corrected, least = [0.0] * len(found), 0.0
    for rank, place in enumerate(sorted(range(len(found)), key=lambda place: found[place])):
        least = max(least, min(1.0, (len(found) - rank) * found[place]))
        corrected[place] = least
    return corrected


def best_of(scores: Sequence[float], n: int) -> float:
    """Expected best of `n` of these scores, drawn without replacement.

    >>> best_of([0.0, 1.0, 2.0], 2)  # (1 + 2 + 2) / 3
    1.6666666666666667
    """
    ordered = sorted(scores)
    return sum(score * math.comb(rank, n - 1) for rank, score in enumerate(ordered)) / math.comb(len(ordered), n)


def best_of_n(pool: Sequence[Sequence[float]]) -> list[dict[str, float]]:
    """Expected reward of best-of-n over all prefixes, and log n - (n - 1) / n, a bound of its divergence from above."""
    points = []
    for n in (2**power for power in range(len(pool[0]).bit_length())):
        reward = statistics.fmean(best_of(scores, n) for scores in pool)
        points.append({"n": n, "kl": math.log(n) - (n - 1) / n, "reward": reward})
    return points


def by_setting(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The runs of each setting, one for each seed."""
    found: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if "points" in record:
            found[record["setting"]].append(record)
    return {setting: sorted(runs, key=lambda run: run["seed"]) for setting, runs in found.items()}


class Curve:
    """Reward by divergence of one seed's runs of the baseline, piecewise linear, from the reference on."""

    def __init__(self, start: float, points: Sequence[tuple[float, float]]) -> None:
        self._points = sorted([(0.0, start), *points])

    def at(self, kl: float) -> float | None:
        """Return the curve's reward, or None beyond its largest divergence."""
        for (left, low), (right, high) in zip(self._points, self._points[1:], strict=False):
            if left <= kl <= right:
                return low + (high - low) * ((kl - left) / (right - left) if right > left else 0.0)
        return None


def curves(records: Sequence[Record], start: float, flips: float = 0.0) -> dict[int, Curve]:
    """The baseline's curve for each seed, from all points of its runs on labels of which this share is flipped."""
    points: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for record in records:
        if (record.get("loss"), record.get("flips"), record.get("reference")) == (BASELINE, flips, "shared store"):
            points[record["seed"]] += [(point["kl"], point["reward"]) for point in record["points"]]
    return {seed: Curve(start, found) for seed, found in points.items()}


def above(runs: Sequence[Record], baseline: dict[int, Curve]) -> Estimate | None:
    """Reward above the baseline's curve of the same seed at the same divergence; None where no curve reaches."""
    found = [value for run in runs if (value := _above_one(run, baseline)) is not None]
    return estimate(found) if found else None


def _above_one(run: Record, baseline: dict[int, Curve]) -> float | None:
    last, curve = run["points"][-1], baseline.get(run["seed"])
    expected = curve.at(last["kl"]) if curve else None
    return None if expected is None else last["reward"] - expected


def above_at_all_strengths(runs: Sequence[Record], baseline: dict[int, Curve]) -> Estimate | None:
    """Mean over a loss's strengths of the reward above the baseline's curve, with the interval over seeds.

    Strengths that the curve of a seed does not reach are left out of that seed's mean.
    """
    found: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        if (value := _above_one(run, baseline)) is not None:
            found[run["seed"]].append(value)
    return estimate([statistics.fmean(values) for values in found.values()]) if found else None


def paired(runs: Sequence[Record], others: Sequence[Record], name: str) -> Estimate | None:
    """How much more of a measurement runs have at the end than others of the same seeds; None without such others."""
    theirs = {run["seed"]: run["points"][-1][name] for run in others}
    found = [run["points"][-1][name] - theirs[run["seed"]] for run in runs if run["seed"] in theirs]
    return estimate(found) if found else None
