"""The log of a run, read from its output folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..distributed.checkpoints import TRAINER_STATE_FILE, is_complete, list_checkpoints
from ..errors import InputError
from ..run_files import LOG_FILE, is_step, read_json, read_lines
from . import shapes

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
    values = ((entry["step"], shapes.number(entry.get(metric))) for entry in entries)
    found = [(step, float(value)) for step, value in values if value is not shapes.MISSING]
    return [step for step, _ in found], [value for _, value in found]


def read_run(output_dir: str | Path) -> Run:
    """Read the log of a run from its output folder, or from one of its checkpoints.

    Raises:
        InputError: the folder has no log, or one without a logged training step.
    """
    folder = Path(output_dir)
    entries, _ = read_log(folder)
    train = tuple(entry for entry in entries if "loss" in entry)
    if not train:
        raise InputError(f"{folder} has no logged training step. Set logging_steps below the number of steps.")
    return Run(folder, train, tuple(entry for entry in entries if "eval_loss" in entry))


def read_log(folder: Path) -> tuple[Sequence[LogEntry], LogEntry]:
    """Return the entries of a run's log, ordered by step, and the state that was saved with them.

    They are read from the state beside the model, or that of the newest complete checkpoint, and from the log that this
    package writes while a run goes on. A state that a later run in the same folder has not reached yet is passed over.

    Raises:
        InputError: the folder has neither, or a state alone that cannot be read.
    """
    written = read_lines(folder / LOG_FILE)
    file = _state_file(folder)
    if file is None and not written:
        damaged = next((state for state in _states(folder) if state.exists()), None)
        if damaged is not None:
            raise InputError(f"{damaged} cannot be read as JSON. Copy it again, or pass the output_dir of another run.")
        raise InputError(
            f"Neither {folder} nor a checkpoint in it has a {TRAINER_STATE_FILE}, and it has no {LOG_FILE}. Pass the "
            "output_dir of a run that has logged a step."
        )
    state = (read_json(file) if file else None) or {}
    history = state.pop("log_history", None)
    saved = shapes.items(_entry)(history)
    if file is None or _is_of_earlier_run(saved, file, written, folder):
        return written, {}
    known = {(entry["step"], *sorted(entry)) for entry in saved}
    last = max((entry["step"] for entry in saved), default=-1)
    later = [e for e in written if e["step"] >= last and (e["step"], *sorted(e)) not in known]
    return sorted((*saved, *later), key=lambda entry: entry["step"]), shapes.state(state)


def _entry(value: Any) -> Any:
    """An entry of a log, which anybody may have written."""
    return value if isinstance(value, dict) and is_step(value.get("step")) else shapes.MISSING


def _is_of_earlier_run(saved: list[LogEntry], file: Path, written: list[Any], folder: Path) -> bool:
    """Whether a state is further than a log that was written after it."""
    if not saved or not written or saved[-1]["step"] <= written[-1]["step"]:
        return False
    return (folder / LOG_FILE).stat().st_mtime > file.stat().st_mtime


def _state_file(folder: Path) -> Path | None:
    """The state beside the model, or else that of the newest complete checkpoint."""
    return next((state for state in _states(folder) if is_complete(state.parent)), None)


def _states(folder: Path) -> list[Path]:
    return [each / TRAINER_STATE_FILE for each in (folder, *list_checkpoints(folder))]
