"""The reference pass: computes the log-probs that a store lacks, on several processes, and writes them to the store."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from ...checks.machine import is_out_of_memory
from ...errors import InputError
from ..store.store import Store
from ..store.writer import PartWriter
from .batching import MOST_KEYS, Batch, make_batches
from .processes import Communicator
from .sequences import TokenSequence

_FLUSH_SHARE = 0.1
"""Share of the elapsed time, between a second and a minute, after which a part is written: a kill costs no more."""

Result = TypeVar("Result")


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


Fetch = Callable[[], list[np.ndarray]]


@dataclass
class ReferencePass:
    """Computes sequences and writes them to the store.

    Raises:
        InputError: a single sequence does not fit in memory.
        StoreWriteError: the store could not be written.
    """

    store: Store
    start_batch: Callable[[Batch], Fetch]
    """Starts to compute a batch. What it returns waits for the log-probs of every sequence, in the batch's order,
    (completion tokens,) float32 each; it is called after the next batch was started, so that a GPU does not idle."""
    max_tokens: int
    """Token positions per batch. `run` lowers it to the smallest value of all processes, and where memory runs out."""
    share: bool = True
    """Whether the model can take several sequences in one row."""
    synchronous_forward: bool = False
    """Whether a forward waits for those of the other processes, as under FSDP and ZeRO-3."""
    communicator: Communicator = field(default_factory=Communicator)
    title: str = ""
    """What the progress bar says."""
    disable_tqdm: bool = False
    nonfinite: list[bytes] | None = None
    """Where the keys of sequences go whose log-probs are not finite; None makes the first of them an error. After `run`
    it holds those of all processes."""

    def run(self, missing: dict[bytes, TokenSequence]) -> PrecomputeStats:
        """Compute sequences that the store lacks; every process calls this with its own.

        Afterwards `max_tokens` is a size that fits in memory, for use in the next pass.
        """
        # Free memory differs between devices, but processes that share batches must make the same ones.
        self.max_tokens = min(self.communicator.gather(self.max_tokens))
        batches = self._own_batches(missing)
        most = max(self.communicator.gather(len(batches)))
        stats = self._compute_all(batches, fillers=most - len(batches) if self.synchronous_forward else 0)
        if self.nonfinite is not None:
            self.nonfinite[:] = {key for keys in self.communicator.gather(self.nonfinite) for key in keys}
        total = PrecomputeStats(seconds=stats.seconds)
        for part in self.communicator.gather(stats):
            total.add(PrecomputeStats(**{**vars(part), "seconds": 0.0}))
        return total

    def _own_batches(self, missing: dict[bytes, TokenSequence]) -> list[Batch]:
        """Return this process's batches: processes with one folder and the same data share them, others do not."""
        visible = _ranks_sharing(self.store.folder, self.communicator)
        mine = hashlib.blake2b(b"".join(missing), digest_size=16).digest()
        of_all = self.communicator.gather(mine)
        peers = [rank for rank in visible if of_all[rank] == mine]
        batches = make_batches(missing, self.max_tokens, self.share)
        return batches[peers.index(self.communicator.rank) :: len(peers)]

    def _compute_all(self, batches: list[Batch], fillers: int) -> PrecomputeStats:
        progress = tqdm(
            total=sum(batch.tokens for batch in batches),
            desc=self.title,
            unit=" tokens",
            unit_scale=True,
            disable=self.disable_tqdm or self.communicator.rank > 0 or not batches,
        )
        writer = self.store.writer(
            expected_sequences=sum(len(batch.keys) for batch in batches),
            expected_tokens=sum(batch.scored for batch in batches),
        )
        run = _Run(self, writer, progress)
        with writer, progress:
            try:
                for batch in batches:
                    run.compute(batch)
            except BaseException:
                with contextlib.suppress(Exception):  # the first error counts
                    run.finish()
                raise
            run.finish()
            for _ in range(fillers):
                self.start_batch(_FILLER)()
        run.stats.seconds = time.perf_counter() - run.started
        return run.stats


class _Run:
    """One process's way through its batches: each is fetched and written when the next one was started.

    Args:
        settings: of the pass; its `max_tokens` is lowered where memory runs out.
        writer: of the store.
        progress: counts tokens.
    """

    def __init__(self, settings: ReferencePass, writer: PartWriter, progress: Any) -> None:
        self.settings, self.writer, self.progress = settings, writer, progress
        self.stats = PrecomputeStats()
        self.started = self._flushed = time.perf_counter()
        self._waiting: tuple[Batch, Fetch] | None = None

    def compute(self, batch: Batch) -> None:
        """Start a batch, and finish the one before."""
        settings = self.settings
        if batch.positions > settings.max_tokens and len(batch.keys) > 1 and not settings.synchronous_forward:
            for half in batch.halves():  # the limit was lowered after the batches were made
                self.compute(half)
            return
        fetch, failure = _unless_out_of_memory(lambda: settings.start_batch(batch))
        self.finish()
        if fetch is None:
            self._halve(batch, failure)
        else:
            self._waiting = batch, fetch

    def finish(self) -> None:
        """Write what was started and is not yet written."""
        if self._waiting is None:
            return
        (batch, fetch), self._waiting = self._waiting, None
        values, failure = _unless_out_of_memory(fetch)
        if values is None:
            self._halve(batch, failure)
            self.finish()
            return
        refused = self.settings.nonfinite
        for key, sequence, logps in zip(batch.keys, batch.sequences, values, strict=True):
            if refused is not None and not np.isfinite(logps).all():
                refused.append(key)
            else:
                self.writer.add(key, len(sequence.prompt), logps)
        done = {"computed": len(values), "tokens": batch.tokens, "positions": batch.positions, "scored": batch.scored}
        self.stats.add(PrecomputeStats(**done))
        self.progress.update(batch.tokens)
        now = time.perf_counter()
        if now - self._flushed > min(max((now - self.started) * _FLUSH_SHARE, 1.0), 60.0):
            self.writer.flush()
            self._flushed = now

    def _halve(self, batch: Batch, failure: str) -> None:
        settings = self.settings
        if settings.synchronous_forward or len(batch.keys) == 1:
            raise InputError(_out_of_memory(batch, settings.max_tokens, failure))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        settings.max_tokens = min(settings.max_tokens, max(batch.positions // 2, 1))
        for half in batch.halves():
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


# For a process without batches left while the others' forwards wait for its own.
_FILLER = Batch((TokenSequence(np.zeros(1, np.int32), np.zeros(1, np.int32), 0),), (b"",), shared=False)


def _out_of_memory(batch: Batch, max_tokens: int, error: str) -> str:
    return (
        f"The reference pass ran out of memory on a batch of {batch.positions} token positions. Set "
        f"--precompute_ref_max_tokens below {min(max_tokens, batch.positions)} (the longest sequence needs "
        f"{batch.longest} here), or lower max_length. Finished sequences are stored. ({error})"
    )


def default_max_tokens(device: torch.device, config: Any, dtype: torch.dtype, longest: int = 0) -> int:
    """Return the token positions per batch that fit well: by a GPU's free memory, or a size that suits CPU caches.

    A forward without gradients holds, per position of a packed row, about ten vectors of the hidden size and three of
    the MLP's, and the copies of keys and values that attention makes for each sequence, of which `make_batches` allows
    `MOST_KEYS` per position; with eager attention also a score for every key and head, as such, in float32, and as a
    weight. Half of the free memory is kept in reserve. The head works in tiles of a fixed size.

    Args:
        device: that runs the model.
        config: of the model's text part.
        dtype: of the model.
        longest: tokens of the longest sequence.
    """
    if device.type != "cuda":
        return 2048
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # cached blocks are free, too
    hidden = config.hidden_size
    mlp = getattr(config, "intermediate_size", None) or 4 * hidden
    experts = getattr(config, "num_experts_per_tok", None) or 0
    mlp = max(mlp, experts * (getattr(config, "moe_intermediate_size", None) or mlp))
    heads = getattr(config, "num_attention_heads", None) or 1
    of_keys = getattr(config, "num_key_value_heads", None) or heads
    keys = 2 * of_keys * (getattr(config, "head_dim", None) or hidden // heads)
    per_position = dtype.itemsize * (10 * hidden + 3 * mlp + MOST_KEYS * keys)
    if config._attn_implementation == "eager":
        per_position += heads * longest * (2 * dtype.itemsize + 4)
    return int(min(max(free / 2 / per_position, 4096), 131072))


def fetched_later(logps: torch.Tensor, lengths: Sequence[int]) -> Fetch:
    """Start to copy log-probs to the CPU, and return a function that waits for the copy and splits it.

    Args:
        logps: (log-probs,), of several sequences one after the other.
        lengths: (sequences,) number of log-probs of each.
    """
    copy = logps.float().to("cpu", non_blocking=logps.is_cuda)  # into pinned memory
    done = torch.cuda.current_stream(logps.device).record_event() if logps.is_cuda else None

    def fetch() -> list[np.ndarray]:
        if done is not None:
            done.synchronize()
        return np.split(copy.numpy(), np.cumsum(lengths)[:-1])

    return fetch
