"""Which rows of a batch of pairs are the answers of lists."""

from __future__ import annotations

import functools
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch

LIST_IDS = "list_ids"
"""The dataset column with the token ids of all completions of a list."""
LIST_BATCH = ("list_answers", "list_scores", "list_sizes", "list_numbers")
"""The batch keys of lists, which no model is given; see the fields of `ListRows`."""


@dataclass(frozen=True)
class ListRows:
    """Where the answers of a batch of lists stand among the rows of TRL's batch, (2 x pairs, tokens).

    The answers of a list are the sides of ceil(K / 2) pairs; of an odd K, one row is a repeated answer, which no list
    counts.
    """

    answers: torch.Tensor
    """The row of each answer, list after list, (answers,) int64."""
    scores: torch.Tensor
    """The higher the better, (answers,) float32."""
    sizes: torch.Tensor
    """The number of answers of each list, (prompts,) int64."""
    numbers: torch.Tensor
    """The number of each list in its dataset, (prompts,) int64."""

    @classmethod
    def take(cls, inputs: MutableMapping[str, Any]) -> ListRows | None:
        """Remove what describes lists from a batch; None for a batch of pairs."""
        if LIST_BATCH[0] not in inputs:
            return None
        return cls(*(inputs.pop(name) for name in LIST_BATCH))

    @property
    def prompts(self) -> int:
        """Number of lists."""
        return len(self.sizes)

    @functools.cached_property
    def prompt(self) -> torch.Tensor:
        """The list of each answer, (answers,) int64, ascending from 0."""
        index = torch.arange(self.prompts, device=self.sizes.device)
        return index.repeat_interleave(self.sizes, output_size=len(self.answers))

    def first(self, prompts: int) -> ListRows:
        """The first lists of the batch."""
        if prompts == self.prompts:
            return self
        answers = int(self.sizes[:prompts].sum())
        return ListRows(self.answers[:answers], self.scores[:answers], self.sizes[:prompts], self.numbers[:prompts])

    def others(self, rows: int) -> torch.Tensor:
        """The rows of a batch that are no answer of these lists, (rows,) bool."""
        others = torch.ones(rows, dtype=torch.bool, device=self.answers.device)
        return others.index_fill(0, self.answers, False)


def as_pair(example: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenized row of a list as the pair of its best and its worst completion; a row of a pair as it is."""
    return {name: value for name, value in example.items() if name != LIST_IDS}
