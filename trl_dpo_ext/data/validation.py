"""Preference data before it reaches TRL: layouts made one, rows checked, extra columns carried into the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset, IterableDataset

from .. import _trl
from ..core.columns import Column

AnyDataset = Dataset | IterableDataset
_ROWS_AT_ONCE = 1000


@dataclass
class DataReport:
    """What was found in a dataset: problems stop the run, warnings do not."""

    problems: list[str]
    warnings: list[str]


def one_layout(dataset: AnyDataset) -> AnyDataset:
    """Turn a string `prompt` beside message-list `chosen` and `rejected` into a layout that TRL takes.

    That is how HuggingFaceH4/ultrafeedback_binarized and its relatives are published; TRL raises TypeError there. Where
    the message lists hold the whole conversation, the prompt string repeats its start and is dropped; where they hold
    the answers alone, the string becomes a user message.
    """
    first = next(iter(dataset), None)
    if first is None or not _string_beside_messages(first):
        return dataset
    if first["chosen"][0].get("role") == "assistant":
        return dataset.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
    return dataset.remove_columns("prompt")


def _string_beside_messages(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("prompt"), str) and isinstance(row.get("chosen"), list) and bool(row["chosen"])


def check_preferences(dataset: Any, name: str, columns: Mapping[str, Column]) -> DataReport:
    """Look at every row of a preference dataset before a model is loaded; of a streamed one, at the first.

    Args:
        dataset: with `chosen` and `rejected`, texts or message lists.
        name: what messages call it, such as `train_dataset`.
        columns: extra columns that the losses read, with the values they may take.
    """
    report = DataReport([], [])
    if not isinstance(dataset, (Dataset, IterableDataset)):
        report.problems.append(f"{name} must be a datasets.Dataset or IterableDataset; got {type(dataset).__name__}.")
        return report
    first = next(iter(dataset), None)
    if first is None:
        report.problems.append(f"{name} is empty.")
        return report
    missing = [column for column in ("chosen", "rejected", *columns) if column not in first]
    if missing:
        report.problems.append(
            f"{name} has no column {', '.join(map(repr, missing))}; it has {', '.join(map(repr, first))}. "
            "Rename yours with dataset.rename_column."
        )
    wanted = [column for column in ("chosen", "rejected", *columns) if column in first]
    rows = _rows(dataset, wanted) if isinstance(dataset, Dataset) else iter([first])
    _check_rows(
        rows, name, {c: h for c, h in columns.items() if c in first}, "chosen" in first and "rejected" in first, report
    )
    return report


def _rows(dataset: Dataset, columns: list[str]) -> Iterator[Mapping[str, Any]]:
    plain = dataset.with_format(None).select_columns(columns)
    for batch in plain.iter(batch_size=_ROWS_AT_ONCE):
        assert isinstance(batch, dict)
        for values in zip(*(batch[column] for column in columns), strict=True):
            yield dict(zip(columns, values, strict=True))


def _check_rows(
    rows: Iterator[Mapping[str, Any]], name: str, columns: Mapping[str, Column], has_sides: bool, report: DataReport
) -> None:
    found: dict[str, list[int]] = {}
    identical, total = 0, 0
    for index, row in enumerate(rows):
        total += 1
        for column, meaning in columns.items():
            problem = _column_problem(row[column], meaning)
            if problem:
                found.setdefault(f"column {column!r} must be {problem} ({meaning.help.rstrip('.')})", []).append(index)
        if has_sides:
            for side in ("chosen", "rejected"):
                if _is_empty(row[side]):
                    found.setdefault(f"the {side} completion is empty", []).append(index)
            identical += row["chosen"] == row["rejected"]
    for what, indices in found.items():
        report.problems.append(f"{name}: {what}; wrong in {len(indices)} of {total} rows, first in row {indices[0]}.")
    if identical:
        report.warnings.append(
            f"{name}: chosen and rejected are identical in {identical} of {total} rows; these teach nothing about "
            "preference. Filter them out to silence this."
        )


def _column_problem(value: Any, meaning: Column) -> str | None:
    if meaning.per_token is None:
        return _value_problem(value, meaning)
    if not isinstance(value, (list, tuple)):
        return f"a list of numbers, one per token of the {meaning.per_token} completion,"
    problem = next(filter(None, (_value_problem(token, meaning) for token in value)), None)
    return problem and f"{problem} at every token"


def _value_problem(value: Any, meaning: Column) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "a number"
    return meaning.broken_bound(float(value)) if math.isfinite(value) else "finite"


def _is_empty(completion: Any) -> bool:
    if isinstance(completion, list):
        last = completion[-1] if completion else {}
        return not (last.get("content") or last.get("tool_calls") or last.get("thinking"))
    return not completion


def token_column_problems(dataset: Any, name: str, columns: Mapping[str, Column]) -> list[str]:
    """Columns of a tokenized dataset that do not have one value per token; the first such row is named.

    Streamed data, and data that is tokenized later, is checked by the collator.
    """
    problems = []
    for column, meaning in columns.items():
        ids = _trl.COMPLETION_IDS.get(meaning.per_token or "")
        if ids is None or not isinstance(dataset, Dataset) or not {column, ids} <= set(dataset.column_names):
            continue
        counts = [(len(row[column]), len(row[ids])) for row in _rows(dataset, [column, ids])]
        wrong = [index for index, (values, tokens) in enumerate(counts) if values != tokens]
        if wrong:
            values, tokens = counts[wrong[0]]
            problems.append(
                f"{name}: column {column!r} must have one value per token; row {wrong[0]} has {values} for a "
                f"{meaning.per_token} completion of {tokens} tokens, EOS included (wrong in {len(wrong)} of "
                f"{len(counts)} rows). Tokenize as the trainer does, or look at its train_dataset[{ids!r}]."
            )
    return problems


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
            problem = next(filter(None, (_column_problem(value, meaning) for value in values)), None)
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
            whole = torch.tensor(tokens, dtype=torch.float32)
            placed[row, mask[row]] = whole[expected - kept :] if _trl.keeps_end(self.collator) else whole[:kept]
        return placed[:, 1:]
