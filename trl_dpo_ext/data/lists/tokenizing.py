"""Tokenizes lists by TRL's preparation of pairs, and says what truncation does to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from ... import _trl
from ...forward.list_rows import LIST_IDS
from ..findings import WARNING, Finding
from ..truncation import without_limit
from .pair_rows import LIST_ROW, equal_after_truncation, gathered, is_of_lists


def prepares_lists(prepare: Callable[..., Any]) -> Callable[..., Any]:
    """Return TRL's `_prepare_dataset` for lists in rows of pairs, which gives one row for each list."""

    def prepared(dataset: Any, processing_class: Any, args: Any, name: str) -> Dataset:
        pairs = prepare(dataset, processing_class, without_limit(args), name)
        return gathered(pairs, args.max_length, args.truncation_mode == "keep_end", name)

    return prepared


def kept_places(prepared: Dataset, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The places of a tokenized dataset's rows in the one that was tokenized, whose rows have these numbers."""
    if not is_of_lists(prepared):
        return _trl.kept_rows(prepared)
    return np.searchsorted(numbers, np.asarray(prepared[LIST_ROW][:]))


def list_findings(prepared: Dataset, numbers: npt.NDArray[np.int64], args: Any) -> list[Finding]:
    """Return what truncation does to lists.

    Args:
        prepared: tokenized lists.
        numbers: of the lists before any was left out, ascending.
        args: the run's configuration.
    """
    keeps_end, total, found = args.truncation_mode == "keep_end", len(numbers), []
    kept = np.asarray(prepared[LIST_ROW][:])
    gone = np.setdiff1d(numbers, kept).tolist()
    if gone:
        sentence = (
            f"max_length={args.max_length} leaves nothing to learn in {len(gone)} of {total} lists, first in row "
            f"{gone[0]}, which are left out: the prompt fills it, or the completions are equal after truncation"
        )
        found.append(Finding("dropped", WARNING, len(gone), total, sentence, "Raise max_length.", gone, "lists"))
    if args.max_length is None:
        return found
    rows: Any = prepared
    cut, same = list[int](), list[int]()
    for row in rows:
        if max(map(len, row[LIST_IDS])) + (0 if keeps_end else len(row["prompt_ids"])) > args.max_length:
            cut.append(row[LIST_ROW])
        if equal_after_truncation(row, args.max_length, keeps_end):
            same.append(row[LIST_ROW])
    remedy = "Raise max_length, or filter these rows."
    if cut:
        sentence = (
            f"max_length={args.max_length} cuts completions of {len(cut)} of {total} lists, first in row {cut[0]}"
        )
        found.append(Finding("answer_cut", WARNING, len(cut), total, sentence, remedy, cut, "lists"))
    if same:
        sentence = (
            f"completions with different scores are equal after truncation to max_length={args.max_length} in "
            f"{len(same)} of {total} lists, first in row {same[0]}; their pairs teach nothing about preference"
        )
        found.append(Finding("identical_after_truncation", WARNING, len(same), total, sentence, remedy, same, "lists"))
    return found
