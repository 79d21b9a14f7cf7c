"""Decide whether rows are lists or pairs: by what they hold, and by the options where they hold both."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from datasets import Dataset

from ... import _trl
from .. import columnar
from ..batches import read_batches
from ..config import DataOptions
from ..findings import WARNING, Finding
from ..rows import SIDES
from .layouts import LISTS, SINGLE, ListLayout, are_completions, list_layout, orders_itself

LIST_OPTIONS = ("max_completions", "list_pairs", "list_reduction")
"""Options that lists alone read."""
DEFAULTS = {option.name: option.default for option in dataclasses.fields(DataOptions)}
_ORDERING = (*LISTS, *SINGLE, "best", "helpfulness")
_TELLING = (*SIDES, "answers", "completions", "completion", "response", *_ORDERING)
"""Columns whose values tell a layout, and not their names alone."""
_LIST_NAMES = {"completions", "scores", "ranks", "best", "completion", "score", "rank"}
_PAIR_NAMES = {*SIDES, "a", "b"}


def telling_row(dataset: Any) -> Mapping[str, Any] | None:
    """Return the first row, in which a value that tells no layout is replaced by that of a later row.

    An empty list is no sign of anything, and a list of one text in a side is one of lists if a later row has several.
    Of a stream, this is the first row; None where a dataset has none.
    """
    dataset = dataset.with_format(None) if isinstance(dataset, Dataset) else dataset
    first = next(iter(dataset), None)
    if not isinstance(first, Mapping) or not isinstance(dataset, Dataset):
        return first
    return {**first, **{name: _telling(dataset, name, first[name]) for name in _TELLING if name in first}}


def _telling(dataset: Dataset, column: str, value: Any) -> Any:
    for longer in _longer_and_longer(dataset, column, value):
        if not _tells_nothing(longer) and (column not in SIDES or not _may_be_one_of_several(longer)):
            return longer
        value = longer
    return value


def _tells_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, list) and value in ([], [None]))


def _may_be_one_of_several(value: Any) -> bool:
    """Whether a value is a list of one text, or of one list of messages, of which another row may have several."""
    return are_completions(value) and len(value) < 2


def _longer_and_longer(dataset: Dataset, column: str, value: Any) -> Iterator[Any]:
    yield value
    for batch in read_batches(dataset, [column]):
        try:
            lengths = columnar.list_lengths(batch.column(column))
        except columnar.UnknownLayoutError:
            rows = [row[column] for row in batch.rows(column)]
            lengths = np.array([_size(row) for row in rows])
        longer = np.flatnonzero(lengths > _size(value))
        if len(longer):
            most = int(longer[lengths[longer].argmax()])
            (row,) = batch.rows_at([most], [column])
            value = row[column]
            yield value


def _size(value: Any) -> int:
    """The length of a list; of another value, whether there is one."""
    return len(value) if isinstance(value, list) else int(value is not None)


def layout_of(dataset: Any) -> ListLayout | None:
    """Return the layout of a dataset's lists; None if its rows do not hold completions of any number."""
    first = telling_row(dataset)
    return list_layout(first) if isinstance(first, Mapping) else None


def holds_lists(dataset: Any, args: Any = None) -> bool:
    """Whether the rows of a dataset are lists to train on, and not pairs.

    Args:
        dataset: any.
        args: the run's configuration, which decides where rows hold both; without it, they are pairs.
    """
    if _trl.is_tokenized(dataset):
        return False  # before a row is read, which would count as a row of a stream
    first = telling_row(dataset)
    named = bool(_LIST_NAMES & set(getattr(args, "dataset_columns", None) or {}))
    return first is not None and _is_of_lists(first, wants_lists(args), named)


def _is_of_lists(first: Any, wanted: bool | None, named: bool = False) -> bool:
    """Whether rows are lists.

    Args:
        first: their first one, of `telling_row`.
        wanted: of `wants_lists`.
        named: whether the options name a column of lists, so that its values, if wrong, are an error.
    """
    layout = list_layout(first) if isinstance(first, Mapping) else None
    if layout is None:
        return False
    if set(SIDES) <= set(first):
        if are_completions(first["rejected"]):
            return not all(isinstance(first[side], list) and len(first[side]) == 1 for side in SIDES)
        if not wanted or not (named or _can_be_lists(first, layout)):
            return False
    return layout.completion != "completion" or layout.read is not None or bool(set(SINGLE) & set(first))


def _can_be_lists(first: Mapping[str, Any], layout: ListLayout) -> bool:
    """Whether the values of a row beside pairs are completions with something that orders them, and not a bare name."""
    if layout.read is None:
        said, orders = first[layout.completion], layout.single
        return _is_completion(said) and any(first.get(name) is not None for name in orders)
    said = first.get("completions")
    if "completions" not in first:
        return True  # told by its values already
    if not isinstance(said, list) or not said or not all(_is_completion(each) for each in said if each is not None):
        return False
    return any(first.get(name) is not None for name in (*LISTS, *SINGLE, "best")) or any(map(orders_itself, said))


def _is_completion(value: Any) -> bool:
    return isinstance(value, (str, list, Mapping))


def wants_lists(args: Any) -> bool | None:
    """Whether a run's options speak of lists, or of pairs; None if of neither, or of both.

    Lists are meant by a loss that reads them, by an option that they alone have, and by a name that `dataset_columns`
    gives to one of their columns; pairs by `gather_lists`, which makes lists of them, and by a name of their columns.
    """
    names = set(getattr(args, "dataset_columns", None) or {})
    if getattr(args, "gather_lists", False):
        return False
    of_lists, of_pairs = bool(names & _LIST_NAMES), bool(names & _PAIR_NAMES)
    if of_lists or of_pairs:
        return None if of_lists and of_pairs else of_lists
    changed = any(getattr(args, name, DEFAULTS[name]) != DEFAULTS[name] for name in LIST_OPTIONS)
    mixture = getattr(args, "loss_mixture", None)
    if changed or (mixture is not None and any(term.variant.reads == "lists" for term in mixture().terms)):
        return True
    return None


def lists_unread(dataset: Any, args: Any) -> Finding | None:
    """The finding that rows of pairs hold lists, too, where no option says which are meant."""
    first = telling_row(dataset) if isinstance(dataset, Dataset) and not _trl.is_tokenized(dataset) else None
    if first is None or wants_lists(args) is not None or _is_of_lists(first, None) or not _is_of_lists(first, True):
        return None
    name = next(name for name in ("completions", "answers", "completion", "response") if name in first)
    sentence = (
        f"the rows hold pairs (chosen, rejected) and lists (column {name!r}), and the pairs are trained on, as no "
        "option says which are meant"
    )
    remedy = (
        f"Set --dataset_columns {'completion' if name in ('completion', 'response') else 'completions'}={name} to "
        "train on the lists, or chosen=chosen to keep the pairs."
    )
    return Finding("layout", WARNING, len(dataset), len(dataset), sentence, remedy)
