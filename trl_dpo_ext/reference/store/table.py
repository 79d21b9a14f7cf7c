"""In-memory table of the stored log-probs that one run needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .keys import KeyIndex, pack_keys
from .parts import Part, read_logps


class MissingSequenceError(LookupError):
    """Raised when a store or a table does not hold the log-probs of some sequences.

    Attributes:
        keys: of these sequences.
    """

    def __init__(self, keys: Sequence[bytes], where: str) -> None:
        self.keys, self.where = list(keys), where
        self.number = len(self.keys)
        super().__init__(self.keys, where)  # the same arguments, so that the error can be pickled

    def __str__(self) -> str:
        are = "sequence is" if self.number == 1 else "sequences are"
        return f"{self.number} {are} not in {self.where}; the first has the key {self.keys[0].hex()}."


@dataclass(frozen=True)
class LogpTable:
    """Token log-probs by key. Consists of arrays, so that forked workers share it and spawned ones can unpickle it.

    Attributes:
        index: from key to row.
        offsets: (sequences + 1,) start of each row in `flat`.
        flat: (tokens,) log-probs, float32.
        where: the store they were read from, for error messages.
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
        """Return a view of one sequence's log-probs, (completion_tokens,) float32."""
        return self.values([key])[0]

    def values(self, keys: Iterable[bytes]) -> list[np.ndarray]:
        """Return views of the log-probs of several sequences.

        Raises:
            MissingSequenceError: a sequence is not in the table.
        """
        keys = list(keys)
        rows = self.index.find(pack_keys(keys))
        if (rows < 0).any():
            raise MissingSequenceError([keys[at] for at in np.flatnonzero(rows < 0)], self.where)
        return [self.flat[self.offsets[row] : self.offsets[row + 1]] for row in rows]

    @property
    def nbytes(self) -> int:
        """Return the size of the arrays in bytes."""
        index = self.index
        return sum(x.nbytes for x in (index.high, index.low, index.positions, self.offsets, self.flat))


def load_table(folder: Path, parts: Sequence[Part], index: KeyIndex, wanted: list[bytes] | None) -> LogpTable:
    """Read the wanted sequences (None for all) into a table, each part once and in order.

    Raises:
        MissingSequenceError: a sequence is not in the index.
        CorruptPartError: a part is corrupt.
        FileNotFoundError: a part is gone.
    """
    where = f"the reference store {folder}"
    positions = index.positions if wanted is None else index.find(pack_keys(wanted))
    if wanted is not None and (positions < 0).any():
        raise MissingSequenceError([wanted[at] for at in np.flatnonzero(positions < 0)], where)
    positions = np.sort(positions)  # part by part
    starts = np.cumsum([0, *(part.sequences for part in parts)])
    bounds = np.searchsorted(positions, starts)
    rows = [positions[a:b] - start for a, b, start in zip(bounds, bounds[1:], starts, strict=False)]
    offsets = np.zeros(len(positions) + 1, dtype=np.int64)
    packed_keys = np.empty((len(positions), 2), dtype=np.uint64)
    for part, chosen, a, b in zip(parts, rows, bounds, bounds[1:], strict=False):
        offsets[a + 1 : b + 1] = part.completion_tokens[chosen]
        packed_keys[a:b] = part.packed_keys[chosen]
    np.cumsum(offsets, out=offsets)
    flat = np.empty(offsets[-1], dtype=np.float32)
    for part, chosen, a, b in zip(parts, rows, bounds, bounds[1:], strict=False):
        if len(chosen):
            flat[offsets[a] : offsets[b]] = _read_rows(part, chosen)
    return LogpTable(KeyIndex.build(packed_keys), offsets, flat, where)


def _read_rows(part: Part, chosen: np.ndarray) -> np.ndarray:
    logps = read_logps(part)
    if len(chosen) == part.sequences:
        return logps
    keep = np.zeros(part.sequences, dtype=bool)
    keep[chosen] = True
    return logps[np.repeat(keep, part.completion_tokens)]
