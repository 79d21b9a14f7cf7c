"""Extra columns of preference data: which values they may take, and how they get into the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from .. import _trl
from ..core.columns import Column, Doubt
from . import columnar
from .batches import on_main_process, read_batches


def loss_columns(args: Any, mixture: Any) -> dict[str, Column]:
    """The dataset columns that a run's losses read, with what their values mean.

    Args:
        args: the run's configuration.
        mixture: its losses.
    """
    columns = mixture.columns
    if args.weight_column:
        columns[args.weight_column] = Column("Weight of the pair's loss.", ge=0, doubts=(_no_weight,))
    return columns


def _no_weight(lowest: float, highest: float, _: Mapping[str, Any]) -> Doubt | None:
    doubt = "the weight_column is 0 in every row, so nothing is learned", "Remove the option, or fill the column."
    return None if highest > 0 else doubt


def column_problem(value: Any, meaning: Column) -> str | None:
    """Return what a column's value must be and is not, such as "finite" or ">= 0"; None if the value is allowed."""
    if meaning.per_token is None:
        return _value_problem(value, meaning)
    if not isinstance(value, (list, tuple)):
        return f"a list of numbers, one per token of the {meaning.per_token} completion,"
    problem = next(filter(None, (_value_problem(token, meaning) for token in value)), None)
    return problem and f"{problem} at every token"


def _value_problem(value: Any, meaning: Column) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "a number"
    return meaning.broken_bound(value)


def token_column_problems(dataset: Any, name: str, columns: Mapping[str, Column]) -> list[str]:
    """List the columns of a tokenized dataset that do not have one value per token, each with its first such row.

    The main process counts, for all. Streamed data and data that is tokenized later are checked by the collator.
    """
    if not isinstance(dataset, Dataset) or not len(dataset):
        return []
    wanted = {
        column: _trl.COMPLETION_IDS[meaning.per_token]
        for column, meaning in columns.items()
        if meaning.per_token and {column, _trl.COMPLETION_IDS[meaning.per_token]} <= set(dataset.column_names)
    }
    if not wanted:
        return []
    return on_main_process(
        lambda: [
            problem
            for column, ids in wanted.items()
            if (problem := _length_problem(dataset, name, column, ids, str(columns[column].per_token)))
        ]
    )


def _length_problem(dataset: Dataset, name: str, column: str, ids: str, side: str) -> str | None:
    counts = np.concatenate([_token_counts(batch, column, ids) for batch in read_batches(dataset, [column, ids])])
    wrong = np.flatnonzero(counts[:, 0] != counts[:, 1])
    if not len(wrong):
        return None
    values, tokens = counts[wrong[0]]
    return (
        f"{name}: column {column!r} must have one value per token; row {wrong[0]} has {values} for a {side} completion "
        f"of {tokens} tokens, EOS included (wrong in {len(wrong)} of {len(counts)} rows). Tokenize as the trainer "
        f"does, or look at its train_dataset[{ids!r}]."
    )


def _token_counts(batch: Any, *columns: str) -> np.ndarray:
    """(rows, columns)"""
    try:
        counts = [columnar.list_lengths(batch.column(column)) for column in columns]
    except columnar.UnknownLayoutError:
        counts = [[len(row[column]) for row in batch.rows(column)] for column in columns]
    return np.stack(counts, axis=1)


@dataclass
class ColumnCollator:
    """Adds extra dataset columns to what another collator builds, as float32 tensors.

    A column has shape (pairs,); one with a value per token has shape (pairs, tokens), in the positions of the log-probs
    of that side and zero outside the completion.
    """

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]
    columns: Mapping[str, Column]

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate `examples`.

        Raises:
            ValueError: an example lacks a column or holds a value it may not take (streamed data is checked only here).
        """
        for column, meaning in self.columns.items():
            values = [example.get(column) for example in examples]
            problem = next(filter(None, (column_problem(value, meaning) for value in values)), None)
            if problem:
                raise ValueError(f"column {column!r} must be {problem} in every row; got {values} ({meaning.help})")
        batch = self.collator(examples)
        return {**batch, **{column: self._tensor(column, examples, batch) for column in self.columns}}

    def _tensor(self, column: str, examples: list[dict[str, Any]], batch: dict[str, Any]) -> torch.Tensor:
        values, side = [example[column] for example in examples], self.columns[column].per_token
        if side is None:
            return torch.tensor(values, dtype=torch.float32)
        chosen, rejected = batch[_trl.COMPLETION_MASK].bool().chunk(2)
        mask = chosen if side == "chosen" else rejected
        placed = torch.zeros(mask.shape, dtype=torch.float32)
        for row, (example, tokens) in enumerate(zip(examples, values, strict=True)):
            kept = int(mask[row].sum())
            expected = len(example.get(_trl.COMPLETION_IDS[side], ())) or kept
            if len(tokens) != expected:
                raise ValueError(
                    f"column {column!r} must have one value per token; row {row} of this batch has {len(tokens)} for a "
                    f"{side} completion of {expected} tokens, EOS included."
                )
            # Truncation has cut the completion at one end, and it cuts its values there.
            untruncated = torch.tensor(tokens, dtype=torch.float32)
            keeps_end = _trl.keeps_end(self.collator)
            placed[row, mask[row]] = untruncated[expected - kept :] if keeps_end else untruncated[:kept]
        return placed[:, 1:]
