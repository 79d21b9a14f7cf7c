"""Adding to a store: sequences are gathered in memory and written as parts, one about every minute."""

from __future__ import annotations

import contextlib
import shutil
import time
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from ...errors import InputError
from .keys import KEY_BYTES
from .manifest import PARTS
from .parts import CorruptPartError, Part, merge_parts, write_part

if TYPE_CHECKING:
    from .store import Store

MERGED_AT, MERGED_SEQUENCES, MERGED_TOKENS = 32, 400_000, 16_000_000
_BYTES_PER_TOKEN, _BYTES_PER_SEQUENCE = 4, 48


class StoreWriteError(InputError):
    """A part could not be written; the message says what is kept.

    Attributes:
        lost (`int`): Sequences that were given to the writer and are not on the disk; the writer still holds them.
    """

    def __init__(self, message: str, lost: int) -> None:
        super().__init__(message)
        self.lost = lost


class PartWriter:
    """Gathers sequences and writes them as parts; made by `Store.writer`, closed at the end of its `with` block.

    The block's end writes what is gathered also when an exception ends it. A process that is killed loses what it had
    gathered since its last part: at most about `seconds`, or `sequences`, or `tokens`, whichever comes first.

    Args:
        store (`Store`): Which; sees every part as soon as it is written.
        sequences, tokens (`int`): A part is written when it holds this many (4 million tokens are 16 MB).
        seconds (`float`): Or when the oldest sequence in it has waited this long.
        expected_sequences, expected_tokens (`int`): How much will be added; refused at once where the disk has no room.

    Raises:
        InputError: When the disk has too little room.
    """

    def __init__(
        self,
        store: Store,
        *,
        sequences: int = 100_000,
        tokens: int = 4_000_000,
        seconds: float = 60.0,
        expected_sequences: int = 0,
        expected_tokens: int = 0,
    ) -> None:
        self._store = store
        self._limits = sequences, tokens, seconds
        self._gathered: dict[bytes, tuple[int, np.ndarray]] = {}
        self._own: list[Part] = []
        self._tokens = 0
        self._since = 0.0
        self.written = 0
        self._check_room(_BYTES_PER_SEQUENCE * expected_sequences + _BYTES_PER_TOKEN * expected_tokens)

    def _check_room(self, needed: int) -> None:
        free = shutil.disk_usage(self._store.folder).free
        if needed > free:
            raise InputError(
                f"The store at {self._store.folder} needs about {needed / 1e9:.1f} GB more and its disk has "
                f"{free / 1e9:.1f} GB left. Free some space, or name a folder on another disk as --ref_store."
            )

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if not isinstance(error, StoreWriteError):
            self.flush()

    def add(self, key: bytes, prompt_tokens: int, token_logps: np.ndarray) -> None:
        """Add a sequence; one that is gathered already is left as it is.

        Args:
            key (`bytes`): From `sequence_key`.
            prompt_tokens (`int`): Length of the prompt.
            token_logps (`np.ndarray` of shape `(completion_tokens,)`): Log-prob of each token; kept as float32.

        Raises:
            ValueError: For NaN or infinite log-probs, and other shapes.
            StoreWriteError: When a part was due and could not be written.
        """
        if len(key) != KEY_BYTES:
            raise ValueError(f"Keys have {KEY_BYTES} bytes: make them with sequence_key.")
        with np.errstate(over="ignore"):  # found below
            logps = np.array(token_logps, dtype=np.float32)  # a copy: the caller may use its buffer again
        if logps.ndim != 1:
            raise ValueError(f"token_logps must have the shape (completion_tokens,); got {logps.shape}.")
        if not np.isfinite(logps).all():
            at = int(np.flatnonzero(~np.isfinite(logps))[0])
            raise ValueError(
                f"The reference gives token {at} of sequence {key.hex()} the log-prob {logps[at]}: log-probs must be "
                "finite. Does the reference overflow in its dtype (float16?), or hold NaN weights?"
            )
        if key in self._gathered:
            return
        if not self._gathered:
            self._since = time.monotonic()
        self._gathered[key] = (int(prompt_tokens), logps)
        self._tokens += len(logps)
        if self._due():
            self.flush()

    def _due(self) -> bool:
        sequences, tokens, seconds = self._limits
        waited = time.monotonic() - self._since
        return len(self._gathered) >= sequences or self._tokens >= tokens or waited >= seconds

    def flush(self) -> None:
        """Write what is gathered as a part; returns when it is on the disk.

        Raises:
            StoreWriteError: When the disk is full or fails; nothing that was written before is touched, what is
                gathered stays gathered, and `flush` may be tried again.
        """
        if not self._gathered:
            return
        rows = list(self._gathered.values())
        try:
            part = write_part(
                self._store.folder / PARTS,
                self._store.identity.fingerprint,
                list(self._gathered),
                [prompt_tokens for prompt_tokens, _ in rows],
                [logps for _, logps in rows],
            )
        except OSError as error:
            raise StoreWriteError(self._not_written(error), len(rows)) from error
        self._store.add_part(part)
        self._own.append(part)
        self.written += len(rows)
        self._gathered, self._tokens = {}, 0
        if len(self._own) >= MERGED_AT:
            self._merge()

    def _merge(self) -> None:
        """Make one part of this writer's small ones, so that a pass of many hours does not leave thousands.

        The new part is on the disk before the old ones go; a process that dies between leaves equal duplicates, and one
        that has just opened an old one looks again (see `Store.load`).
        """
        some = _first_that_fit(self._own)
        self._own = self._own[len(some) :]
        if len(some) == 1:
            return
        with contextlib.suppress(OSError, CorruptPartError):  # then they stay as they are
            merged = merge_parts(some)
            self._store.add_part(merged, instead_of=some)
            for part in some:
                part.path.unlink(missing_ok=True)
            self._own.insert(0, merged)

    def _not_written(self, error: OSError) -> str:
        return (
            f"The store at {self._store.folder} cannot be written: {error.strerror}. {self.written} sequences of this "
            f"run are kept, the last {len(self._gathered)} are not. Run again when that is mended (free space?): only "
            "what is missing is computed."
        )


def _first_that_fit(parts: list[Part]) -> list[Part]:
    """As many, from the first, as one merged part may hold; at least one."""
    sequences = np.cumsum([part.sequences for part in parts])
    tokens = np.cumsum([part.tokens for part in parts])
    return parts[: max(1, int(((sequences <= MERGED_SEQUENCES) & (tokens <= MERGED_TOKENS)).sum()))]
