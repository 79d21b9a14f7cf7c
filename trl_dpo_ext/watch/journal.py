"""What the first process of a watched run prints and writes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..run_files import ALARMS_FILE, METRICS_FILE, SAMPLES_FILE, append_lines, cut_after, read_samples
from .book import Event
from .console import answer_text, describe_count, format_moment
from .sampled import Sampled

logger = logging.getLogger(__name__)


class Journal:
    """Prints what a run is watched to do, and writes it into files.

    Args:
        output_dir: of the run.
        show: number of sampled answers to print.
        writes: whether this process prints and writes.
    """

    def __init__(self, output_dir: str | Path, show: int, writes: bool) -> None:
        self.folder, self.show, self.writes = Path(output_dir), show, writes
        self._first_answers: dict[Any, str] = {}

    def begin(self, step: int) -> None:
        """Remove what was written of steps behind `step`, -1 for everything, and read the first answers."""
        self._guarded(lambda: self._begin(step))

    def tell(self, events: Sequence[Event]) -> None:
        """Print alarms and write them down."""
        if not self.writes or not events:
            return
        for event in events:
            logger.warning(f"  {event}")
        self._guarded(lambda: append_lines(self.folder / ALARMS_FILE, [event.as_line() for event in events]))

    def note(
        self,
        where: tuple[int, float | None, int],
        values: Mapping[str, float],
        sampled: Sampled,
        start: Mapping[str, float],
        *,
        evaluated: bool,
    ) -> None:
        """Print and write down the values of one time of watching.

        Args:
            where: step, epoch, and number of steps of the run.
            values: metrics now.
            sampled: the answers.
            start: metrics at the start.
            evaluated: whether the pairs are those of an evaluation, and not those of the last training steps.
        """
        if not self.writes:
            return
        step, epoch, max_steps = where
        title = f"step {step} of {max_steps}, {describe_count(values, sampled.rows, evaluated=evaluated)}"
        shown = list(sampled.rows)[: self.show]
        logger.info(format_moment(title, values, start, shown, self._first_answers, kl=sampled.kl))
        self._first_answers = {row["prompt_id"]: answer_text(row) for row in sampled.rows} | self._first_answers
        line = {"step": step, "epoch": epoch, "evaluated": evaluated, **values}
        self._guarded(lambda: append_lines(self.folder / METRICS_FILE, [line]))

    def say(self, text: str) -> None:
        """Print a line."""
        if self.writes:
            logger.info(text)

    def _begin(self, step: int) -> None:
        for name in (METRICS_FILE, ALARMS_FILE):
            cut_after(self.folder / name, step)
        for row in read_samples(self.folder / SAMPLES_FILE):
            self._first_answers.setdefault(row["prompt_id"], answer_text(row))

    def _guarded(self, write: Callable[[], None]) -> None:
        """Write; a disk that takes no more ends neither the run nor leaves other processes waiting."""
        if not self.writes:
            return
        try:
            write()
        except OSError as error:
            logger.warning(
                f"Watching could not write into {self.folder}: {error}. Free space, or check its permissions."
            )
