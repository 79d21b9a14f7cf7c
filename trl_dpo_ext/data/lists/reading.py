"""Reads a dataset as lists, whatever its layout, and makes rows of pairs of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from ... import _trl
from ...core.columns import Column
from ...core.lists import Order
from ...errors import InputError
from ..findings import WARNING, Finding
from ..rows import SIDES
from .gathering import read_pairs
from .layouts import SINGLE, list_layout, read_layout
from .pair_rows import pair_rows
from .selection import ListSelection

_BESIDE = ("system", "tools", "chat_template_kwargs")
"""Columns that are kept of a dataset of lists, besides those that losses read."""


@dataclass(frozen=True)
class ListData:
    """A dataset of lists as rows of pairs."""

    rows: Dataset
    findings: list[Finding]
    order: Order
    """What orders the completions."""
    columns: tuple[str, ...]
    """Columns that were read for prompt and completions."""


def holds_lists(dataset: Any) -> bool:
    """Whether the rows of a dataset are lists to train on, and not pairs."""
    if _trl.is_tokenized(dataset):
        return False  # before a row is read, which would count as a row of a stream
    first = next(iter(dataset), None)
    layout = list_layout(first) if isinstance(first, Mapping) else None
    if first is None or layout is None:
        return False
    if set(SIDES) <= set(first) and ("rejected" not in layout.columns or _is_pair(first)):
        return False
    return layout.completion != "completion" or layout.read is not None or bool(set(SINGLE) & set(first))


def _is_pair(row: Mapping[str, Any]) -> bool:
    """Whether each side is a list of one answer, which is a pair in a layout of its own."""
    return all(isinstance(row[side], list) and len(row[side]) == 1 for side in SIDES)


def read_lists(
    dataset: Any, name: str, args: Any, numbers: Sequence[int], columns: Sequence[str], scores: Column | None = None
) -> ListData:
    """Read a dataset as lists; rows of pairs become lists of two, or are gathered with `gather_lists`.

    Args:
        dataset: any.
        name: what messages call it.
        args: the run's configuration.
        numbers: the number that messages give each row.
        columns: that losses read besides.
        scores: what the scores may hold; None if no loss reads them.

    Raises:
        InputError: listing what is wrong.
    """
    if not isinstance(dataset, Dataset):
        raise InputError(
            f"{name} is a stream, and lists are read from datasets that are loaded: their rows are gathered and "
            "checked before training. Load it without streaming."
        )
    given = [column for column in _trl.REFERENCE_COLUMNS if column in dataset.column_names]
    if given and args.precompute_ref_log_probs:
        raise InputError(
            f"{name} has reference log-probs of pairs ({', '.join(given)}), which lists do not read. Remove these "
            "columns, so that a store is used."
        )
    images = _trl.image_columns(dataset.column_names)
    if images:
        raise InputError(f"{name} has images (column {images[0]}), which lists cannot have yet. Train on pairs.")
    found, wrong = [], list[int]()
    if holds_lists(dataset):
        first: Any = next(iter(dataset))
        layout = list_layout(first)
        assert layout is not None
        read, used = read_layout(dataset, layout, name, _BESIDE, columns), layout.columns
    else:
        read, wrong = read_pairs(dataset, name, args.gather_lists, _BESIDE, columns)
        used = ("prompt", *SIDES)
    if wrong:
        found.append(_contradicting(len(dataset), [numbers[row] for row in wrong]))
    seed = args.seed if args.data_seed is None else args.data_seed
    selection = ListSelection(read, name, numbers, args.max_completions, seed, scores)
    rows = pair_rows(selection.lists, dataset, numbers, [*_BESIDE, *columns])
    read_columns = tuple(column for column in used if column in dataset.column_names)
    return ListData(rows, [*found, *selection.findings()], selection.order, read_columns)


def _contradicting(total: int, rows: list[int]) -> Finding:
    sentence = (
        f"{len(rows)} of {total} rows are left out, first row {rows[0]}: with others of their prompt, they prefer a "
        "completion to itself"
    )
    return Finding("contradictory", WARNING, len(rows), total, sentence, "Decide which rows are right.", rows)
