"""`Watch`: looks at a run at its evaluations or every so many steps, checks the alarms, and stops the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from .. import _trl
from ..core.pairs import Pairs
from ..data.evaluation_sets import watched_set
from .book import AlarmBook, Event, ends_run
from .journal import Journal
from .pair_table import PairTable, batch_columns, pair_keys
from .random_state import kept_random_state
from .sampled import Sampled, Sampler
from .training_sums import StepSums, TrainingWindow

STATE_FILE = "watch.json"
"""File of a checkpoint with start values, how long alarms' conditions have held, and what was told."""
TIMES = 10
"""How often a run without evaluations is watched, unless `watch_steps` says otherwise."""
Gather = Callable[[torch.Tensor], torch.Tensor]


class Watch(TrainerCallback):
    """Watches one run.

    Args:
        host: the trainer.
        gather: concatenates a tensor over processes.
        announced: the loss that the first step should have; None if it is not known.
        reference_is_start: whether the batches' reference log-probs are those of the policy before training.
        reference_is_stored: whether they are read, and cannot be computed for samples.
    """

    def __init__(
        self,
        host: _trl.Host,
        gather: Gather,
        announced: float | None,
        reference_is_start: bool,
        reference_is_stored: bool = False,
    ) -> None:
        self.host, self.gather, self.announced = host, gather, announced
        self.reference_is_stored = reference_is_stored
        self.args = host.trainer.args
        self.book = AlarmBook()
        self.sampler: Sampler | None = None
        self.running = False
        self.grad_norm: Any = None
        self.learning_rate = 0.0
        self._sums = StepSums()
        self._table: PairTable | None = None
        self._evaluated: PairTable | None = None
        self._start_pairs: dict[int, float] = {}
        self._window = TrainingWindow(max(int(self.args.logging_steps), 1), reference_is_start)
        self._resumed = False
        self._stopped_elsewhere = False
        self.journal = Journal(self.args.output_dir, self.args.watch_show, host.is_main_process)

    @property
    def stopped(self) -> dict[str, Any] | None:
        """The alarm that ended the run, with its step and message; None if none has."""
        return self.book.stopped

    # What the trainer tells.

    def add_batch(
        self,
        pairs: Pairs,
        rewards: tuple[torch.Tensor, torch.Tensor],
        loss: torch.Tensor | float,
        inputs: Mapping[str, Any],
        trim: Gather,
    ) -> None:
        """Take a batch of training, or of the evaluation that is watched.

        Args:
            pairs: the batch, with rows that were repeated to fill it.
            rewards: of both sides, each (pairs,).
            loss: the mixture's mean loss.
            inputs: what the models are given.
            trim: removes repeated rows from what is gathered over processes.
        """
        if not self.running:
            return
        if pairs.training:
            self._sums.add_pairs(pairs, rewards, loss)
        elif self._table is not None:
            self._table.add(batch_columns(pairs, rewards), pair_keys(inputs), lambda rows: trim(self.gather(rows)))

    def add_loss(self, loss: torch.Tensor) -> None:
        """Take the whole loss of a batch of training."""
        if self.running:
            self._sums.add_loss(loss)

    def evaluation_begins(self, prefix: str) -> None:
        """Collect the pairs of an evaluation if it is the watched one.

        Args:
            prefix: of its metrics, `eval` or `eval_NAME`.
        """
        name = self._watched_set()
        watched = prefix == ("eval" if name is None else f"eval_{name}")
        self._table = PairTable(has_stored_reference=self.reference_is_stored) if self.running and watched else None

    def evaluation_ends(self) -> None:
        """Keep the pairs of the evaluation until its metrics have been logged."""
        self._evaluated, self._table = self._table, None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON."""
        pairs = [list(self._start_pairs), list(self._start_pairs.values())]
        window = self._window.state_dict()
        return {"format": 1, "alarms": self.book.state_dict(), "start_pairs": pairs, "window": window}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._resumed = True
        self.book = AlarmBook.of_state(state["alarms"])
        self._start_pairs = dict(zip(*state["start_pairs"], strict=True))
        self._window.load_state_dict(state["window"])

    def stops_again(self) -> str | None:
        """Why a resumed run is not continued: the alarm that has stopped it still may; None if it goes on."""
        stopped = self.book.stopped
        if stopped is None:
            return None
        if not ends_run(self.args, stopped["name"]):
            self.book.stopped = None
            return None
        name = stopped["name"]
        return (
            f"The alarm {name} stopped this run at step {stopped['step']} ({stopped['message']}) and stops it again. "
            f"To go on, set --ignore_alarms {name}, or raise its threshold (--watch_thresholds) and remove it from "
            "stop_on."
        )

    # What transformers tells.

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Bring the files to the step where the run begins, and look at the policy before its first step."""
        self.running = True
        if self.sampler is not None:
            self.sampler.begin(state.global_step)
        self.journal.begin(state.global_step or -1)
        if not self._resumed:
            self.book.last_step = state.global_step - 1
            if state.global_step:
                self.journal.say(f"The checkpoint was not watched: alarms compare with step {state.global_step}.")
        if args.watch_on_start and not self._resumed and not (self._evaluates and args.eval_on_start):
            with kept_random_state(), self.host.kept_mode():
                if self._evaluates:
                    self.host.evaluate(self._watched_set())
                else:
                    self._observe(control, {}, evaluated=False, samples=True)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin to add up a step."""
        self._sums, self.grad_norm = StepSums(), None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Check the alarms of every step, and look at the run every so many steps."""
        step = self._sums.gathered(self.gather, self.host.trainer.accelerator.device)
        step.grad_norm = None if self.grad_norm is None else float(self.grad_norm)
        step.learning_rate = self.learning_rate
        self._window.add(step.sums)
        self._see_others(control)
        causal = self.host.causal_model(self.host.trainer.model)
        events = self.book.observe_step(
            args,
            step,
            state.global_step,
            state.epoch,
            announced=self.announced,
            dtype=self.host.compute_dtype(causal),
            was_skipped=self.host.trainer.accelerator.optimizer_step_was_skipped,
        )
        if not step.is_finite:
            control.should_save = False  # nothing over the last checkpoint
        self.journal.tell(events)
        self._stop(control, events)
        every = self._every(state)
        if every and state.global_step % every == 0 and not self._is_stopped:
            with kept_random_state(), self.host.kept_mode():
                values, start = ({}, {}) if self._evaluates else self._window.metrics()
                self._observe(control, values, evaluated=False, samples=True, start=start)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save nothing at the end of an epoch whose weights are not finite."""
        if self.book.not_finite:
            control.should_save = False

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at the run with the pairs of the evaluation that has just ended."""
        table, self._evaluated = self._evaluated, None
        if table is None or not self.running or state.global_step <= self.book.last_step:
            return
        self.book.last_step = state.global_step
        self._see_others(control)
        if not self._start_pairs:
            self._start_pairs = table.chosen_by_pair()
        samples = not args.watch_steps or state.global_step == 0
        with kept_random_state(), self.host.kept_mode():
            self._observe(control, table.metrics(self._start_pairs), evaluated=True, samples=samples)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Say what has ended the run, if its steps are not done."""
        self.running = False
        if not self._stopped_elsewhere or self._is_stopped:
            return
        callbacks = self.host.trainer.callback_handler.callbacks
        early = any(isinstance(each, EarlyStoppingCallback) for each in callbacks)
        by = "EarlyStoppingCallback" if early else "another callback"
        self.journal.say(
            f"The run was stopped at step {state.global_step} of {state.max_steps} by {by}, not by an alarm."
        )

    # Looking at the run.

    def _observe(
        self,
        control: Any,
        values: Mapping[str, float],
        *,
        evaluated: bool,
        samples: bool,
        start: Mapping[str, float] | None = None,
    ) -> None:
        """Sample if it is time, log, check the alarms on the first process, and stop all processes or none."""
        state = self.host.trainer.state
        sampled = self.sampler.sample(state.global_step) if samples and self.sampler is not None else None
        sampled = sampled or Sampled()
        values = {**values, **sampled.metrics}
        if not values:
            return
        with _trl.temporarily(control, should_log=control.should_log):  # which logging takes back
            self.host.log_apart({name: value for name, value in values.items() if name.startswith("watch/")})
        where = (state.global_step, state.epoch, state.max_steps)
        known = {**self.book.start, **(start or {})}
        self.journal.note(where, values, sampled, known, evaluated=evaluated)
        events: list[Event] = []
        if self.host.is_main_process:
            events = self.book.observe(self.args, values, *where, start)
        events, self.book = self.host.from_main((events, self.book))
        self.journal.tell(events)
        self._stop(control, events)

    def _see_others(self, control: Any) -> None:
        """Note whether another callback has ended the run, which no alarm does then."""
        state = self.host.trainer.state
        self._stopped_elsewhere |= control.should_training_stop and state.global_step < state.max_steps
        self.book.may_stop = not self._stopped_elsewhere

    def _stop(self, control: Any, events: list[Event]) -> None:
        """End the run if one of the alarms does."""
        stopping = [event for event in events if event.stopped]
        if not stopping:
            return
        control.should_training_stop = True
        saves = str(getattr(self.args.save_strategy, "value", self.args.save_strategy)) != "no"
        control.should_save = saves and all(event.name != "nan" for event in stopping)

    @property
    def _is_stopped(self) -> bool:
        return self.book.stopped is not None

    @property
    def _evaluates(self) -> bool:
        strategy = self.args.eval_strategy
        return str(getattr(strategy, "value", strategy)) != "no"

    def _every(self, state: Any) -> int | None:
        """Number of steps between two times of watching; None for every evaluation."""
        if self.args.watch_steps or self._evaluates:
            return self.args.watch_steps
        return max(math.ceil(state.max_steps / TIMES), 1)

    def _watched_set(self) -> str | None:
        """The evaluation set that alarms read, by name; None where there is one without a name."""
        datasets = self.host.trainer.eval_dataset
        if not isinstance(datasets, Mapping):
            return None
        names = [str(name) for name in datasets]
        return watched_set(self.args.metric_for_best_model, names) or next(iter(names), None)
