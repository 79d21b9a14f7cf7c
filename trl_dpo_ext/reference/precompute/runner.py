"""The reference pass: computes the log-probs that a store lacks, on several processes, and writes them to the store."""

from __future__ import annotations

import gc
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ...errors import InputError
from ..store.store import Store
from ..store.writer import PartWriter
from .batching import Batch, make_batches
from .sequences import TokenSequence

_FLUSH_SHARE = 0.1
"""Share of the elapsed time, between a second and a minute, after which a part is written: a kill costs no more."""

# What libraries raise, besides `torch.OutOfMemoryError`, when an allocation on the device (or on the CPU) fails.
_OUT_OF_MEMORY = (
    "out of memory",  # CUDA error, Triton Error [CUDA], HIP, XPU, MPS backend
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUDNN_STATUS_NOT_SUPPORTED",  # also raised for shapes that are too large
    "DefaultCPUAllocator: can't allocate memory",
    "PT_DEVMEM Allocation failed",  # HPU
)


@dataclass(frozen=True)
class Communicator:
    """Rank and collectives of a process; by default a single process."""

    rank: int = 0
    world_size: int = 1
    gather: Callable[[Any], list[Any]] = lambda value: [value]
    """Gathers one object of each process, ordered by rank, on every process; also used as a barrier."""


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
        return (
            f"{self.found} sequences found, {self.computed} computed in {self.seconds:.1f} s "
            f"({self.positions} token positions, {padding:.1%} padding, {self.scored} log-probs)"
        )


@dataclass
class ReferencePass:
    """Computes missing sequences and writes them to the store.

    Raises:
        InputError: a single sequence does not fit in memory, or the processes' stores are not one folder.
        StoreWriteError: the store could not be written.
    """

    store: Store
    score_batch: Callable[[Batch], list[np.ndarray]]
    """Gives the log-probs of every sequence of a batch, in its order, (completion tokens,) float32 each."""
    max_tokens: int
    """Token positions per batch. `run` lowers it to the smallest value of all processes, and where memory runs out."""
    share: bool = True
    """Whether the model can take several sequences in one row."""
    synchronous_forward: bool = False
    """Whether a forward waits for those of the other processes, as under FSDP and ZeRO-3."""
    communicator: Communicator = field(default_factory=Communicator)
    label: str = ""
    """Name of the data in the progress bar."""
    disable_tqdm: bool = False

    def run(self, wanted: dict[bytes, TokenSequence]) -> PrecomputeStats:
        """Compute what the store lacks of `wanted`; every process calls this with its own data.

        Afterwards `max_tokens` is a size that fits in memory, for use in the next pass.
        """
        self.store.refresh()
        # Free memory differs between devices, but processes that share batches must make the same ones.
        self.max_tokens = min(self.communicator.gather(self.max_tokens))
        missing = self.store.missing(wanted)
        batches = self._own_batches(missing, wanted)
        most = max(self.communicator.gather(len(batches)))
        stats = self._compute_all(batches, fillers=most - len(batches) if self.synchronous_forward else 0)
        total = PrecomputeStats(found=len(wanted) - len(missing), seconds=stats.seconds)
        for part in self.communicator.gather(stats):
            total.add(PrecomputeStats(**{**vars(part), "seconds": 0.0}))
        self.store.refresh()
        self._check_complete(wanted)
        return total

    def _own_batches(self, missing: list[bytes], wanted: dict[bytes, TokenSequence]) -> list[Batch]:
        """Return this process's batches: processes with one folder and the same data share them, others do not."""
        visible = _ranks_sharing(self.store.folder, self.communicator)
        of_all = self.communicator.gather(missing)
        peers = [rank for rank in visible if of_all[rank] == missing]
        batches = make_batches({key: wanted[key] for key in missing}, self.max_tokens, self.share)
        return batches[peers.index(self.communicator.rank) :: len(peers)]

    def _compute_all(self, batches: list[Batch], fillers: int) -> PrecomputeStats:
        stats = PrecomputeStats()
        progress = tqdm(
            total=sum(batch.tokens for batch in batches),
            desc=f"Reference log-probs of {self.label}",
            unit=" tokens",
            unit_scale=True,
            disable=self.disable_tqdm or self.communicator.rank > 0 or not batches,
        )
        writer = self.store.writer(
            expected_sequences=sum(len(batch.keys) for batch in batches),
            expected_tokens=sum(batch.scored for batch in batches),
        )
        started = flushed = time.perf_counter()
        with writer, progress:
            for batch in batches:
                self._compute(batch, writer, stats)
                progress.update(batch.tokens)
                now = time.perf_counter()
                if now - flushed > min(max((now - started) * _FLUSH_SHARE, 1.0), 60.0):
                    writer.flush()
                    flushed = now
            for _ in range(fillers):
                self.score_batch(_FILLER)
        stats.seconds = time.perf_counter() - started
        return stats

    def _compute(self, batch: Batch, writer: PartWriter, stats: PrecomputeStats) -> None:
        if batch.positions > self.max_tokens and len(batch.keys) > 1 and not self.synchronous_forward:
            for half in batch.halves():  # the limit was lowered after the batches were made
                self._compute(half, writer, stats)
            return
        try:
            values = self.score_batch(batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            failure = str(error)
        else:
            stats.computed += len(values)
            stats.tokens += batch.tokens
            stats.positions += batch.positions
            stats.scored += batch.scored
            for key, sequence, logps in zip(batch.keys, batch.sequences, values, strict=True):
                writer.add(key, len(sequence.prompt), logps)
            return
        # Outside the except clause, so that the tensors of the failed forward are free by now.
        if self.synchronous_forward or len(batch.keys) == 1:
            raise InputError(_out_of_memory(batch, self.max_tokens, failure))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.max_tokens = min(self.max_tokens, max(batch.positions // 2, 1))
        for half in batch.halves():
            self._compute(half, writer, stats)

    def _check_complete(self, wanted: dict[bytes, TokenSequence]) -> None:
        missing = len(self.store.missing(wanted))
        if missing:
            raise InputError(
                f"{missing} of {len(wanted)} sequences are still missing from {self.store.folder} after the reference "
                "pass. With several nodes, --ref_store must be on a shared filesystem."
            )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return True if a smaller batch may avoid this error."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY)


def _ranks_sharing(folder: Path, communicator: Communicator) -> list[int]:
    """Return the ranks whose files are visible in `folder`: not those of a node with a local folder of that name."""
    mark = folder / f".process-{uuid.uuid4().hex}"
    mark.touch()
    marks = communicator.gather(mark.name)
    visible = [rank for rank, name in enumerate(marks) if (folder / name).exists()]
    communicator.gather(None)
    mark.unlink(missing_ok=True)
    return visible


# For a process without batches left while the others' forwards wait for its own.
_FILLER = Batch((TokenSequence(np.zeros(1, np.int32), np.zeros(1, np.int32), 0),), (b"",), shared=False)


def _out_of_memory(batch: Batch, max_tokens: int, error: str) -> str:
    return (
        f"The reference pass ran out of memory on a batch of {batch.positions} token positions. Set "
        f"--precompute_ref_max_tokens below {min(max_tokens, batch.positions)} (the longest sequence needs "
        f"{batch.longest} here), or lower max_length. Finished sequences are stored. ({error})"
    )


def default_max_tokens(device: torch.device, config: Any, dtype: torch.dtype) -> int:
    """Return the token positions per batch that fit well: by a GPU's free memory, or a size that suits CPU caches.

    A forward without gradients holds, per position, about ten vectors of the hidden size and three of the MLP's; half
    of the free memory is kept in reserve. The head works in tiles of a fixed size.
    """
    if device.type != "cuda":
        return 2048
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # cached blocks are free, too
    hidden = config.hidden_size
    per_position = dtype.itemsize * (10 * hidden + 3 * getattr(config, "intermediate_size", 4 * hidden))
    return int(min(max(free / 2 / per_position, 4096), 131072))


def split_by_length(values: Sequence[float], lengths: Sequence[int]) -> list[np.ndarray]:
    """Split `values` into consecutive arrays of these lengths."""
    array = np.asarray(values, dtype=np.float32)
    return np.split(array, np.cumsum(lengths)[:-1])
