"""The values of runs as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..text_table import format_table
from .run_log import Run, read_run

_WIDEST = 40

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


def summarize_folder(folder: Path) -> str:
    """The table of `summarize`; a sentence in its place for a run that has not logged a training step yet."""
    try:
        return summarize(read_run(folder))
    except InputError as error:
        return str(error)


def compare_runs(result: Mapping[str, Any]) -> str:
    """Format the arguments that differ, one column for each run, and what must not be compared; empty for one run.

    Args:
        result: of `report_of`.
    """
    if "differing" not in result:
        return ""
    shown = [at for at, run in enumerate(result["runs"]) if not run["problem"]]
    rows = [("", *(result["runs"][at]["name"] for at in shown))]
    for name, values in result["differing"].items():
        rows.append((name, *(_cut(values[at] or "-") for at in shown)))
    table = format_table(rows) if len(rows) > 1 else "The arguments are the same in all runs."
    return "\n".join([table, *result["comparison"]["warnings"]])


def _cut(text: str) -> str:
    return text if len(text) <= _WIDEST else text[: _WIDEST - 3] + "..."
