"""The reference pass: computes the log-probs that a store lacks, on several processes, and writes them to the store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..store.store import Store
from .batching import MOST_KEYS, Batch, make_batches
from .pass_run import Computed, Fetch, PrecomputeStats, compute_all, peers_of
from .processes import Communicator
from .sequences import TokenSequence


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
        fillers = [_FILLER] * (most - len(batches)) if self.synchronous_forward else []
        return compute_all(
            self,
            [*batches, *fillers],
            self._start,
            tokens=sum(batch.tokens for batch in batches),
            expected_sequences=sum(len(batch.keys) for batch in batches),
            expected_tokens=sum(batch.scored for batch in batches),
        )

    def _own_batches(self, missing: dict[bytes, TokenSequence]) -> list[Batch]:
        """Return this process's batches: processes with one folder and the same data share them, others do not."""
        peers = peers_of(self, hashlib.blake2b(b"".join(missing), digest_size=16).digest())
        batches = make_batches(missing, self.max_tokens, self.share)
        return batches[peers.index(self.communicator.rank) :: len(peers)]

    def _start(self, batch: Batch) -> Callable[[], Computed]:
        fetch = self.start_batch(batch)

        def computed() -> Computed:
            values = fetch()
            if batch is _FILLER:
                return Computed()
            prompts = [len(sequence.prompt) for sequence in batch.sequences]
            stats = PrecomputeStats(
                computed=len(values), tokens=batch.tokens, positions=batch.positions, scored=batch.scored
            )
            return Computed(list(zip(batch.keys, prompts, values, strict=True)), stats)

        return computed


# For a process without batches left while the others' forwards wait for its own.
_FILLER = Batch((TokenSequence(np.zeros(1, np.int32), np.zeros(1, np.int32), 0),), (b"",), shared=False)


def default_max_tokens(
    device: torch.device, config: Any, dtype: torch.dtype, longest: int = 0, at_least: int = 0
) -> int:
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
        at_least: bytes per position that another part of the model holds before.
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
    per_position = max(per_position, at_least)
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
