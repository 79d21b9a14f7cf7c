"""Statistics of scored pairs, one block of the JSON object each. Rows without log-probs are left out of all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from ..statistics import Numbers, length_bias, pearson, quantiles, spearman, wilson
from .measures import Floats, ReferenceFree, free_score, hits
from .pair_scores import PairScores, SideScores, Status

_FEWEST = 10
"""Pairs with a longer and with a shorter chosen answer that a comparison at equal length needs, each."""
_BARS = 40
_DECILES = 10
_NAMED_ROWS = 20


def row_counts(scores: PairScores) -> dict[str, Any]:
    """Count rows by status, and name the first ones whose log-probs are not finite."""
    bad = scores.rows[scores.status == "nonfinite"]
    return {
        "loaded": len(scores.rows),
        "scored": int(scores.scored.sum()),
        **{status: int((scores.status == status).sum()) for status in get_args(Status)},
        "nonfinite_rows": bad[:_NAMED_ROWS].tolist(),
    }


def accuracy(margins: Floats) -> dict[str, Any]:
    """Return how often the chosen side has the larger reward.

    Returns:
        `accuracy` and its Wilson `interval`, ties counting one half; `strict`, ties being wrong; `n`, `right`, `ties`.
    """
    number, ties, right = len(margins), int((margins == 0).sum()), int((margins > 0).sum())
    total = right + ties / 2
    return {
        "n": number,
        "accuracy": total / number if number else None,
        "interval": wilson(total, number),
        "strict": right / number if number else None,
        "right": right,
        "ties": ties,
    }


def distribution(values: Floats) -> dict[str, Any]:
    """Describe values: mean, standard deviation (of a sample), quantiles."""
    return {
        "mean": float(values.mean()) if len(values) else None,
        "std": float(values.std(ddof=1)) if len(values) > 1 else None,
        **quantiles(values),
    }


def least(margins: Floats, rows: npt.NDArray[np.int64]) -> dict[str, Any] | None:
    """Return the smallest margin and its row, the first of several."""
    if not len(margins):
        return None
    at = int(margins.argmin())
    return {"row": int(rows[at]), "value": float(margins[at])}


def histogram(margins: Floats, differences: Numbers, most: int = _BARS) -> dict[str, Any]:
    """Count margins in bins whose edges are multiples of 1, 2 or 5 times a power of ten, each without its upper edge.

    Args:
        margins: (rows,).
        differences: tokens of the chosen side minus those of the rejected one, (rows,).
        most: bins, at least 2: zero is always an edge.

    Returns:
        `edges`; `counts` of all; and of the rows whose chosen side is longer, shorter, or as long.
    """
    if not len(margins):
        return {"edges": [], "counts": [], "longer": [], "shorter": [], "equal": []}
    low, high = float(margins.min()), float(margins.max())
    width = next(each for each in round_widths((high - low) / most) if _bins(low, high, each) <= most)
    first, number = math.floor(low / width), _bins(low, high, width)
    # counted from the left edge, so that a width like 0.1 gives edges like 0.3 and not 0.30000000000000004
    edges = [float(f"{(first + at) * width:.12g}") for at in range(number + 1)]
    place = np.clip(np.searchsorted(edges, margins, side="right") - 1, 0, number - 1)

    def count(mask: Any) -> list[int]:
        return np.bincount(place[mask], minlength=number).tolist()

    return {
        "edges": edges,
        "counts": count(slice(None)),
        "longer": count(differences > 0),
        "shorter": count(differences < 0),
        "equal": count(differences == 0),
    }


def round_widths(least_width: float) -> Any:
    """Yield 1, 2 and 5 times powers of ten in rising order, from about a width on."""
    power = math.floor(math.log10(least_width)) if least_width > 0 else 0
    while True:
        yield from (float(f"{digit}e{power}") for digit in (1, 2, 5))
        power += 1


def _bins(low: float, high: float, width: float) -> int:
    return math.floor(high / width) - math.floor(low / width) + 1


def per_token(side: SideScores, rows: Numbers) -> dict[str, float | None]:
    """Return the mean over rows of a side's log-prob per scored token, under reference and policy."""
    counts = side.tokens[rows]
    means = {}
    for name, values in (("reference", side.ref), ("policy", side.policy)):
        found = values[rows].astype(np.float64)[counts > 0] / counts[counts > 0]
        means[name] = float(found.mean()) if len(found) and np.isfinite(found).all() else None
    return means


def without_reference(scores: PairScores, rows: Numbers) -> dict[str, Any]:
    """Return the accuracies of policy and reference by `sum`, `mean` and negative `norm` of log-probs.

    A part is None where its log-probs were not computed.
    """

    def found(kind: ReferenceFree, of_reference: bool) -> dict[str, Any] | None:
        sides = (free_score(side, kind, of_reference)[rows] for side in (scores.chosen, scores.rejected))
        differences = np.subtract(*sides)
        if not np.isfinite(differences).all():
            return None
        return accuracy(np.where(scores.status[rows] == "identical", 0.0, differences))

    kinds = get_args(ReferenceFree)
    parts = {name: {kind: found(kind, name == "reference") for kind in kinds} for name in ("policy", "reference")}
    if np.isnan(scores.chosen.ref).all():
        parts["reference"] = dict.fromkeys(kinds)
    return parts


def length(margins: Floats, chosen: Numbers, rejected: Numbers) -> dict[str, Any]:
    """Say how much of the accuracy the answers' lengths could explain.

    Args:
        margins: (rows,).
        chosen: scored tokens of the chosen side, (rows,).
        rejected: of the rejected side, (rows,).

    Returns:
        `length_bias` of the rows, its accuracy as `longer_wins` and `shorter_wins` (equal lengths count one half) with
        their intervals; `pearson` of margin and length difference; and with at least ten pairs in which the chosen
        side is longer and ten in which it is shorter (else None): `accuracy_length_balanced`, the mean of the
        accuracies on both, and `accuracy_length_adjusted`, that of margin - slope * difference, with the `slope` of a
        line through the origin, since exchanging the sides negates both. The latter is not AlpacaEval's
        length-controlled win rate, which is fitted to a judge's preferences.
    """
    difference = chosen.astype(np.float64) - rejected
    bias = length_bias(chosen, rejected)
    longer, interval = bias.pop("accuracy"), bias.pop("interval")
    found: dict[str, Any] = {**bias, "longer_wins": longer, "longer_wins_interval": interval}
    found["shorter_wins"] = None if longer is None else 1 - longer
    found["shorter_wins_interval"] = None if interval is None else [1 - edge for edge in reversed(interval)]
    found["pearson"] = pearson(margins, difference) if len(margins) else None
    found |= dict.fromkeys(("accuracy_length_balanced", "accuracy_length_adjusted", "slope"))
    if min(bias["longer"], bias["shorter"]) >= _FEWEST:
        parts = [float(hits(margins[difference > 0]).mean()), float(hits(margins[difference < 0]).mean())]
        slope = float((margins * difference).sum() / (difference * difference).sum())
        adjusted = float(hits(margins - slope * difference).mean())
        found |= {"accuracy_length_balanced": sum(parts) / 2, "accuracy_length_adjusted": adjusted, "slope": slope}
    return found


def score_gaps(margins: Floats, gaps: Floats, names: Sequence[str]) -> dict[str, Any]:
    """Compare margins with the differences of two score columns; rows with a null are left out.

    Returns:
        `columns`; `n`; `pearson`; `spearman`; `deciles` of the gap with `low`, `high`, `n` and `mean_margin`, of which
        equal ones are one.
    """
    known = np.isfinite(gaps)
    margins, gaps = margins[known], gaps[known]
    found = {"columns": list(names), "n": len(gaps), "pearson": None, "spearman": None, "deciles": []}
    if not len(gaps):
        return found
    edges = np.quantile(gaps, np.arange(1, _DECILES) / _DECILES, method="inverted_cdf")
    place = np.searchsorted(edges, gaps, side="left")
    found |= {"pearson": pearson(margins, gaps), "spearman": spearman(margins, gaps)}
    found["deciles"] = [
        {
            "low": float(gaps[place == at].min()),
            "high": float(gaps[place == at].max()),
            "n": int((place == at).sum()),
            "mean_margin": float(margins[place == at].mean()),
        }
        for at in np.unique(place)
    ]
    return found
