"""Tell what tokenizing and truncating make of preference data: rows that are dropped, answers that are cut."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from .. import _trl
from ..errors import InputError
from . import columnar
from .batches import DatasetBatch, on_main_process, read_batches
from .lengths import length_column
from .rows import SIDES

Counts = npt.NDArray[np.int64]


def tokenized(prepare: Callable[..., Any], dataset: Any, processing_class: Any, args: Any, name: str) -> Any:
    """Tokenize a dataset as TRL does, say what truncation does to it, and add the column of lengths.

    Args:
        prepare: TRL's `_prepare_dataset`.
        dataset, processing_class, args, name: its arguments.

    Raises:
        InputError: no row is left, because the prompts alone fill `max_length`.
    """
    prepared = prepare(dataset, processing_class, args, name)
    if isinstance(prepared, Dataset) and not set(_trl.TOKEN_IDS) <= set(dataset.column_names):
        if not len(prepared) and len(dataset):
            whole = prepare(dataset, processing_class, _without_limit(args), name)
            raise InputError(_all_dropped(whole, args.max_length, name))
        for warning in on_main_process(lambda: _warnings(dataset, prepared, processing_class, args, name)):
            warnings.warn(warning, stacklevel=4)
    return length_column(prepared, args)


def _without_limit(args: Any) -> Any:
    unlimited = copy.copy(args)
    unlimited.max_length = None
    return unlimited


def _all_dropped(whole: Dataset, limit: int, name: str) -> str:
    shortest = min(int(_lengths(batch)[:, 0].min()) for batch in read_batches(whole, [_trl.TOKEN_IDS[0]]))
    return (
        f"{name} dataset: all {len(whole)} rows dropped: the prompt alone fills max_length={limit} in every row, and "
        f"the shortest prompt has {shortest} tokens. Raise max_length, or set truncation_mode='keep_end'."
    )


def _warnings(dataset: Dataset, prepared: Dataset, processing_class: Any, args: Any, name: str) -> list[str]:
    found = []
    dropped, total = len(dataset) - len(prepared), len(prepared)
    if dropped:
        found.append(
            f"{name} dataset: {dropped} of {len(dataset)} rows dropped: the prompt alone fills max_length="
            f"{args.max_length}. Raise max_length, or filter these rows to silence this."
        )
    if args.max_length is not None:
        cut = _Cut(args.max_length, args.truncation_mode == "keep_end")
        for batch in read_batches(prepared, _trl.TOKEN_IDS):
            cut.add(batch)
        found += cut.lines(total, name)
    return found + _unprinted(dataset, processing_class, name)


class _Cut:
    """What truncation to `limit` tokens does to the rows of a dataset."""

    def __init__(self, limit: int, keeps_end: bool) -> None:
        self.limit, self.keeps_end = limit, keeps_end
        self.rows = self.chosen = self.rejected = self.same = self.without_prompt = 0

    def add(self, batch: DatasetBatch) -> None:
        """Count the rows of a batch."""
        prompt, *sides = _lengths(batch).T
        beyond = [prompt + side > self.limit for side in sides]
        if self.keeps_end:  # the prompt is cut first
            self.without_prompt += int(((sides[0] >= self.limit) & (sides[1] >= self.limit)).sum())
            beyond = [side > self.limit for side in sides]
            kept = [np.minimum(side, self.limit) for side in sides]
        else:
            kept = [np.minimum(side, self.limit - prompt) for side in sides]
        either = beyond[0] | beyond[1]
        self.rows += int(either.sum())
        self.chosen += int(beyond[0].sum())
        self.rejected += int(beyond[1].sum())
        rows = np.flatnonzero(either & (kept[0] == kept[1]))
        ids = [_values(batch.column(_trl.COMPLETION_IDS[side])) for side in SIDES]
        starts = [side.cumsum() - side for side in sides]
        for row in rows.tolist():
            left, right = (self._kept(ids[s], starts[s][row], sides[s][row], kept[s][row]) for s in (0, 1))
            self.same += bool(np.array_equal(left, right)) and not self._are_one(ids, starts, sides, row)

    def _kept(self, ids: npt.NDArray, start: int, length: int, kept: int) -> npt.NDArray:
        end = start + length
        return ids[end - kept : end] if self.keeps_end else ids[start : start + kept]

    @staticmethod
    def _are_one(ids: list[npt.NDArray], starts: list[Counts], sides: list[Counts], row: int) -> bool:
        """Whether the whole answers are identical, which was told before."""
        left, right = (ids[s][starts[s][row] : starts[s][row] + sides[s][row]] for s in (0, 1))
        return bool(np.array_equal(left, right))

    def lines(self, total: int, name: str) -> list[str]:
        """Return one warning for each kind of loss."""
        found = []
        if self.rows:
            found.append(
                f"{name} dataset: max_length={self.limit} cuts the answers of {self.rows} of {total} rows (chosen in "
                f"{self.chosen}, rejected in {self.rejected}). Raise max_length, or filter these rows to silence this."
            )
        if self.same:
            found.append(
                f"{name} dataset: chosen and rejected are identical after truncation to max_length={self.limit} in "
                f"{self.same} of {total} rows, which teach nothing about preference. Raise max_length, or filter these "
                "rows to silence this."
            )
        if self.without_prompt:
            found.append(
                f"{name} dataset: truncation_mode='keep_end' leaves nothing of the prompt in {self.without_prompt} of "
                f"{total} rows. Raise max_length, or filter these rows to silence this."
            )
        return found


def _unprinted(dataset: Dataset, processing_class: Any, name: str) -> list[str]:
    """Answers whose text is in a field that the chat template does not print."""
    template = getattr(processing_class, "chat_template", None)
    fields = [field for field in ("reasoning_content", "reasoning", "thinking") if field not in str(template or "")]
    if not fields or not template or not set(SIDES) <= set(dataset.column_names):
        return []
    only = 0
    for batch in read_batches(dataset, SIDES):
        try:
            masks = [columnar.only_in_fields(batch.column(side), fields) for side in SIDES]
            only += int((masks[0] | masks[1]).sum())
        except columnar.UnknownLayoutError:
            only += sum(any(_only_in(row[side], fields) for side in SIDES) for row in batch.rows(*SIDES))
    if not only:
        return []
    return [
        f"{name} dataset: in {only} of {len(dataset)} rows an answer is in {' or '.join(fields)} alone, which the chat "
        "template does not print, so that the answer is empty. Write it into 'content', or use another template."
    ]


def _only_in(side: Any, fields: list[str]) -> bool:
    last = side[-1] if isinstance(side, list) and side else None
    if not isinstance(last, dict):
        return False
    return any(last.get(field) for field in fields) and not (last.get("content") or last.get("tool_calls"))


def _lengths(batch: DatasetBatch) -> Counts:
    """(rows, columns)"""
    columns = [name for name in _trl.TOKEN_IDS if name in batch.table.column_names]
    return np.stack([columnar.list_lengths(batch.column(name)) for name in columns], axis=1)


def _values(column: columnar.ArrowColumn) -> npt.NDArray:
    return column.flatten().to_numpy(zero_copy_only=False)
