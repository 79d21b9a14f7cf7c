"""The charts of a report: one for each metric, with all runs in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...pages import Curve, Level, Mark, Markup, line_chart
from ...pages.curves import MOST_POINTS
from ...statistics import wilson
from ..metrics import ACCURACY, HALF_TIES, METRICS, PER_ANSWER, PER_TOKEN, SIDES, Metric, evaluation_name

Run = Mapping[str, Any]
Place = Callable[[Sequence[float]], Sequence[float]]
AXES = {"step": "step", "samples": "samples seen", "epoch": "epoch"}
_BANDS = " Bands are 95 % intervals (Wilson)."
_ALL_POINTS = 12_000
"""Points of one metric in all runs together, at most, so that a page of many runs stays small."""


def axes_of(runs: Sequence[Run]) -> list[str]:
    """What the horizontal axis may show: that which is known of every run."""
    known = {
        "step": True,
        "samples": all(run["pairs_per_step"] for run in runs),
        "epoch": all(run["epochs"]["epoch"] for run in runs),
    }
    return [axis for axis in AXES if known[axis]]


def charts(runs: Sequence[Run], axis: str, letters: Sequence[str | None], notes: Mapping[str, str]) -> list[Markup]:
    """Draw every metric that a run has logged.

    Args:
        runs: of the result, those with data.
        axis: one of `axes_of`.
        letters: of each run's evaluation data, shown where they differ.
        notes: sentences under charts, by the metric's name.
    """
    drawer = _Drawer(runs, axis, letters)
    made = {metric.name: drawer.chart(metric, notes.get(metric.name, "")) for metric in METRICS}
    log_probs = drawer.log_probs()
    order = [made[name] for name in list(made)[:3]] + [log_probs, *drawer.terms()] + [*made.values()][3:]
    return [chart for chart in order if chart]


@dataclass(frozen=True)
class _Drawer:
    runs: Sequence[Run]
    axis: str
    letters: Sequence[str | None]

    def chart(self, metric: Metric, note: str) -> Markup:
        """All curves of a metric."""
        curves = []
        for number, run in enumerate(self.runs):
            curves += self._training(number, run, metric) + self._evaluations(number, run, metric)
        levels = [Level(*metric.level)] if metric.level else []
        if metric.name == ACCURACY:
            bands = _BANDS if any(curve.low for curve in curves) else ""
            note = f"{note} {self._ties()}{bands}".strip()
        return self._drawn(
            curves, metric.title, unit=metric.unit, log=metric.is_log, levels=levels, y_range=metric.y_range, note=note
        )

    def log_probs(self) -> Markup:
        """Log-probs of both sides as changes from their first value."""
        per_token = all(PER_TOKEN.format("chosen") in run["series"] for run in self.runs)
        curves, starts = [], []
        for number, run in enumerate(self.runs):
            for place, side in enumerate(SIDES):
                name = PER_TOKEN.format(side) if per_token else self._answer_name(run, side)
                x, y = self._points(run, name)
                start = next((value for value in y if value is not None), None)
                if start is None:
                    continue
                label = side if self._alone else f"{run['name']}, {side}"
                change = [None if value is None else value - start for value in y]
                color, style = (place, "line") if self._alone else (number, "dashed" if place else "line")
                curves.append(Curve(label, x, change, color, f"run-{number}/{side}", style))
                starts.append(f"{label} {start:.4g}".replace("-", "−"))
        unit = "nats per token" if per_token else "nats per answer"
        note = f"At the start: {'; '.join(starts)}." if self._alone else ""
        return self._drawn(
            curves, "Log-prob, change from the start", unit=unit, levels=[Level(0.0, "start")], note=note
        )

    def terms(self) -> list[Markup]:
        """The terms of one run's loss, if it has several."""
        if not self._alone:
            return []
        names = [name for name in self.runs[0]["series"] if name.startswith("loss/")]
        curves = [Curve(name[5:], *self._points(self.runs[0], name), at) for at, name in enumerate(names)]
        return [self._drawn(curves, "Terms of the loss", unit="before weighting")]

    @property
    def _alone(self) -> bool:
        return len(self.runs) == 1

    def _training(self, number: int, run: Run, metric: Metric) -> list[Curve]:
        if metric.name not in run["series"]:
            return []
        x, y = self._points(run, metric.name)
        if self._alone:
            return [Curve("training" if metric.is_evaluated else metric.title, x, y, 0)]
        has_evaluation = metric.is_evaluated and bool(run["evaluation_data"])
        label = f"{run['name']}, training" if has_evaluation else run["name"]
        return [Curve(label, x, y, number, f"run-{number}/training")]

    def _evaluations(self, number: int, run: Run, metric: Metric) -> list[Curve]:
        curves = []
        for place, name in enumerate(run["evaluation_data"] if metric.is_evaluated else ()):
            x, y = self._points(run, self._evaluated_name(run, name, metric))
            rows = run["evaluation_rows"][name]
            low, high = _interval(y, rows) if metric.name == ACCURACY and rows else ((), ())
            words = f"evaluation {name}".strip()
            if self._alone:
                curves.append(Curve(words, x, y, 1 + place, low=low, high=high))
                continue
            apart = f" ({self.letters[number]})" if len({*self.letters} - {None}) > 1 else ""
            label, key = f"{run['name']}, {words}{apart}", f"run-{number}/{words}"
            curves.append(Curve(label, x, y, number, key, "dashed", low, high))
        return curves

    def _points(self, run: Run, name: str) -> tuple[Sequence[float], list[float | None]]:
        series = run["series"].get(name, {"step": [], "value": []})
        return self._place(run, series["step"]), series["value"]

    def _place(self, run: Run, steps: Sequence[float]) -> Sequence[float]:
        if self.axis == "samples":
            return [step * run["pairs_per_step"] for step in steps]
        if self.axis == "epoch":
            return np.interp(steps, run["epochs"]["step"], run["epochs"]["epoch"]).tolist() if steps else []
        return steps

    def _evaluated_name(self, run: Run, evaluation_set: str, metric: Metric) -> str:
        """Watching counts ties as one half, which TRL counts as wrong."""
        if metric.name == ACCURACY and HALF_TIES in run["series"] and len(run["evaluation_data"]) == 1:
            return HALF_TIES
        return evaluation_name(evaluation_set, metric.name)

    def _ties(self) -> str:
        names = {self._evaluated_name(run, "", METRICS[1]) for run in self.runs if run["evaluation_data"]}
        if names == {HALF_TIES}:
            return "Ties count as wrong in training, and one half in evaluation."
        return "Ties count as wrong." if HALF_TIES not in names else "Ties count one half only where a run was watched."

    def _answer_name(self, run: Run, side: str) -> str:
        """Evaluations are on the same pairs each time, and batches are not."""
        names = [evaluation_name(name, PER_ANSWER.format(side)) for name in run["evaluation_data"]]
        return next((name for name in names if name in run["series"]), PER_ANSWER.format(side))

    def _marks(self) -> list[Mark]:
        """The first time that each alarm fired."""
        marks = []
        for number, run in enumerate(self.runs):
            first: dict[str, int] = {}
            for alarm in run["alarms"]:
                if alarm.get("fired"):
                    first.setdefault(str(alarm["name"]), alarm["step"])
            for name, step in first.items():
                (x,) = self._place(run, [step])
                if self._alone:
                    marks.append(Mark(x, name))
                else:
                    marks.append(Mark(x, f"{run['name']}: {name}", number, f"run-{number}", is_written=False))
        return marks

    def _drawn(self, curves: Sequence[Curve], title: str, **options: Any) -> Markup:
        most = min(MOST_POINTS, _ALL_POINTS // max(1, len(self.runs)))
        if self.axis != "step":
            most //= 4
        return line_chart(curves, title, x_label=AXES[self.axis], marks=self._marks(), most=most, **options)


def _interval(shares: Sequence[float | None], rows: int) -> tuple[list[float | None], list[float | None]]:
    bounds = [(None, None) if share is None or not 0 <= share <= 1 else wilson(share * rows, rows) for share in shares]
    return [low for low, _ in bounds], [high for _, high in bounds]  # type: ignore[misc]
