"""Statistics of scored pairs in plain Python, from their definitions; it imports neither numpy nor this package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Pair = dict[str, Any]
"""`policy_chosen`, `policy_rejected`, `ref_chosen`, `ref_rejected`: sums of log-probs; `n_chosen`, `n_rejected`;
`status`; `gap` of two score columns or None."""
Z = 1.959963984540054


def mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def rewards(pair: Pair, beta: float) -> tuple[float, float]:
    return tuple(beta * (pair[f"policy_{side}"] - pair[f"ref_{side}"]) for side in ("chosen", "rejected"))


def margin(pair: Pair, beta: float) -> float:
    chosen, rejected = rewards(pair, beta)
    return 0.0 if pair["status"] == "identical" else chosen - rejected


def hit(value: float) -> float:
    return 1.0 if value > 0 else 0.5 if value == 0 else 0.0


def wilson(successes: float, n: int) -> list[float]:
    """The two shares x with (p - x)^2 = z^2 x (1 - x) / n, as the roots of a x^2 + b x + c."""
    p = successes / n
    a, b, c = 1 + Z * Z / n, -(2 * p + Z * Z / n), p * p
    root = math.sqrt(max(b * b - 4 * a * c, 0.0))
    return [(-b - root) / (2 * a), (-b + root) / (2 * a)]


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value with at least this share of the values at or below it."""
    ordered = sorted(values)
    return next(value for at, value in enumerate(ordered, 1) if at >= share * len(ordered) - 1e-9)


def correlation(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    if len(xs) < 2:
        return None
    x, y = mean(xs), mean(ys)
    top = math.fsum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True))
    bottom = math.sqrt(math.fsum((a - x) ** 2 for a in xs) * math.fsum((b - y) ** 2 for b in ys))
    return top / bottom if bottom else None


def ranks(values: Sequence[float]) -> list[float]:
    """Average ranks: half of those that are equal stand before."""
    return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]


def nll(us: Sequence[float], beta: float) -> float:
    return math.fsum(
        -beta * u + math.log1p(math.exp(beta * u)) if u * beta < 30 else math.exp(-beta * u) for u in us
    ) / len(us)


def best_beta(us: Sequence[float]) -> float | None:
    """Where the derivative of the negative log-likelihood, -mean(u sigma(-beta u)), is zero, by bisection."""
    if not us or mean([hit(u) for u in us]) <= 0.5 or min(us) >= 0 or math.fsum(us) <= 0:
        return None

    def slope(beta: float) -> float:
        return -math.fsum(u * sigma(-beta * u) for u in us)

    low, high = 0.0, 1.0
    while slope(high) < 0:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return (low + high) / 2


def calibration(margins: Sequence[float], beta: float) -> dict[str, Any]:
    bins: list[list[tuple[float, float]]] = [[] for _ in range(10)]
    for value in margins:
        confidence = sigma(abs(value))
        bins[min(9, int((confidence - 0.5) / 0.05))].append((confidence, hit(value)))
    n = len(margins)
    means = [(mean([c for c, _ in part]), mean([h for _, h in part])) for part in bins]
    return {
        "counts": [len(part) for part in bins],
        "confidence": [confidence for confidence, _ in means],
        "hit_rate": [rate for _, rate in means],
        "ece": math.fsum(len(part) / n * abs(h - c) for part, (c, h) in zip(bins, means, strict=True) if part),
        "nll": nll(margins, 1.0),
        "best_beta": best_beta([value / beta for value in margins]),
    }


def length(pairs: Sequence[Pair], margins: Sequence[float]) -> dict[str, Any]:
    differences = [pair["n_chosen"] - pair["n_rejected"] for pair in pairs]
    longer = [m for m, d in zip(margins, differences, strict=True) if d > 0]
    shorter = [m for m, d in zip(margins, differences, strict=True) if d < 0]
    wins = mean([hit(d) for d in differences])
    found: dict[str, Any] = {
        "longer_wins": wins,
        "shorter_wins": 1 - wins,
        "pearson": correlation(margins, differences),
    }
    found["accuracy_length_balanced"] = found["accuracy_length_adjusted"] = found["slope"] = None
    if len(longer) >= 10 and len(shorter) >= 10:
        found["accuracy_length_balanced"] = (mean([*map(hit, longer)]) + mean([*map(hit, shorter)])) / 2
        slope = math.fsum(m * d for m, d in zip(margins, differences, strict=True)) / math.fsum(
            d * d for d in differences
        )
        found["slope"] = slope
        found["accuracy_length_adjusted"] = mean(
            [hit(m - slope * d) for m, d in zip(margins, differences, strict=True)]
        )
    return found


def free(pair: Pair, kind: str, whose: str) -> float:
    """Difference of the sides' log-probs without the other model."""
    if pair["status"] == "identical":
        return 0.0
    scores = [pair[f"{whose}_{side}"] / (pair[f"n_{side}"] if kind == "mean" else 1) for side in ("chosen", "rejected")]
    return scores[0] - scores[1]


def score_gaps(pairs: Sequence[Pair], margins: Sequence[float]) -> dict[str, Any]:
    known = [(pair["gap"], value) for pair, value in zip(pairs, margins, strict=True) if pair["gap"] is not None]
    gaps, values = [gap for gap, _ in known], [value for _, value in known]
    edges = [quantile(gaps, decile / 10) for decile in range(1, 10)]
    parts: dict[int, list[tuple[float, float]]] = {}
    for gap, value in known:
        parts.setdefault(sum(edge < gap for edge in edges), []).append((gap, value))
    return {
        "n": len(known),
        "pearson": correlation(values, gaps),
        "spearman": correlation(ranks(values), ranks(gaps)),
        "deciles": [
            [min(g for g, _ in part), max(g for g, _ in part), len(part), mean([value for _, value in part])]
            for _, part in sorted(parts.items())
        ],
    }


def statistics(pairs: Sequence[Pair], beta: float) -> dict[str, Any]:
    """All statistics of the pairs that have log-probs."""
    used = [pair for pair in pairs if pair["status"] not in ("dropped", "nonfinite")]
    margins = [margin(pair, beta) for pair in used]
    n, wins = len(used), math.fsum(map(hit, margins))
    average = mean(margins)
    return {
        "n": n,
        "accuracy": wins / n,
        "interval": wilson(wins, n),
        "strict": sum(value > 0 for value in margins) / n,
        "ties": sum(value == 0 for value in margins),
        "margin_mean": average,
        "margin_std": math.sqrt(math.fsum((value - average) ** 2 for value in margins) / (n - 1)),
        "margin_quantiles": [quantile(margins, share) for share in (0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1)],
        "rewards": [mean([rewards(pair, beta)[at] for pair in used]) for at in (0, 1)],
        "margin_per_token": mean(
            [
                beta * (pair["policy_chosen"] - pair["ref_chosen"]) / pair["n_chosen"]
                - beta * (pair["policy_rejected"] - pair["ref_rejected"]) / pair["n_rejected"]
                for pair in used
            ]
        ),
        "logps_per_token": [
            mean([pair[f"{whose}_{side}"] / pair[f"n_{side}"] for pair in used])
            for side in ("chosen", "rejected")
            for whose in ("ref", "policy")
        ],
        "free": {
            f"{whose}_{kind}": mean([hit(free(pair, kind, whose)) for pair in used])
            for whose in ("policy", "ref")
            for kind in ("sum", "mean")
        },
        "calibration": calibration(margins, beta),
        "length": length(used, margins),
        "scores": score_gaps(used, margins),
    }
