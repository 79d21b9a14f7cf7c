"""The metrics that a report follows, and what it says of each curve: first, last, best, area."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .run_data import RunData


@dataclass(frozen=True)
class Metric:
    """A metric by the name that the trainer logs it under."""

    name: str
    title: str
    unit: str = ""
    better: str = ""
    """`high` or `low` where one of them is better."""
    is_evaluated: bool = True
    """Whether evaluations log it, too, as `eval_<name>`."""
    is_log: bool = False
    y_range: tuple[float, float] | None = None
    level: tuple[float, str] | None = None
    """A horizontal line: value and word."""


ACCURACY = "rewards/accuracies"
HALF_TIES = "watched/accuracy"
"""The reward accuracy of an evaluation in which ties count one half."""
_SHARE = (-0.02, 1.02)
METRICS = (
    Metric("loss", "Loss", "mean over pairs", "low"),
    Metric(ACCURACY, "Reward accuracy", "share of pairs", "high", y_range=_SHARE, level=(0.5, "chance")),
    Metric("rewards/margins", "Reward margin", "chosen − rejected, β · nats", "high", level=(0.0, "0")),
    Metric("watch/kl_per_token", "KL to the reference", "nats per token, on samples", is_evaluated=False),
    Metric("grad_norm", "Gradient norm", "before clipping", is_evaluated=False, is_log=True),
    Metric("learning_rate", "Learning rate", is_evaluated=False),
    Metric("watch/length", "Length of samples", "tokens", is_evaluated=False),
    Metric("watch/eos_rate", "Samples that end", "share with EOS", is_evaluated=False, y_range=_SHARE),
    Metric("watch/repetition", "Repetition in samples", "share of repeated 4-grams", is_evaluated=False),
    Metric("watch/chosen_falls_in", "Chosen less likely than at the start", "share of pairs", is_evaluated=False,
           y_range=_SHARE),
)  # fmt: skip
SIDES = ("chosen", "rejected")
PER_TOKEN = "watch/{}_logp_per_token"
PER_ANSWER = "logps/{}"


def evaluation_name(evaluation_set: str, metric: str) -> str:
    """The name under which an evaluation logs a metric."""
    return f"eval_{evaluation_set}_{metric}" if evaluation_set else f"eval_{metric}"


def values_of(run: RunData) -> list[dict[str, Any]]:
    """What there is to say of each curve of a run: `metric`, `where`, `first`, `last`, `best`, `best_step`, `area`."""
    found = []
    half_ties = Metric(HALF_TIES, "Reward accuracy, ties as one half", better="high", is_evaluated=False)
    for metric in (*METRICS[:2], half_ties, *METRICS[2:], *_log_probs(run)):
        if metric.name in run.series:
            where = "training" if metric.is_evaluated else ""
            found.append({"metric": metric.title, "where": where, **summary(*run.series[metric.name], metric.better)})
        for each in run.evaluation_sets if metric.is_evaluated else ():
            series = run.series.get(evaluation_name(each, metric.name))
            if series:
                where = f"evaluation {each}".strip()
                found.append({"metric": metric.title, "where": where, **summary(*series, metric.better)})
    return found


def _log_probs(run: RunData) -> list[Metric]:
    per_token = PER_TOKEN.format("chosen") in run.series
    name, unit = (PER_TOKEN, "per token") if per_token else (PER_ANSWER, "per answer")
    return [Metric(name.format(side), f"Log-prob of {side}, {unit}", is_evaluated=not per_token) for side in SIDES]


def summary(steps: Sequence[int], values: Sequence[float], better: str = "") -> dict[str, Any]:
    """Describe a curve.

    Args:
        steps: ascending.
        values: as many; those that are not finite are left out.
        better: `high` or `low` where one of them is better.

    Returns:
        `first`, `last`, `best` and `best_step` (None unless one is better), and `area`: the area under the curve,
        divided by its length in steps, which is the mean over the steps in the metric's own unit.
    """
    known = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
    if not known:
        return dict.fromkeys(("first", "last", "best", "best_step", "area"))
    best: tuple[int | None, float | None] = (None, None)
    if better:
        best = (max if better == "high" else min)(known, key=lambda point: point[1])
    length = known[-1][0] - known[0][0]
    pieces = itertools.pairwise(known)
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pieces) / length if length else known[0][1]
    return {"first": known[0][1], "last": known[-1][1], "best": best[1], "best_step": best[0], "area": area}
