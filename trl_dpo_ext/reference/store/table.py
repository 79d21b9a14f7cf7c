"""The stored log-probs that one run needs, in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .keys import KeyIndex, pack_keys
from .parts import Part, read_logps


class MissingSequenceError(LookupError):
    """Sequences whose log-probs are not held.

    Attributes:
        keys (`list[bytes]`): Which.
    """

    def __init__(self, keys: Sequence[bytes], where: str) -> None:
        self.keys, self.where = list(keys), where
        self.number = len(self.keys)
        super().__init__(self.keys, where)  # its arguments again, so that it survives a process boundary

    def __str__(self) -> str:
        are = "sequence is" if self.number == 1 else "sequences are"
        return f"{self.number} {are} not in {self.where}; the first has the key {self.keys[0].hex()}."


@dataclass(frozen=True)
class LogpTable:
    """Token log-probs by key; arrays only, so that forked workers share them and spawned ones can be sent them.

    Attributes:
        index (`KeyIndex`): From key to row.
        offsets (`np.ndarray` of shape `(sequences + 1,)`): Where each row begins in `flat`.
        flat (`np.ndarray` of shape `(tokens,)`): Log-probs, float32.
        where (`str`): The store they are of.
    """

    index: KeyIndex
    offsets: np.ndarray
    flat: np.ndarray
    where: str

    def __len__(self) -> int:
        return len(self.index)

    def __contains__(self, key: bytes) -> bool:
        return bool(self.index.find(pack_keys([key]))[0] >= 0)

    def __getitem__(self, key: bytes) -> np.ndarray:
        """Float32 of shape `(completion_tokens,)`; a view."""
        return self.values([key])[0]

    def values(self, keys: Iterable[bytes]) -> list[np.ndarray]:
        """Of several sequences.

        Raises:
            MissingSequenceError: When one is not there.
        """
        keys = list(keys)
        rows = self.index.find(pack_keys(keys))
        if (rows < 0).any():
            raise MissingSequenceError([keys[at] for at in np.flatnonzero(rows < 0)], self.where)
        return [self.flat[self.offsets[row] : self.offsets[row + 1]] for row in rows]

    @property
    def nbytes(self) -> int:
        """Memory taken."""
        index = self.index
        return sum(x.nbytes for x in (index.high, index.low, index.positions, self.offsets, self.flat))


def load_table(folder: Path, parts: Sequence[Part], index: KeyIndex, wanted: list[bytes] | None) -> LogpTable:
    """Read what is wanted, each part once and in order.

    Raises:
        MissingSequenceError: When one is not held.
        CorruptPartError: When a part is not what was written.
        FileNotFoundError: When one is gone.
    """
    where = f"the store at {folder}"
    positions = index.positions if wanted is None else index.find(pack_keys(wanted))
    if wanted is not None and (positions < 0).any():
        raise MissingSequenceError([wanted[at] for at in np.flatnonzero(positions < 0)], where)
    positions = np.sort(positions)  # part by part
    starts = np.cumsum([0, *(part.sequences for part in parts)])
    bounds = np.searchsorted(positions, starts)
    rows = [positions[a:b] - start for a, b, start in zip(bounds, bounds[1:], starts, strict=False)]
    offsets = np.zeros(len(positions) + 1, dtype=np.int64)
    words = np.empty((len(positions), 2), dtype=np.uint64)
    for part, chosen, a, b in zip(parts, rows, bounds, bounds[1:], strict=False):
        offsets[a + 1 : b + 1] = part.completion_tokens[chosen]
        words[a:b] = part.words[chosen]
    np.cumsum(offsets, out=offsets)
    flat = np.empty(offsets[-1], dtype=np.float32)
    for part, chosen, a, b in zip(parts, rows, bounds, bounds[1:], strict=False):
        if len(chosen):
            flat[offsets[a] : offsets[b]] = _rows_of(part, chosen)
    return LogpTable(KeyIndex.build(words), offsets, flat, where)


def _rows_of(part: Part, chosen: np.ndarray) -> np.ndarray:
    logps = read_logps(part)
    if len(chosen) == part.sequences:
        return logps
    keep = np.zeros(part.sequences, dtype=bool)
    keep[chosen] = True
    return logps[np.repeat(keep, part.completion_tokens)]
