"""What a watched run knows of its alarms: start values, how long conditions have held, and what was told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .alarm_table import ALARMS, ANY
from .alarms import CHECKS, NORMS, Moment, Reading, first_loss, grad_spike, no_gradient, not_finite
from .training_sums import Step

REMINDER = 10
"""An alarm that has been told is told again every so many times that it fires."""
IN_HALF_PRECISION = 5
"""Factor of the threshold of `first_loss` where the forward computes in bf16 or fp16."""
SKIPPED = 10
"""Factor of the threshold of `nan` for steps that the gradient scaler of fp16 skips, as it does in sound runs."""


@dataclass(frozen=True)
class Event:
    """An alarm that is told."""

    step: int
    epoch: float | None
    name: str
    value: float
    start: float | None
    threshold: float
    message: str
    fired: bool
    """Whether it is told for the first time, and not again."""
    stopped: bool
    """Whether it ends the run."""

    def as_line(self) -> dict[str, Any]:
        """The line of alarms.jsonl."""
        return asdict(self)

    def __str__(self) -> str:
        return f"ALARM {self.name} at step {self.step}: {self.message}"


@dataclass
class AlarmBook:
    """The alarms of a run. Its fields are what checkpoints keep.

    Args:
        start: metrics at the start.
        streaks: by alarm, how many times in a row its condition has held, and the step of the first of them.
        told: by alarm, how often it has fired.
        stopped: the alarm that ended the run, with its step and message.
        norms: the last gradient norms.
        first_norms: gradient norms of the first steps with a learning rate.
        not_finite, skipped: steps in a row that were not finite, and that the gradient scaler has skipped.
        largest_margin: of rewards, of the last step that was finite.
        last_step: the step of the last evaluation that was looked at; -1 before the first.
        may_stop: whether alarms may still end the run, which nothing else has ended.
    """

    start: dict[str, float] = field(default_factory=dict)
    streaks: dict[str, list[int]] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)
    stopped: dict[str, Any] | None = None
    norms: list[float] = field(default_factory=list)
    first_norms: list[float] = field(default_factory=list)
    not_finite: int = 0
    skipped: int = 0
    largest_margin: float = 0.0
    last_step: int = -1
    may_stop: bool = True

    def observe(
        self,
        args: Any,
        values: Mapping[str, float],
        step: int,
        epoch: float | None,
        max_steps: int,
        start: Mapping[str, float] | None = None,
    ) -> list[Event]:
        """Check the alarms that read what is known now; return those to tell.

        Args:
            args: the run's configuration.
            values: metrics of this time; those that come for the first time become the start.
            step, epoch, max_steps: where the run is, and how many steps it has.
            start: values at the start that are known in another way.
        """
        events = []
        known = {**self.start, **(start or {})}
        for name in (name for name in CHECKS if name not in args.ignore_alarms):
            threshold = args.threshold(name)
            count, since = self.streaks.get(name, [0, step])
            since = since if count else step
            moment = Moment(values, known, threshold, step, max_steps, since if count else None)
            reading = CHECKS[name](moment)
            if reading is None:
                continue
            self.streaks[name] = [count + 1, since] if reading.holds else [0, 0]
            if reading.holds and count + 1 >= args.watch_patience:
                events += self._tell(args, name, reading, threshold, step, epoch)
        self.start = {**values, **known}
        return events

    def observe_step(
        self,
        args: Any,
        done: Step,
        step: int,
        epoch: float | None,
        *,
        announced: float | None,
        dtype: str,
        was_skipped: bool,
    ) -> list[Event]:
        """Check the alarms of an optimizer step; return those to tell. All processes find the same.

        Args:
            args: the run's configuration.
            done: the step, of all processes.
            step, epoch: where the run is after it.
            announced: the loss that the first step should have; None if it is not known.
            dtype: of the forward, by name.
            was_skipped: whether the gradient scaler has skipped the step.
        """
        found: dict[str, tuple[Reading, float]] = {}
        norm = done.grad_norm
        found["nan"] = self._not_finite(args, done, dtype, was_skipped)
        if norm is not None and math.isfinite(norm):
            limit = args.threshold("no_gradient")
            if done.learning_rate > 0 and len(self.first_norms) < limit:
                self.first_norms.append(norm)
                found["no_gradient"] = no_gradient(self.first_norms, limit), limit
            limit = args.threshold("grad_spike")
            found["grad_spike"] = grad_spike(norm, self.norms, limit), limit
            self.norms = [*self.norms, norm][-NORMS:]
        if step == 1 and announced is not None and done.sums["pairs"]:
            limit = args.threshold("first_loss") * (1 if dtype == "float32" else IN_HALF_PRECISION)
            found["first_loss"] = first_loss(done.loss, announced, limit), limit
        events = []
        for name, (reading, limit) in found.items():
            if reading.holds and name not in args.ignore_alarms:
                events += self._tell(args, name, reading, limit, step, epoch)
        return events

    def _not_finite(self, args: Any, done: Step, dtype: str, was_skipped: bool) -> tuple[Reading, float]:
        self.skipped = self.skipped + 1 if was_skipped and not done.is_finite else 0
        if done.is_finite:
            self.largest_margin = done.largest_margin
        counts = not done.is_finite and (not was_skipped or not done.loss_is_finite)
        self.not_finite = self.not_finite + 1 if counts else 0
        limit = args.threshold("nan")
        what = "the loss" if not done.loss_is_finite else "the gradient norm"
        text = (
            f"{what} is not finite (learning rate {done.learning_rate:.3g}, largest margin before "
            f"{self.largest_margin:.3g}, {dtype})"
        )
        if self.skipped > self.not_finite:
            return not_finite(self.skipped, SKIPPED * limit, text), SKIPPED * limit
        return not_finite(self.not_finite, limit, text), limit

    def _tell(
        self, args: Any, name: str, reading: Reading, threshold: float, step: int, epoch: float | None
    ) -> list[Event]:
        before = self.told.get(name, 0)
        self.told[name] = before + 1
        stops = self.may_stop and ends_run(args, name)
        if stops and self.stopped is None:
            self.stopped = {"name": name, "step": step, "message": reading.message}
        elif before % REMINDER:
            return []
        stopped = stops and self.stopped is not None and self.stopped["name"] == name
        return [
            Event(
                step,
                epoch,
                name,
                reading.value,
                reading.start,
                threshold,
                reading.message,
                fired=not before,
                stopped=stopped,
            )
        ]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON."""
        return asdict(self)

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> AlarmBook:
        """The book that `state_dict` described; keys of later versions are left out."""
        return cls(**{name: state[name] for name in cls.__dataclass_fields__ if name in state})


def ends_run(args: Any, name: str) -> bool:
    """Whether an alarm ends the run when it fires."""
    if name in args.ignore_alarms:
        return False
    return name == "nan" or (ALARMS[name].stops and (name in args.stop_on or ANY in args.stop_on))
