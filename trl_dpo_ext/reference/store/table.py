"""In-memory table of the stored log-probs that one run needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .keys import KeyIndex, pack_keys, unpack_keys
from .parts import Part, read_logps
from .shared_memory import Address, Allocate, SharedMemory, private


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
        memory: that holds the arrays, if other processes map it: pickles then refer to it, and hold no arrays. It has
            to exist when they are read.
    """

    index: KeyIndex
    offsets: np.ndarray
    flat: np.ndarray
    where: str
    memory: SharedMemory | None = None

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray], where: str, memory: SharedMemory | None = None) -> LogpTable:
        """Make a table of the arrays that `load_arrays` fills."""
        index = KeyIndex(arrays["high"], arrays["low"], arrays["positions"])
        return cls(index, arrays["offsets"], arrays["flat"], where, memory)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.memory is None:
            return LogpTable, (self.index, self.offsets, self.flat, self.where)
        return _mapped_table, (self.memory.address, self.where)

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


def _mapped_table(address: Address, where: str) -> LogpTable:
    memory = SharedMemory.attach(address)
    arrays = memory.wait()
    assert arrays is not None
    return LogpTable.of(arrays, where, memory)


def described(folder: Path) -> str:
    """Return what error messages call the store of a folder."""
    return f"the reference store {folder}"


def load_arrays(
    folder: Path, parts: Sequence[Part], index: KeyIndex, wanted: np.ndarray | None, allocate: Allocate = private
) -> dict[str, np.ndarray]:
    """Read the wanted sequences into the arrays of a table, each part once and in order.

    Args:
        folder: of the store.
        parts: the parts in use.
        index: over the sequences of all parts, one part after the other.
        wanted: (sequences, 2) packed keys, each once; None for all that are indexed.
        allocate: where the arrays are made.

    Raises:
        MissingSequenceError: a sequence is not in the index.
        CorruptPartError: a part is corrupt.
        FileNotFoundError: a part is gone.
    """
    positions = index.positions if wanted is None else index.find(wanted)
    if wanted is not None and (positions < 0).any():
        raise MissingSequenceError(unpack_keys(wanted[positions < 0]), described(folder))
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
    made = KeyIndex.build(packed_keys)
    arrays: dict[str, np.ndarray] = {
        "high": made.high, "low": made.low, "positions": made.positions, "offsets": offsets
    }  # fmt: skip
    layout = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    allocated = allocate({**layout, "flat": ((int(offsets[-1]),), np.float32)})
    for name, array in arrays.items():
        allocated[name][:] = array
    for part, chosen, a, b in zip(parts, rows, bounds, bounds[1:], strict=False):
        if len(chosen):
            allocated["flat"][offsets[a] : offsets[b]] = _read_rows(part, chosen)
    return allocated


def _read_rows(part: Part, chosen: np.ndarray) -> np.ndarray:
    logps = read_logps(part)
    if len(chosen) == part.sequences:
        return logps
    keep = np.zeros(part.sequences, dtype=bool)
    keep[chosen] = True
    return logps[np.repeat(keep, part.completion_tokens)]
