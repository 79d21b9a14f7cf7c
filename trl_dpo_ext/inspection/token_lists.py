"""Lists of token ids, many at a time: cut, compared, and named by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..data.columnar import list_lengths

Counts = npt.NDArray[np.int32]
Ids = npt.NDArray[np.int64]
_CELLS = 1 << 20
"""Cells of one padded block."""


@dataclass(frozen=True)
class TokenLists:
    """Lists of token ids, as values and where each list begins."""

    values: Ids
    starts: Ids
    lengths: Ids

    @classmethod
    def of(cls, column: Any) -> TokenLists:
        """Read an Arrow column of lists, or the lists in its lists one after the other."""
        lengths = list_lengths(column)
        values = column.flatten()
        if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
            return cls.of(values)
        return cls(
            values.to_numpy(zero_copy_only=False).astype(np.int64, copy=False), lengths.cumsum() - lengths, lengths
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def cut(self, kept: npt.NDArray, keeps_end: bool) -> TokenLists:
        """The first, or the last, `kept` items of each list."""
        return TokenLists(self.values, self.starts + (self.lengths - kept) * keeps_end, kept)

    def __getitem__(self, places: npt.NDArray) -> TokenLists:
        """Some of the lists."""
        return TokenLists(self.values, self.starts[places], self.lengths[places])

    def at(self, place: int) -> Ids:
        """The item at a place of each list; -1 where the list is shorter."""
        reached = self.lengths > place
        found = np.full(len(self), -1, dtype=np.int64)
        found[reached] = self.values[self.starts[reached] + place]
        return found

    def flat(self) -> tuple[Ids, Ids, Ids]:
        """All items, the row of each, and its place in the row."""
        rows = np.repeat(np.arange(len(self)), self.lengths)
        before = self.lengths.cumsum() - self.lengths
        places = np.arange(len(rows)) - np.repeat(before, self.lengths)
        return self.values[self.starts[rows] + places], rows, places

    def padded(self, rows: npt.NDArray, width: int, fill: int, backward: bool = False) -> Ids:
        """Some rows as a matrix, (rows, width), from their start, or from their end backward."""
        steps = np.arange(width)
        lengths, starts = self.lengths[rows, None], self.starts[rows, None]
        places = starts + (lengths - 1 - steps if backward else steps)
        inside = steps < lengths
        if not len(self.values):
            return np.full(inside.shape, fill)
        return np.where(inside, self.values[np.where(inside, places, 0)], fill)


def common_ends(left: TokenLists, right: TokenLists) -> tuple[Counts, Counts]:
    """With how many equal items both lists begin, and with how many others both end; each (rows,)."""
    shorter = np.minimum(left.lengths, right.lengths)
    begin, end = np.zeros(len(left), dtype=np.int32), np.zeros(len(left), dtype=np.int32)
    for rows in _blocks(shorter):
        width = int(shorter[rows].max())
        for found, backward in ((begin, False), (end, True)):
            same = left.padded(rows, width, -1, backward) == right.padded(rows, width, -2, backward)
            found[rows] = np.where(same.all(axis=1), width, same.argmin(axis=1))
    return begin, np.minimum(end, shorter - begin).astype(np.int32)


def _blocks(lengths: npt.NDArray) -> Iterator[npt.NDArray]:
    """Rows of similar lengths, few enough for a padded matrix; rows of length 0 are left out."""
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    while len(order):
        widest = int(lengths[order[-1]])
        count = max(1, _CELLS // widest)
        yield order[-count:]
        order = order[:-count]


def keys_of(*lists: TokenLists) -> npt.NDArray[np.void]:
    """A key of 16 bytes for the items of each row, (rows,)."""
    keys = bytearray()
    values = [memoryview(part.values.astype(np.int32).tobytes()).cast("i") for part in lists]
    for row in range(len(lists[0])):
        digest = hashlib.blake2b(digest_size=16)
        for part, items in zip(lists, values, strict=True):
            digest.update(items[part.starts[row] : part.starts[row] + part.lengths[row]])
            digest.update(b"|")
        keys += digest.digest()
    return np.frombuffer(bytes(keys), dtype="V16")
