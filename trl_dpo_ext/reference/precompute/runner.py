"""The reference pass: computes what a store lacks, over several processes, and keeps what it has computed."""

from __future__ import annotations

import gc
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ...errors import InputError
from ..store.store import Store
from .batching import Batch, Row, make_batches
from .sequences import Sequence as TokenSequence

_AT_STAKE = 0.1
"""The share of a pass, up to a minute of it, that a kill may cost; between a second and that, a part is written."""

Score = Callable[[Batch], list[np.ndarray]]
"""Log-probs of every sequence of a batch, row by row, each (completion tokens,) float32."""


@dataclass(frozen=True)
class Communicator:
    """The processes of a run, and how they tell each other things; alone by default."""

    index: int = 0
    count: int = 1
    gather: Callable[[Any], list[Any]] = lambda value: [value]
    """One object of each process, in their order, on every process. Also where they wait for one another."""


@dataclass
class PrecomputeStats:
    """What a pass did, over all processes."""

    found: int = 0
    """Sequences that the store had."""
    computed: int = 0
    tokens: int = 0
    """Token positions fed, without padding."""
    positions: int = 0
    """Token positions fed, with padding."""
    scored: int = 0
    """Log-probs computed."""
    seconds: float = 0.0
    """Of this process."""

    def add(self, other: PrecomputeStats) -> None:
        """Sum up parts of one pass."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def __str__(self) -> str:
        if not self.computed:
            return f"{self.found} sequences found, none to compute"
        padding = 1 - self.tokens / self.positions
        return (
            f"{self.found} sequences found, {self.computed} computed in {self.seconds:.1f} s "
            f"({self.positions} token positions, {padding:.1%} padding, {self.scored} log-probs)"
        )


@dataclass
class ReferencePass:
    """Computes missing sequences and puts them into the store.

    Raises:
        InputError: one sequence alone does not fit in memory, or the processes' stores are not one folder.
    """

    store: Store
    score: Score
    hidden_size: int
    max_tokens: int
    share: bool = True
    """Whether completions of one prompt may share a row."""
    synchronous_forward: bool = False
    """Whether a forward waits for those of the other processes, as under FSDP and ZeRO-3."""
    processes: Communicator = field(default_factory=Communicator)
    label: str = ""
    """What the progress bar calls the data."""
    silent: bool = False

    def run(self, wanted: dict[bytes, TokenSequence]) -> PrecomputeStats:
        """Fill the store with what it lacks of `wanted`; every process calls this with its own data."""
        self.store.refresh()
        missing = self.store.missing(wanted)
        batches = self._mine(missing, wanted)
        most = max(self.processes.gather(len(batches)))
        started = time.perf_counter()
        report = PrecomputeStats()
        shown = tqdm(
            total=sum(batch.tokens for batch in batches),
            desc=f"Reference log-probs of {self.label}",
            unit=" tokens",
            unit_scale=True,
            disable=self.silent or self.processes.index > 0 or not batches,
        )
        room = {
            "expected_sequences": sum(len(row.keys) for batch in batches for row in batch.rows),
            "expected_tokens": sum(batch.scored for batch in batches),
        }
        with self.store.writer(**room) as writer, shown:
            written = started
            for batch in batches:
                self._compute(batch, writer, report)
                shown.update(batch.tokens)
                now = time.perf_counter()
                if now - written > min(max((now - started) * _AT_STAKE, 1.0), 60.0):
                    writer.flush()
                    written = now
            if self.synchronous_forward:
                for _ in range(most - len(batches)):
                    self.score(_FILLER)
        report.seconds = time.perf_counter() - started
        total = PrecomputeStats(found=len(wanted) - len(missing), seconds=report.seconds)
        for part in self.processes.gather(report):
            total.add(PrecomputeStats(**{**vars(part), "seconds": 0.0}))
        self.store.refresh()
        self._check_complete(wanted)
        return total

    def _mine(self, missing: list[bytes], wanted: dict[bytes, TokenSequence]) -> list[Batch]:
        """This process's share. Processes with one folder and the same data share the work, others do their own."""
        seen = _sees(self.store.folder, self.processes)
        theirs = self.processes.gather(missing)
        peers = [index for index in seen if theirs[index] == missing]
        plan = make_batches({key: wanted[key] for key in missing}, self.max_tokens, self.hidden_size, self.share)
        return plan[peers.index(self.processes.index) :: len(peers)]

    def _compute(self, batch: Batch, writer: Any, report: PrecomputeStats) -> None:
        if batch.positions > self.max_tokens and len(batch.rows) > 1 and not self.synchronous_forward:
            for part in batch.halves():  # the limit has been lowered since the batch was planned
                self._compute(part, writer, report)
            return
        try:
            values = self.score(batch)
        except torch.OutOfMemoryError as error:
            failed = str(error)
        else:
            report.computed += len(values)
            report.tokens += batch.tokens
            report.positions += batch.positions
            report.scored += batch.scored
            for (key, sequence), logps in zip(_items(batch.rows), values, strict=True):
                writer.add(key, len(sequence.prompt), logps)
            return
        # Outside the except clause, so that the failed forward's tensors are free by now.
        smaller = batch.halves()
        if self.synchronous_forward or (len(batch.rows) == 1 and len(batch.rows[0].keys) == 1):
            raise InputError(_too_large(batch, self.max_tokens, failed))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.max_tokens = min(self.max_tokens, max(batch.positions // 2, 1))
        for part in smaller:
            self._compute(part, writer, report)

    def _check_complete(self, wanted: dict[bytes, TokenSequence]) -> None:
        lacking = len(self.store.missing(wanted))
        if lacking:
            raise InputError(
                f"After the pass the store at {self.store.folder} still lacks {lacking} of {len(wanted)} sequences "
                "here. Where several nodes run, put --ref_store on a folder that they all see."
            )


def _sees(folder: Path, processes: Communicator) -> list[int]:
    """Which processes' files this one sees in `folder`: not those of a node that has a folder of its own there."""
    mark = folder / f".process-{uuid.uuid4().hex}"
    mark.touch()
    marks = processes.gather(mark.name)
    seen = [index for index, name in enumerate(marks) if (folder / name).exists()]
    processes.gather(None)
    mark.unlink(missing_ok=True)
    return seen


def _items(rows: Iterable[Row]) -> Iterable[tuple[bytes, TokenSequence]]:
    for row in rows:
        yield from zip(row.keys, row.sequences, strict=True)


# For a process that has nothing left to do but must not let the others wait.
_FILLER = Batch((Row((b"",), (TokenSequence(np.zeros(1, np.int32), np.zeros(1, np.int32), 0),)),))


def _too_large(batch: Batch, max_tokens: int, error: str) -> str:
    return (
        f"The reference pass ran out of memory on a batch of {batch.positions} token positions. Set "
        f"--precompute_ref_max_tokens below {min(max_tokens, batch.positions)} (one sequence has to fit: "
        f"{max(row.width for row in batch.rows)} here), or lower max_length. What was computed is kept. ({error})"
    )


def default_max_tokens(device: torch.device, config: Any, dtype: torch.dtype) -> int:
    """Token positions per batch that fit well: from the free memory of a GPU, a size that suits caches on a CPU.

    A forward without gradients holds, per position, about ten vectors of the hidden size and three of the MLP's; half
    of what is free is left alone. The head works in tiles of a fixed size.
    """
    if device.type != "cuda":
        return 2048
    free, _ = torch.cuda.mem_get_info(device)
    hidden = config.hidden_size
    per_position = dtype.itemsize * (10 * hidden + 3 * getattr(config, "intermediate_size", 4 * hidden))
    return int(min(max(free / 2 / per_position, 4096), 131072))


def spread(values: Sequence[float], lengths: Sequence[int]) -> list[np.ndarray]:
    """Consecutive runs of `values`, of these lengths."""
    array = np.asarray(values, dtype=np.float32)
    return np.split(array, np.cumsum(lengths)[:-1])
