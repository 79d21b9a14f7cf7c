"""Which rows of a table make up an example: a pair by itself, or the ordered pairs of a list one after another."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Examples:
    """Pairs, or lists as their ordered pairs: every better completion against every worse one.

    Attributes:
        starts: (examples,); the first row of each.
        once: (rows, 2) bool; marks each completion once: of a list, the best ones as chosen, the others as rejected.
        places: (rows, 2); the places of both completions in their list.
        of_lists: whether the examples are lists.
    """

    starts: Places
    once: Mask
    places: Places
    of_lists: bool = False

    @classmethod
    def of_pairs(cls, count: int) -> Examples:
        """Each row by itself."""
        both = (count, 1)
        return cls(np.arange(count), np.ones((count, 2), bool), np.tile(np.array([[0, 1]]), both))

    @classmethod
    def of_scores(cls, scores: list[npt.NDArray[np.float32]]) -> Examples:
        """The ordered pairs of lists, given the scores of each list's completions, not all of which are equal."""
        once, places = [np.zeros((0, 2), bool)], [np.zeros((0, 2), np.int64)]
        for own in scores:
            better, worse = np.nonzero(own[:, None] > own[None])
            _, first = np.unique(better, return_index=True)
            mine = np.zeros((len(better), 2), bool)
            mine[first, 0] = own[better[first]] == own.max()
            mine[:, 1] = better == own.argmax()
            once.append(mine)
            places.append(np.stack([better, worse], axis=1))
        sizes = [len(each) for each in once[1:]]
        starts = np.cumsum([0, *sizes])[:-1].astype(np.int64)
        return cls(starts, np.concatenate(once), np.concatenate(places), of_lists=True)

    def __len__(self) -> int:
        return len(self.starts)

    @functools.cached_property
    def of(self) -> Places:
        """The example of each row, (rows,)."""
        return np.repeat(np.arange(len(self)), np.diff([*self.starts, len(self.once)]))

    @property
    def first(self) -> Places:
        """One row of each example, (examples,): of a list, a best completion against another."""
        return np.flatnonzero(self.once.all(axis=1))

    @property
    def shown(self) -> Places:
        """The rows that hold every completion: of a list of K, the best against each other one, K - 1 rows."""
        return np.flatnonzero(self.once.any(axis=1))

    def any(self, mask: Mask) -> Mask:
        """Mark the examples with a marked row, (examples,)."""
        return np.logical_or.reduceat(mask, self.starts) if len(self) and self.of_lists else mask

    def max(self, values: npt.NDArray) -> npt.NDArray:
        """The largest value among the rows of each example, (examples,)."""
        return np.maximum.reduceat(values, self.starts) if len(self) and self.of_lists else values
