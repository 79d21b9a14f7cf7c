"""Turn layouts of preference data that TRL rejects into ones that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset, IterableDataset

AnyDataset = Dataset | IterableDataset


def one_layout(dataset: AnyDataset) -> AnyDataset:
    """Turn a string `prompt` beside message-list `chosen` and `rejected` into a layout that TRL takes.

    HuggingFaceH4/ultrafeedback_binarized and its relatives are published in that layout; TRL raises TypeError for it.
    Where the message lists hold the entire conversation, the prompt string repeats its start and is dropped; where they
    hold only the answers, the string becomes a user message.
    """
    first = next(iter(dataset), None)
    if first is None or not _string_beside_messages(first):
        return dataset
    if first["chosen"][0].get("role") == "assistant":
        return dataset.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
    return dataset.remove_columns("prompt")


def _string_beside_messages(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("prompt"), str) and isinstance(row.get("chosen"), list) and bool(row["chosen"])
