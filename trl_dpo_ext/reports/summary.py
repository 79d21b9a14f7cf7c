"""The values of a run as a table for the terminal."""

from __future__ import annotations

from ..text_table import format_table
from .run_log import Run

_METRICS = {
    "loss": "loss",
    "rewards/accuracies": "reward accuracy",
    "rewards/margins": "reward margin",
    "logps/chosen": "log-prob of chosen",
    "logps/rejected": "log-prob of rejected",
}


def summarize(run: Run) -> str:
    """Format a table with the first and the last value of each metric, in training and in evaluation."""
    steps = [entry["step"] for entry in run.train]
    rows = [("", "first", "last")]
    for where, series in (("training", run.training_series), ("evaluation", run.evaluation_series)):
        for metric, label in _METRICS.items():
            _, values = series(metric)
            if values:
                rows.append((f"{where}, {label}", f"{values[0]:.4g}", f"{values[-1]:.4g}"))
    title = f"{run.folder}: {len(steps)} logged steps, {steps[0]} to {steps[-1]}"
    return f"{title}\n{format_table(rows, '<>>')}"
