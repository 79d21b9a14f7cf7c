"""Add the column of lengths that transformers' samplers read to make batches of similar length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from .. import _trl
from ..forward.list_rows import LIST_IDS

_BY_LENGTH = ("group_by_length", "batch_rebalance")


def samples_by_length(args: Any) -> bool:
    """Whether a run reads the column of lengths, to make batches of rows of similar length."""
    return args.train_sampling_strategy in _BY_LENGTH


def length_column(dataset: Any, args: Any) -> Any:
    """Add the number of tokens that each row feeds to a tokenized preference dataset, if the run samples by length.

    An existing column of that name (`length_column_name`) is kept; streamed data and data that is tokenized in the
    collator are returned unchanged, as in transformers.

    Seam: transformers' samplers read `length_column_name` if `train_sampling_strategy` is one of `_BY_LENGTH`.

    Args:
        dataset: with TRL's columns of token ids.
        args: the run's configuration.
    """
    name = args.length_column_name
    wanted = samples_by_length(args) and isinstance(dataset, Dataset)
    if not wanted or name in dataset.column_names or not _trl.is_tokenized(dataset):
        return dataset
    limit = args.max_length if args.max_length is not None else float("inf")

    def measure(row: Mapping[str, Any]) -> dict[str, int]:
        ids = row[LIST_IDS] if LIST_IDS in row else [row[column] for column in _trl.COMPLETION_IDS.values()]
        prompt, completions = len(row[_trl.TOKEN_IDS[0]]), map(len, ids)
        sequences = [min(prompt + completion, limit) for completion in completions]
        shared = min(prompt, *sequences) if args.share_prompt else 0
        return {name: int(sum(sequences) - shared * (len(ids) - 1))}

    return dataset.map(measure, desc="Measuring lengths")
