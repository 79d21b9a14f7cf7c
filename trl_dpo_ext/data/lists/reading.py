"""Reads a dataset as lists, whatever its layout, and makes rows of pairs of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from ... import _trl
from ...core.columns import Column
from ...core.lists import Order
from ...errors import InputError
from ..findings import WARNING, Finding
from ..rows import SIDES
from .choice import holds_lists, layout_of
from .gathering import read_pairs
from .layouts import Completions, read_layout
from .pair_rows import pair_rows
from .selection import ListSelection

_UNKNOWN = (
    "--rank needs the column 'completions' (lists), or 'completion' with several rows per prompt, or lists of texts in "
    "'chosen' and 'rejected'; the dataset has {}. Rename its columns, or remove --rank for pairs."
)
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
    count: int
    """Number of lists before any was left out."""
    gathers: bool | None
    """Whether several rows of pairs have become one list; None where the rows are lists."""


def read_completions(dataset: Dataset) -> Completions:
    """Read prompts with their completions, and the scores or ranks that are given for them.

    Raises:
        InputError: listing the columns and rows that do not fit.
    """
    layout = layout_of(dataset if len(dataset) else [dict.fromkeys(dataset.column_names)])
    if layout is None:
        raise InputError(_UNKNOWN.format(", ".join(dataset.column_names)))
    return read_layout(dataset, layout)


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
    layout = layout_of(dataset) if holds_lists(dataset, args) else None
    if layout is not None:
        read, used = read_layout(dataset, layout, name, _BESIDE, columns), layout.columns
    else:
        read, wrong = read_pairs(dataset, name, args.gather_lists, _BESIDE, columns)
        used = ("prompt", *SIDES)
    if wrong:
        found.append(_contradicting(len(dataset), [numbers[row] for row in wrong]))
        if not read.prompts:
            raise InputError(f"{name}: no list is left to train on: {found[0].sentence}. {found[0].remedy}")
    seed = args.seed if args.data_seed is None else args.data_seed
    selection = ListSelection(read, name, numbers, args.max_completions, seed, scores)
    rows = pair_rows(selection.lists, dataset, numbers, [*_BESIDE, *columns])
    read_columns = tuple(column for column in used if column in dataset.column_names)
    gathers = None if layout is not None else len(read.prompts) < len(dataset) - len(wrong)
    findings = [*found, *selection.findings()]
    return ListData(rows, findings, selection.order, read_columns, len(read.prompts), gathers)


def _contradicting(total: int, rows: list[int]) -> Finding:
    sentence = (
        f"{len(rows)} of {total} rows are left out, first row {rows[0]}: with others of their prompt, they prefer a "
        "completion to itself"
    )
    return Finding("contradictory", WARNING, len(rows), total, sentence, "Decide which rows are right.", rows)
