"""Which rows of a dataset with images a store lacks, found without the image processor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..store.keys import KeyIndex
from .image_keys import ImageKeys


@dataclass(frozen=True)
class ImageRows:
    """Rows of a dataset with images that a pass has to compute; equal rows are listed once.

    Attributes:
        rows: (rows,) int64; places in the dataset.
        keys: (rows, 2, 2) uint64; packed keys of both sides, the chosen one first.
        lacking: (rows, 2) bool; which sides the store lacks and no row before has.
        tokens: (rows,) int32; positions of the longer side with image tokens, which order batches.
        images: (rows,) int32; images of each row.
        scored: (rows, 2) int32; tokens of both answers that are scored.
    """

    rows: np.ndarray
    keys: np.ndarray
    lacking: np.ndarray
    tokens: np.ndarray
    images: np.ndarray
    scored: np.ndarray

    @classmethod
    def of(cls, found: ImageKeys, lacks: np.ndarray) -> ImageRows:
        """Choose the rows to compute.

        Args:
            found: of all rows of a dataset.
            lacks: (rows, 2) bool; which sides the store lacks.
        """
        first = np.zeros(lacks.size, bool)
        first[KeyIndex.build(found.keys.reshape(-1, 2)).positions] = True
        lacking = lacks & first.reshape(lacks.shape)
        rows = np.flatnonzero(lacking.any(axis=1))
        of_each = (found.tokens[rows], found.images[rows], found.scored[rows])
        return cls(rows, found.keys[rows], lacking[rows], *of_each)

    @property
    def packed(self) -> np.ndarray:
        """The packed keys that the store lacks, (sequences, 2) uint64."""
        return self.keys[self.lacking]

    def __len__(self) -> int:
        return int(self.lacking.sum())
