"""Everything that a run's folder tells of it."""

from __future__ import annotations

import contextlib
import datetime
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..distributed.resumption import RUN_FILE
from ..errors import InputError
from ..run_files import ALARMS_FILE, LOG_FILE, METRICS_FILE, SAMPLES_FILE, read_json, read_lines
from ..statistics import finite
from . import shapes
from .run_log import LogEntry, read_log

Series = tuple[list[int], list[float]]
_DOCUMENTS = ("trl_dpo_ext.score", "trl_dpo_ext.inspect")
_LARGEST_DOCUMENT = 50 * 2**20
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# About the machine, not about what is learned.
_TIMES = re.compile(r"(_runtime|_per_second|total_flos|^train_loss|num_tokens)$")


@dataclass(frozen=True)
class RunData:
    """One run."""

    folder: Path
    name: str
    """Short, and different from those of the runs that are shown with it."""
    problem: str | None = None
    """Why there is nothing to show; None where there is."""
    entries: tuple[LogEntry, ...] = ()
    """Of the trainer's log and of watching, ordered by step."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """What transformers saves beside the log."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """What this package's trainer writes; empty for other trainers."""
    alarms: tuple[Mapping[str, Any], ...] = ()
    samples: tuple[Mapping[str, Any], ...] = ()
    documents: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Results of `score` and `inspect` in the folder, by file name."""

    @cached_property
    def series(self) -> dict[str, Series]:
        """Steps and values of everything that was logged as a number, by name."""
        found: dict[str, dict[int, float]] = {}
        for entry in self.entries:
            for name, value in entry.items():
                if name in ("step", "epoch") or _TIMES.search(name):
                    continue
                if shapes.number(value) is not shapes.MISSING:
                    found.setdefault(name, {})[entry["step"]] = float(value)
                elif value is None:  # a number that is not finite, as JSON has it
                    found.setdefault(name, {})[entry["step"]] = math.nan
        return {name: ([*points], [*points.values()]) for name, points in found.items()}

    @property
    def evaluation_sets(self) -> list[str]:
        """Names of the evaluation sets; the empty name for the only one."""
        found = [re.fullmatch(r"eval_(?:(.+)_)?loss", name) for name in self.series]
        return [match[1] or "" for match in found if match]

    @property
    def last_step(self) -> int:
        """The last step of which something is known."""
        return max((entry["step"] for entry in self.entries), default=0)

    @property
    def max_steps(self) -> int | None:
        """The number of steps that the run is meant to have, if known."""
        recorded = self.record["steps"]["max"] if self.record else None
        return recorded or self.state.get("max_steps") or None

    @property
    def pairs_per_step(self) -> int | None:
        """Number of pairs in an optimizer step, of all processes; None if it was not recorded."""
        return self.record["batch"]["pairs_per_step"] or None if self.record else None

    @property
    def status(self) -> str:
        """How far the run has come, in words."""
        if self.problem:
            return self.problem
        most = self.max_steps
        stopped = next((alarm["name"] for alarm in reversed(self.alarms) if alarm.get("stopped")), None)
        reached = f"step {self.last_step:,}" + (f" of {most:,}" if most else "")
        if stopped:
            return f"ended by the alarm {stopped} at {reached}"
        if most is None or self.last_step >= most or _CHECKPOINT.fullmatch(self.folder.resolve().name):
            return reached
        if any("train_runtime" in entry for entry in self.entries):
            return f"ended at {reached}"
        return f"not finished: {reached}, last written {self._last_written()}"

    def epochs_at(self, steps: Iterable[float]) -> list[float]:
        """The epoch at each of some steps, between those that were logged."""
        found = {entry["step"]: shapes.number(entry.get("epoch")) for entry in self.entries}
        known = {step: epoch for step, epoch in found.items() if epoch is not shapes.MISSING and math.isfinite(epoch)}
        if not known:
            return []
        return np.interp(list(steps), list(known), list(known.values())).tolist()

    def _last_written(self) -> str:
        files = [self.folder / LOG_FILE, *self.folder.glob("trainer_state.json"), *self.folder.glob("*/*.json*")]
        times = [file.stat().st_mtime for file in files if file.is_file()]
        return f"{datetime.datetime.fromtimestamp(max(times, default=0)):%Y-%m-%d %H:%M}"


def read_runs(folders: Iterable[str | Path]) -> list[RunData]:
    """Read runs from their folders; one without a log has a `problem` in place of its data."""
    paths = [Path(folder) for folder in folders]
    return [_read(path, name) for path, name in zip(paths, _short_names(paths), strict=True)]


def _read(folder: Path, name: str) -> RunData:
    try:
        entries, state = read_log(folder)
    except InputError as error:
        entries, state, problem = [], {}, str(error)
        if not folder.is_dir():
            problem = f"{folder} is not a folder. Pass the output_dir of a run."
    else:
        problem = None
    match = _CHECKPOINT.fullmatch(folder.resolve().name)
    until, home = (int(match[1]), folder.resolve().parent) if match else (math.inf, folder)

    def lines(file: str) -> tuple[dict[str, Any], ...]:
        return tuple(line for line in read_lines(home / file) if line["step"] <= until)

    watched = [_watched(line) for line in lines(METRICS_FILE)]
    merged = sorted((*entries, *watched), key=lambda entry: entry["step"])
    records = [(read_json(each / RUN_FILE) or {}).get("record") for each in (folder, home)]
    recorded = next((found for found in records if found and isinstance(found, dict)), None)
    return RunData(
        folder,
        name,
        problem if not merged else None,
        tuple(merged),
        state,
        shapes.record(recorded) if recorded else {},
        tuple(map(shapes.alarm, lines(ALARMS_FILE))),
        tuple(map(shapes.sample, lines(SAMPLES_FILE))),
        _documents(folder),
    )


def _watched(line: Mapping[str, Any]) -> dict[str, Any]:
    """The values of one time of watching: those of evaluations as `watched/...`, without those of training steps."""
    kept = {name: value for name, value in line.items() if name in ("step", "epoch") or name.startswith("watch/")}
    others = {f"watched/{name}": value for name, value in line.items() if name not in kept and name != "evaluated"}
    return {**kept, **others} if line.get("evaluated", True) else kept


def _documents(folder: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for file in sorted(folder.glob("*.json")):
        content = read_json(file) if file.is_file() and file.stat().st_size <= _LARGEST_DOCUMENT else None
        if content and content.get("kind") in _DOCUMENTS:
            with contextlib.suppress(RecursionError):  # of a damaged one
                found[file.name] = finite(content)
    return found


def _short_names(folders: list[Path]) -> list[str]:
    """The last parts of paths, as many as tell them apart; numbered where a folder is given twice."""
    parts = [folder.resolve().parts for folder in folders]
    count, names = 0, [""] * len(parts)
    while len(set(names)) < len(set(parts)) or not all(names):
        count += 1
        names = ["/".join(each[-count:]) for each in parts]
    return [name if names.count(name) == 1 else f"{name} ({at})" for at, name in enumerate(names, 1)]
