"""The log of a run, read from its output folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..distributed.checkpoints import TRAINER_STATE_FILE, is_complete, list_checkpoints
from ..errors import InputError

LogEntry = Mapping[str, Any]
"""One entry of the trainer's log: metric names and values, and the `step` they belong to."""


@dataclass(frozen=True)
class Run:
    """The log of one run, ordered by step."""

    folder: Path
    train: tuple[LogEntry, ...]
    evaluations: tuple[LogEntry, ...]

    def training_series(self, metric: str) -> tuple[list[int], list[float]]:
        """Return steps and values of a training metric."""
        return _series(self.train, metric)

    def evaluation_series(self, metric: str) -> tuple[list[int], list[float]]:
        """Return steps and values of an evaluation metric, given its name in training."""
        return _series(self.evaluations, f"eval_{metric}")


def _series(entries: Iterable[LogEntry], metric: str) -> tuple[list[int], list[float]]:
    found = [(entry["step"], entry[metric]) for entry in entries if metric in entry]
    return [step for step, _ in found], [float(value) for _, value in found]


def read_run(output_dir: str | Path) -> Run:
    """Read the log of a run from its output folder, or from one of its checkpoints.

    Raises:
        InputError: the folder has no `trainer_state.json`, or one without a logged training step.
    """
    folder = Path(output_dir)
    entries = json.loads(_state_file(folder).read_text(encoding="utf-8"))["log_history"]
    train = tuple(entry for entry in entries if "loss" in entry)
    if not train:
        raise InputError(f"{folder} has no logged training step. Set logging_steps below the number of steps.")
    return Run(folder, train, tuple(entry for entry in entries if "eval_loss" in entry))


def _state_file(folder: Path) -> Path:
    """Return the state next to the model, or else that of the newest complete checkpoint."""
    for candidate in (folder, *list_checkpoints(folder)):
        if is_complete(candidate):
            return candidate / TRAINER_STATE_FILE
    raise InputError(
        f"Neither {folder} nor a checkpoint in it has a {TRAINER_STATE_FILE}. Pass the output_dir of a finished run."
    )
