"""Collates lists: TRL's collator is given their pair rows, and the batch says which of its rows are which answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset

from ... import _trl
from ...forward.list_rows import LIST_BATCH, LIST_IDS
from .pair_rows import LIST_ROW, LIST_SCORES, places_in_pairs


@dataclass
class ListCollator:
    """Builds batches of lists by a collator of pairs.

    A list of K completions is ceil(K / 2) pairs that stay together; of an odd K, its shortest completion stands there
    once more. `ListRows` says what the keys of the batch mean.
    """

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate lists, each with `prompt_ids`, `list_ids`, and `list_scores`, or pairs without the latter two."""
        if LIST_IDS not in examples[0]:
            return self.collator(examples)
        pairs: list[dict[str, Any]] = []
        places: list[list[tuple[int, int]]] = []
        for example in examples:
            mine = _pairs(example)
            places.append([(len(pairs) + at // 2, at % 2) for at in range(len(example[LIST_IDS]))])
            pairs += mine
        rows = [pair + side * len(pairs) for one in places for pair, side in one]
        scores = [score for example in examples for score in example[LIST_SCORES]]
        sizes = [len(one) for one in places]
        numbers = [example[LIST_ROW] for example in examples]
        of_lists = (torch.tensor(rows), torch.tensor(scores), torch.tensor(sizes), torch.tensor(numbers))
        return {**self.collator(pairs), **dict(zip(LIST_BATCH, of_lists, strict=True))}


def _pairs(example: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of pairs of a list, as TRL's collator takes them."""
    completions = list(example[LIST_IDS])
    if len(completions) % 2:
        completions.append(min(completions, key=len))
    return [
        {
            "prompt_ids": example["prompt_ids"],
            _trl.COMPLETION_IDS["chosen"]: completions[first],
            _trl.COMPLETION_IDS["rejected"]: completions[second],
        }
        for first, second in places_in_pairs(len(completions))
    ]


def as_pairs(dataset: Any) -> Any:
    """Return tokenized lists as tokenized pairs, which hold each completion at least once."""
    if not isinstance(dataset, Dataset) or LIST_IDS not in dataset.column_names:
        return dataset

    def flat(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        rows = [
            pair
            for prompt, ids in zip(batch["prompt_ids"], batch[LIST_IDS], strict=True)
            for pair in _pairs({"prompt_ids": prompt, LIST_IDS: ids})
        ]
        return {name: [row[name] for row in rows] for name in _trl.TOKEN_IDS}

    return dataset.map(flat, batched=True, remove_columns=dataset.column_names, desc="Reading lists")
