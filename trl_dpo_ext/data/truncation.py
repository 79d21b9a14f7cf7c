"""What truncation does to tokenized rows: answers that are cut, pairs that become one, prompts that are lost."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from .. import _trl
from . import columnar
from .batches import DatasetBatch, read_batches
from .findings import ERROR, WARNING, Finding
from .rows import SIDES

Counts = npt.NDArray[np.int64]
_REMEDY = "Raise max_length, or filter these rows."


class Cut:
    """What truncation to `limit` tokens does to the rows of a dataset."""

    def __init__(self, limit: int, keeps_end: bool) -> None:
        self.limit, self.keeps_end = limit, keeps_end
        self.rows = self.chosen = self.rejected = self.same = self.without_prompt = self.filled = 0

    def add(self, batch: DatasetBatch) -> None:
        """Count the rows of a batch."""
        sides = [_values(batch.column(_trl.COMPLETION_IDS[side])) for side in SIDES]
        self._add(token_lengths(batch), sides)

    def add_row(self, prompt: Sequence[int], chosen: Sequence[int], rejected: Sequence[int]) -> None:
        """Count one row, given its token ids."""
        sides = [np.asarray(side) for side in (chosen, rejected)]
        self._add(np.array([[len(prompt), *map(len, sides)]]), sides)

    def _add(self, lengths: Counts, ids: list[npt.NDArray]) -> None:
        """Count rows: (rows, columns) lengths, and the token ids of each side of all rows."""
        prompt, *sides = lengths.T
        if self.keeps_end:  # the prompt is cut first
            self.without_prompt += int(((sides[0] >= self.limit) & (sides[1] >= self.limit)).sum())
            kept = [np.minimum(side, self.limit) for side in sides]
        else:
            kept = [np.minimum(side, self.limit - prompt) for side in sides]
        either = self._add_cuts([left < side for left, side in zip(kept, sides, strict=True)])
        rows = np.flatnonzero(either & (kept[0] == kept[1]))
        starts = [side.cumsum() - side for side in sides]
        for row in rows.tolist():
            left, right = (self._kept(ids[s], starts[s][row], sides[s][row], kept[s][row]) for s in (0, 1))
            self.same += bool(np.array_equal(left, right)) and not self._are_one(ids, starts, sides, row)

    def add_left(self, answers: npt.NDArray, left: npt.NDArray, alike: npt.NDArray) -> None:
        """Count rows that are cut when they are fed, and not dropped before.

        Args:
            answers: (rows, 2); tokens of both answers.
            left: (rows, 2); those that are left of them.
            alike: (rows,) bool; whether what is left of both is the same, though the answers are not.
        """
        filled = (left == 0).all(axis=1) & answers.any(axis=1)
        self.filled += int(filled.sum())
        self._add_cuts([(left < answers)[:, side] & ~filled for side in (0, 1)])
        self.same += int((alike & ~filled).sum())

    def _add_cuts(self, beyond: Sequence[npt.NDArray]) -> npt.NDArray:
        """Count rows whose sides are cut; returns in which rows one is."""
        either = beyond[0] | beyond[1]
        self.rows += int(either.sum())
        self.chosen += int(beyond[0].sum())
        self.rejected += int(beyond[1].sum())
        return either

    def _kept(self, ids: npt.NDArray, start: int, length: int, kept: int) -> npt.NDArray:
        end = start + length
        return ids[end - kept : end] if self.keeps_end else ids[start : start + kept]

    @staticmethod
    def _are_one(ids: list[npt.NDArray], starts: list[Counts], sides: list[Counts], row: int) -> bool:
        """Whether the whole answers are identical, which was told before."""
        left, right = (ids[s][starts[s][row] : starts[s][row] + sides[s][row]] for s in (0, 1))
        return bool(np.array_equal(left, right))

    def findings(self, total: int, which: str) -> list[Finding]:
        """Return one finding for each kind of loss.

        Args:
            total: number of the rows.
            which: how messages call them.
        """
        found = []
        if self.filled:
            sentence = (
                f"the prompt alone fills max_length={self.limit} in {self.filled} of {which}, of which nothing is "
                "scored"
            )
            found.append(Finding("dropped", WARNING, self.filled, total, sentence, _REMEDY))
        if self.rows:
            sentence = (
                f"max_length={self.limit} cuts the answers of {self.rows} of {which} (chosen in {self.chosen}, "
                f"rejected in {self.rejected})"
            )
            found.append(Finding("answer_cut", WARNING, self.rows, total, sentence, _REMEDY))
        if self.same:
            sentence = (
                f"chosen and rejected are identical after truncation to max_length={self.limit} in {self.same} of "
                f"{which}, which teach nothing about preference"
            )
            found.append(Finding("identical_after_truncation", WARNING, self.same, total, sentence, _REMEDY))
        if self.without_prompt:
            sentence = f"truncation_mode='keep_end' leaves nothing of the prompt in {self.without_prompt} of {which}"
            found.append(Finding("prompt_lost", WARNING, self.without_prompt, total, sentence, _REMEDY))
        return found


def token_lengths(batch: DatasetBatch) -> Counts:
    """(rows, columns)"""
    columns = [name for name in _trl.TOKEN_IDS if name in batch.table.column_names]
    return np.stack([columnar.list_lengths(batch.column(name)) for name in columns], axis=1)


def prompt_lengths(tokenized: Dataset) -> Counts:
    """Return the number of tokens of each prompt, (rows,)."""
    lengths = [token_lengths(batch)[:, 0] for batch in read_batches(tokenized, [_trl.TOKEN_IDS[0]])]
    return np.concatenate(lengths) if lengths else np.zeros(0, dtype=np.int64)


def without_limit(args: Any) -> Any:
    """Return a configuration with which no row is dropped or cut."""
    unlimited = copy.copy(args)
    unlimited.max_length = None
    return unlimited


def all_dropped(whole: Dataset, limit: int) -> Finding:
    """The finding that no row is left.

    Args:
        whole: the rows, tokenized without a limit.
        limit: `max_length`.
    """
    lengths = prompt_lengths(whole)
    return Finding(
        "all_dropped",
        ERROR,
        len(whole),
        len(whole),
        f"all {len(whole)} rows dropped: the prompt alone fills max_length={limit} in every row, and the shortest "
        f"prompt has {lengths.min()} tokens",
        f"Raise max_length to {lengths.max() + 1} to keep all rows, or set truncation_mode='keep_end'.",
    )


def _values(column: columnar.ArrowColumn) -> npt.NDArray:
    return column.flatten().to_numpy(zero_copy_only=False)
