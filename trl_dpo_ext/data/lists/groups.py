"""Which completions belong to which prompt, and the scores that are given for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Groups:
    """Which completions belong to which prompt, and what is known of them.

    Attributes:
        bounds: (prompts + 1,) int64; the completions of prompt `i` are `bounds[i]` to `bounds[i + 1]`.
        scores: (completions,) float64; given scores, the higher the better, NaN where none is given.
        places: (completions,) int64; the row of each completion, where each row holds one.
        in_lists: whether a row holds all completions of its prompt, in a list.
        by_rank: (prompts,) bool; whether the scores of a prompt are ranks, negated; None where no score is.
    """

    bounds: npt.NDArray[np.int64]
    scores: Floats
    places: npt.NDArray[np.int64]
    in_lists: bool = True
    by_rank: npt.NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __iter__(self) -> Iterator[slice]:
        for start, end in zip(self.bounds[:-1].tolist(), self.bounds[1:].tolist(), strict=True):
            yield slice(start, end)
