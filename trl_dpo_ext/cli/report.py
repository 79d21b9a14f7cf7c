"""What a run learned, read from the log that it left: first and last values, and a plot."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError

Row = Mapping[str, Any]
"""One entry of the trainer's log: metric names and values, with the `step` they belong to."""

STATE = "trainer_state.json"

_METRICS = {
    "loss": "loss",
    "rewards/accuracies": "reward accuracy",
    "rewards/margins": "reward margin",
    "logps/chosen": "log-prob of chosen",
    "logps/rejected": "log-prob of rejected",
}
_CHOSEN, _REJECTED, _NEUTRAL = "#0072b2", "#d55e00", "#333333"  # told apart by color-blind readers too
_WINDOW = 5


@dataclass(frozen=True)
class Run:
    """The log of one run, in the order of its steps."""

    folder: Path
    train: tuple[Row, ...]
    evaluations: tuple[Row, ...]

    def series(self, metric: str) -> tuple[list[int], list[float]]:
        """Steps and values of a training metric."""
        return _series(self.train, metric)

    def held_out(self, metric: str) -> tuple[list[int], list[float]]:
        """Steps and values of an evaluation metric, named as in training."""
        return _series(self.evaluations, f"eval_{metric}")

    def summary(self) -> str:
        """A table with the first and the last value of each metric, in training and, where there is one, evaluation."""
        steps = [row["step"] for row in self.train]
        lines = [
            f"{self.folder}: {len(steps)} logged steps, {steps[0]} to {steps[-1]}",
            f"{'':34}{'first':>10}{'last':>10}",
        ]
        for where, read in (("training", self.series), ("evaluation", self.held_out)):
            for metric, label in _METRICS.items():
                _, values = read(metric)
                if values:
                    lines.append(f"{f'{where}, {label}':34}{values[0]:>10.4g}{values[-1]:>10.4g}")
        return "\n".join(lines)


def _series(rows: Iterable[Row], metric: str) -> tuple[list[int], list[float]]:
    found = [(row["step"], row[metric]) for row in rows if metric in row]
    return [step for step, _ in found], [float(value) for _, value in found]


def read_run(output_dir: str | Path) -> Run:
    """Read the log of a run from its output folder, or from one of its checkpoints.

    Raises:
        InputError: the folder holds no `trainer_state.json`, or one without a logged training step.
    """
    folder = Path(output_dir)
    rows = json.loads(_state_file(folder).read_text(encoding="utf-8"))["log_history"]
    train = tuple(row for row in rows if "loss" in row)
    if not train:
        raise InputError(f"{folder} logged no training step. Set logging_steps below the number of steps.")
    return Run(folder, train, tuple(row for row in rows if "eval_loss" in row))


def _state_file(folder: Path) -> Path:
    """The state beside the model, or else the one in the newest checkpoint."""
    if (folder / STATE).is_file():
        return folder / STATE
    numbered = ((re.fullmatch(r"checkpoint-(\d+)", path.parent.name), path) for path in folder.glob(f"*/{STATE}"))
    found = [(int(match[1]), path) for match, path in numbered if match]
    if not found:
        raise InputError(
            f"{folder} holds no {STATE}, nor does a checkpoint in it. Is it the output_dir of a run that has ended?"
        )
    return max(found)[1]


def plot_run(output_dir: str | Path, png: str | Path, held_out: Sequence[Row] = ()) -> None:
    """Draw loss, reward accuracy, reward margin and the answers' log-probs over the steps of a run.

    Args:
        output_dir: the run's output folder, or one of its checkpoints.
        png: where to write the picture.
        held_out: further evaluations, in the form of the trainer's log (`step`, `eval_rewards/accuracies`, ...), for a
            run that was evaluated by other means.

    Raises:
        InputError: the run left no log, or matplotlib is not installed.
    """
    run = read_run(output_dir)
    run = Run(run.folder, run.train, tuple(sorted((*run.evaluations, *held_out), key=lambda row: row["step"])))
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("A plot needs matplotlib: pip install 'trl-dpo-ext[plot]'.") from None
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
    """One panel: each batch as a dot, their running mean as a line, evaluations as diamonds.

    Of several metrics only the lines get an entry in the legend, with the name of their side.
    """
    for metric, (side, color) in metrics.items():
        dots, line, diamonds = ("_", side, "_") if side else ("training", f"mean of {_WINDOW}", "held-out")
        steps, values = run.series(metric)
        axis.plot(steps, values, ".", color=color, alpha=0.35, label=dots)
        axis.plot(steps, _running_mean(values), "-", color=color, label=line)
        steps, values = run.held_out(metric)
        if values:
            axis.plot(steps, values, "D:", color=color, markersize=8, mec="white", label=diamonds)
    axis.set(title=title, xlabel="optimizer step", ylabel=unit)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=9, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.13))


def _running_mean(values: Sequence[float]) -> list[float]:
    """Mean of each value and up to `_WINDOW - 1` before it.

    >>> _running_mean([2.0, 4.0, 0.0])
    [2.0, 3.0, 2.0]
    """
    windows = [values[max(0, end - _WINDOW) : end] for end in range(1, len(values) + 1)]
    return [sum(window) / len(window) for window in windows]
