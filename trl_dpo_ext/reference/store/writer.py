"""Write sequences to a store: buffer them in memory and write a part about once a minute."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from ...errors import InputError, StoreWriteError
from .keys import KEY_BYTES
from .manifest import PARTS
from .parts import CorruptPartError, Part, merge_parts, write_part

MERGED_AT, MERGED_SEQUENCES, MERGED_TOKENS = 32, 400_000, 16_000_000
_BYTES_PER_TOKEN, _BYTES_PER_SEQUENCE = 4, 48


class AddPart(Protocol):
    """Callback of a writer to its store."""

    def __call__(self, part: Part, replaces: Sequence[Part] = ()) -> None:
        """Add a part that was just written, and drop the parts that it was merged from."""


class PartWriter:
    """Buffers sequences and writes them as parts. Created by `Store.writer` and used as a context manager.

    The end of the `with` block writes the buffer, also if an exception ends the block. A process that is killed loses
    what it buffered since its last part: at most `sequences`, `tokens` or about `seconds`, whichever comes first.

    Args:
        folder: of the store.
        fingerprint: of the identity of the reference.
        add_part: called with every part as soon as it is written.
        sequences, tokens: sizes at which a part is written (4 million tokens are 16 MB).
        seconds: age of the oldest buffered sequence at which a part is written.
        expected_sequences, expected_tokens: how much will be added, to check the free disk space.

    Raises:
        InputError: the disk has too little free space.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        add_part: AddPart,
        *,
        sequences: int = 100_000,
        tokens: int = 4_000_000,
        seconds: float = 60.0,
        expected_sequences: int = 0,
        expected_tokens: int = 0,
    ) -> None:
        self._folder, self._fingerprint, self._add_part = folder, fingerprint, add_part
        self._limits = sequences, tokens, seconds
        self._buffer: dict[bytes, tuple[int, np.ndarray]] = {}
        self._buffered_tokens = 0
        self._buffering_since = 0.0
        self._own_parts: list[Part] = []
        self.written = 0
        self._check_space(_BYTES_PER_SEQUENCE * expected_sequences + _BYTES_PER_TOKEN * expected_tokens)

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise InputError(
                f"The reference store {self._folder} needs about {needed / 1e9:.1f} GB more, but its disk has "
                f"{free / 1e9:.1f} GB free. Free some space, or choose a --ref_store directory on another disk."
            )

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if not isinstance(error, StoreWriteError):
            self.flush()

    def add(self, key: bytes, prompt_tokens: int, token_logps: np.ndarray) -> None:
        """Add a sequence, unless it is buffered already.

        Args:
            key: from `sequence_key`.
            prompt_tokens: length of the prompt.
            token_logps: (completion_tokens,) log-prob of each token; stored as float32.

        Raises:
            ValueError: the log-probs are not finite, or have another shape.
            StoreWriteError: a part was due and could not be written.
        """
        if len(key) != KEY_BYTES:
            raise ValueError(f"Keys must have {KEY_BYTES} bytes; make them with sequence_key.")
        logps = _checked_logps(key, token_logps)
        if key in self._buffer:
            return
        if not self._buffer:
            self._buffering_since = time.monotonic()
        self._buffer[key] = (int(prompt_tokens), logps)
        self._buffered_tokens += len(logps)
        if self._is_due():
            self.flush()

    def _is_due(self) -> bool:
        sequences, tokens, seconds = self._limits
        age = time.monotonic() - self._buffering_since
        return len(self._buffer) >= sequences or self._buffered_tokens >= tokens or age >= seconds

    def flush(self) -> None:
        """Write the buffer as a part; returns when the part is on the disk.

        Raises:
            StoreWriteError: the disk is full or fails. Earlier parts are untouched, the buffer is kept, and `flush` may
                be called again.
        """
        if not self._buffer:
            return
        rows = list(self._buffer.values())
        try:
            part = write_part(
                self._folder / PARTS,
                self._fingerprint,
                list(self._buffer),
                [prompt_tokens for prompt_tokens, _ in rows],
                [logps for _, logps in rows],
            )
        except OSError as error:
            raise StoreWriteError(self._not_written(error), len(rows)) from error
        self._add_part(part)
        self._own_parts.append(part)
        self.written += len(rows)
        self._buffer, self._buffered_tokens = {}, 0
        if len(self._own_parts) >= MERGED_AT:
            self._merge()

    def _merge(self) -> None:
        """Merge this writer's small parts, so that a pass of many hours does not leave thousands.

        The merged part is on the disk before the small ones are removed: a process that dies in between leaves equal
        duplicates, and one that has just opened a removed part refreshes (see `Store.load`).
        """
        small = _mergeable(self._own_parts)
        self._own_parts = self._own_parts[len(small) :]
        if len(small) == 1:
            return
        with contextlib.suppress(OSError, CorruptPartError):  # the small parts stay
            merged = merge_parts(small)
            self._add_part(merged, replaces=small)
            for part in small:
                part.path.unlink(missing_ok=True)
            self._own_parts.insert(0, merged)

    def _not_written(self, error: OSError) -> str:
        return (
            f"Cannot write to the reference store {self._folder}: {error.strerror}. {self.written} sequences of this "
            f"run are stored, the last {len(self._buffer)} are not. Free some space or repair the disk, and run again: "
            "only missing sequences are computed."
        )


def _checked_logps(key: bytes, token_logps: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # an overflow to infinity is found below
        logps = np.array(token_logps, dtype=np.float32)  # a copy: the caller may reuse its buffer
    if logps.ndim != 1:
        raise ValueError(f"token_logps must have the shape (completion_tokens,); got {logps.shape}.")
    if not np.isfinite(logps).all():
        at = int(np.flatnonzero(~np.isfinite(logps))[0])
        raise ValueError(
            f"The reference model gives token {at} of sequence {key.hex()} the log-prob {logps[at]}; log-probs must be "
            "finite. Check the reference for NaN weights and for overflow in its dtype (float16)."
        )
    return logps


def _mergeable(parts: list[Part]) -> list[Part]:
    """Return as many of the first parts as fit into one merged part; at least one."""
    sequences = np.cumsum([part.sequences for part in parts])
    tokens = np.cumsum([part.tokens for part in parts])
    return parts[: max(1, int(((sequences <= MERGED_SEQUENCES) & (tokens <= MERGED_TOKENS)).sum()))]
