"""The plot of one run as a picture, by matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from .run_log import LogEntry, Run, read_run

_CHOSEN, _REJECTED, _NEUTRAL = "#0072b2", "#d55e00", "#333333"  # distinguishable by color-blind readers
_WINDOW = 5


def plot_run(output_dir: str | Path, png: str | Path, held_out: Sequence[LogEntry] = ()) -> None:
    """Plot loss, reward accuracy, reward margin and the answers' log-probs over the steps of a run.

    Args:
        output_dir: the run's output folder, or one of its checkpoints.
        png: file to write.
        held_out: further evaluations, in the format of the trainer's log (`step`, `eval_rewards/accuracies`, ...), for
            a run that was evaluated outside the trainer.

    Raises:
        InputError: the run has no log, or matplotlib is not installed.
    """
    run = read_run(output_dir)
    evaluations = sorted((*run.evaluations, *held_out), key=lambda entry: entry["step"])
    run = replace(run, evaluations=tuple(evaluations))
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("Plotting needs matplotlib. Run pip install 'trl-dpo-ext[plot]'.") from None
    figure = Figure(figsize=(11, 8), dpi=110, layout="constrained")
    (loss, accuracy), (margin, logps) = figure.subplots(2, 2)
    _draw(loss, run, {"loss": ("", _NEUTRAL)}, "Loss", "mean over the batch")
    title = "Reward accuracy (in training, TRL counts a tie as wrong)"
    _draw(accuracy, run, {"rewards/accuracies": ("", _NEUTRAL)}, title, "share of pairs ranked right")
    _draw(margin, run, {"rewards/margins": ("", _NEUTRAL)}, "Reward margin", "chosen − rejected reward (β · nats)")
    sides = {"logps/chosen": ("chosen", _CHOSEN), "logps/rejected": ("rejected", _REJECTED)}
    _draw(logps, run, sides, "Log-probability of the answers", "log p(answer | prompt) (nats)")
    accuracy.set_ylim(-0.03, 1.03)
    accuracy.axhline(0.5, color="gray", linestyle=":", linewidth=1)
    accuracy.annotate("chance", (0.995, 0.505), xycoords=("axes fraction", "data"), ha="right", color="gray", size=9)
    margin.axhline(0.0, color="gray", linestyle=":", linewidth=1)
    figure.suptitle(f"{run.folder.name}: {run.train[-1]['step']} steps")
    figure.savefig(png)


def _draw(axis: Any, run: Run, metrics: Mapping[str, tuple[str, str]], title: str, unit: str) -> None:
    """Draw one panel: each batch as a dot, the running mean as a line, evaluations as diamonds.

    With several metrics, the legend lists only the lines, by the name of their side.
    """
    for metric, (side, color) in metrics.items():
        dots, line, diamonds = ("_", side, "_") if side else ("training", f"mean of {_WINDOW}", "held-out")
        steps, values = run.training_series(metric)
        axis.plot(steps, values, ".", color=color, alpha=0.35, label=dots)
        axis.plot(steps, _running_mean(values), "-", color=color, label=line)
        steps, values = run.evaluation_series(metric)
        if values:
            axis.plot(steps, values, "D:", color=color, markersize=8, mec="white", label=diamonds)
    axis.set(title=title, xlabel="optimizer step", ylabel=unit)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=9, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.13))


def _running_mean(values: Sequence[float]) -> list[float]:
    """Return the mean of each value and up to `_WINDOW - 1` values before it.

    >>> _running_mean([2.0, 4.0, 0.0])
    [2.0, 3.0, 2.0]
    """
    windows = [values[max(0, end - _WINDOW) : end] for end in range(1, len(values) + 1)]
    return [sum(window) / len(window) for window in windows]
