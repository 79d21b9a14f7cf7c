"""What passes of text and of images share: sharing work among processes, memory that runs out, progress, writing."""

from __future__ import annotations

import contextlib
import gc
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from ...checks.machine import is_out_of_memory
from ...errors import InputError
from ..store.store import Store
from ..store.writer import PartWriter
from .processes import Communicator

_FLUSH_SHARE = 0.1
"""Share of the elapsed time, between a second and a minute, after which a part is written: a kill costs no more."""

Result = TypeVar("Result")
Fetch = Callable[[], list[np.ndarray]]
"""Waits for the log-probs of every sequence of a batch, (completion tokens,) float32 each."""


@dataclass
class PrecomputeStats:
    """Statistics of a pass, over all processes."""

    found: int = 0
    """Sequences that the store already had."""
    computed: int = 0
    tokens: int = 0
    """Token positions without padding."""
    positions: int = 0
    """Token positions with padding."""
    scored: int = 0
    """Log-probs computed."""
    images: int = 0
    """Images that went through the vision tower."""
    seconds: float = 0.0
    """Time of this process."""

    def add(self, other: PrecomputeStats) -> None:
        """Add the statistics of another part of the pass."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def __str__(self) -> str:
        if not self.computed:
            return f"{self.found} sequences found, none to compute"
        padding = 1 - self.tokens / self.positions
        images = f", {self.images} images" if self.images else ""
        return (
            f"{self.found} sequences found, {self.computed} computed in {self.seconds:.1f} s "
            f"({self.positions} token positions, {padding:.1%} padding, {self.scored} log-probs{images})"
        )


class Work(Protocol):
    """What goes through the model together."""

    @property
    def size(self) -> int:
        """Number of parts that it could be split into."""
        ...

    @property
    def tokens(self) -> int:
        """Number of token positions without padding, as progress counts them."""
        ...

    @property
    def positions(self) -> int:
        """Number of token positions, padding included."""
        ...

    def halves(self) -> Sequence[Self]:
        """Split it into two; what has one part stays as it is."""
        ...

    def too_large(self, max_tokens: int) -> str:
        """What ran out of memory, and what to set."""
        ...


W = TypeVar("W", bound=Work)


@dataclass(frozen=True)
class Computed:
    """What came out of the model for some work; nothing for what only keeps other processes company."""

    sequences: Sequence[tuple[bytes, int, np.ndarray]] = ()
    """Key, tokens of the prompt, and log-probs."""
    stats: PrecomputeStats = field(default_factory=PrecomputeStats)


Start = Callable[[W], Callable[[], Computed]]
"""Starts work. What it returns waits for the results; it is called after the next work was started, so that a GPU does
not idle."""


class Pass(Protocol):
    """The settings that passes have in common."""

    store: Store
    max_tokens: int
    """Token positions per batch; lowered where memory runs out."""
    synchronous_forward: bool
    """Whether a forward waits for those of the other processes, as under FSDP and ZeRO-3."""
    communicator: Communicator
    title: str
    """What the progress bar says."""
    disable_tqdm: bool
    nonfinite: list[bytes] | None
    """Where the keys of sequences go whose log-probs are not finite; None makes the first of them an error. After the
    pass it holds those of all processes."""


def peers_of(settings: Pass, content: bytes) -> list[int]:
    """The ranks that share this process's work: those with one folder and the same data; every process calls this.

    Args:
        content: hash of what this process is to compute.
    """
    visible = _ranks_sharing(settings.store.folder, settings.communicator)
    of_all = settings.communicator.gather(content)
    return [rank for rank in visible if of_all[rank] == content]


def compute_all(
    settings: Pass,
    work: Iterable[W],
    start: Start[W],
    tokens: int,
    expected_sequences: int,
    expected_tokens: int = 0,
) -> PrecomputeStats:
    """Compute this process's work, and write it; every process calls this, and gets the statistics of all.

    Args:
        settings: of the pass; its `max_tokens` is lowered where memory runs out.
        work: that is not split any further where it fits, fillers included.
        start: see `Start`.
        tokens: of all the work, for the progress bar; 0 for none.
        expected_sequences, expected_tokens: that will be written, to check the free disk space.
    """
    communicator = settings.communicator
    progress = tqdm(
        total=tokens,
        desc=settings.title,
        unit=" tokens",
        unit_scale=True,
        disable=settings.disable_tqdm or communicator.rank > 0 or not tokens,
    )
    writer = settings.store.writer(expected_sequences=expected_sequences, expected_tokens=expected_tokens)
    run = _Run(settings, start, writer, progress)
    with writer, progress:
        try:
            for each in work:
                run.compute(each)
        except BaseException:
            with contextlib.suppress(Exception):  # the first error counts
                run.finish()
            raise
        run.finish()
    total = PrecomputeStats(seconds=time.perf_counter() - run.started)
    if settings.nonfinite is not None:
        settings.nonfinite[:] = {key for keys in communicator.gather(settings.nonfinite) for key in keys}
    for part in communicator.gather(run.stats):
        total.add(part)
    return total


class _Run:
    """One process's way through its work: each is fetched and written when the next one was started.

    Args:
        settings, start: see `compute_all`.
        writer: of the store.
        progress: counts tokens.
    """

    def __init__(self, settings: Pass, start: Start[Any], writer: PartWriter, progress: Any) -> None:
        self.settings, self.start, self.writer, self.progress = settings, start, writer, progress
        self.stats = PrecomputeStats()
        self.started = self._flushed = time.perf_counter()
        self._waiting: tuple[Work, Callable[[], Computed]] | None = None

    def compute(self, work: Work) -> None:
        """Start some work, and finish what was started before."""
        settings = self.settings
        if work.positions > settings.max_tokens and work.size > 1 and not settings.synchronous_forward:
            for half in work.halves():  # the limit was lowered after the work was cut
                self.compute(half)
            return
        fetch, failure = _unless_out_of_memory(lambda: self.start(work))
        self.finish()
        if fetch is None:
            self._halve(work, failure)
        else:
            self._waiting = work, fetch

    def finish(self) -> None:
        """Write what was started and is not yet written."""
        if self._waiting is None:
            return
        (work, fetch), self._waiting = self._waiting, None
        computed, failure = _unless_out_of_memory(fetch)
        if computed is None:
            self._halve(work, failure)
            self.finish()
            return
        refused = self.settings.nonfinite
        for key, prompt_tokens, logps in computed.sequences:
            if refused is not None and not np.isfinite(logps).all():
                refused.append(key)
            else:
                self.writer.add(key, prompt_tokens, logps)
        self.stats.add(computed.stats)
        self.progress.update(work.tokens)
        now = time.perf_counter()
        if now - self._flushed > min(max((now - self.started) * _FLUSH_SHARE, 1.0), 60.0):
            self.writer.flush()
            self._flushed = now

    def _halve(self, work: Work, failure: str) -> None:
        settings = self.settings
        if settings.synchronous_forward or work.size == 1:
            raise InputError(f"{work.too_large(settings.max_tokens)} Finished sequences are stored. ({failure})")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        settings.max_tokens = min(settings.max_tokens, max(work.positions // 2, 1))
        for half in work.halves():
            self.compute(half)


def _unless_out_of_memory(compute: Callable[[], Result]) -> tuple[Result | None, str]:
    """What `compute` returns; or None and what the library said, with the tensors of the failed forward freed."""
    try:
        return compute(), ""
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None, str(error)


def _ranks_sharing(folder: Path, communicator: Communicator) -> list[int]:
    """Return the ranks whose files are visible in `folder`: not those of a node with a local folder of that name."""
    mark = folder / f".process-{uuid.uuid4().hex}"
    mark.touch()
    marks = communicator.gather(mark.name)
    visible = [rank for rank, name in enumerate(marks) if (folder / name).exists()]
    communicator.gather(None)
    mark.unlink(missing_ok=True)
    return visible
