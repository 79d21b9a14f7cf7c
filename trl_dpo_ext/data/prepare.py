"""Everything that happens to datasets before a model is loaded: columns named, layouts made one, rows checked."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from .. import _trl
from ..core.columns import COLUMNS_OF_SCORES, Column
from ..core.lists import Order
from ..errors import InputError
from ..reference.columns import lone_column_problem, read_columns
from .dataset_columns import loaded_columns, map_columns, sample_mapped
from .findings import EVERY_ROW, WARNING, Finding, ties, told
from .layouts import apply_layout, plan_layout
from .lists.choice import holds_lists, lists_unread
from .lists.pair_rows import LIST_ROW, is_of_lists
from .lists.reading import read_lists
from .lists.refusals import without_scores
from .tool_calls import fit_tool_calls
from .transformed import check_transformed
from .validation import check_preferences

Tell = Callable[[str, Finding], None]


@dataclass(frozen=True)
class Kept:
    """What `checked_datasets` read and kept of one dataset."""

    numbers: Sequence[int] = EVERY_ROW
    """The number that each row had when the dataset was loaded, counted from 0."""
    columns: tuple[str, ...] = ()
    """Columns that were read for prompt and answers, as the loaded dataset calls them."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """What was converted, and in how many rows."""
    order: Order | None = None
    """What orders the completions of its lists; None for pairs."""
    lists: int = 0
    """Number of its lists before any was left out; 0 for pairs."""
    gathers: bool | None = None
    """Whether several of its rows of pairs have become one list; None where it does not hold pairs."""


KEPT_WHOLE = Kept()


def checked_datasets(
    columns: Mapping[str, Column],
    args: Any,
    *,
    tell: Tell | None = None,
    kept: dict[str, Kept] | None = None,
    of_lists: bool | None = None,
    **datasets: Any,
) -> dict[str, Any]:
    """Return each dataset, or dictionary of evaluation datasets, in a layout that TRL takes.

    Lists become the rows of pairs that `pair_rows` describes; if one of the datasets has lists, the others' pairs
    become lists of two.

    Args:
        columns: extra columns that the losses read, with the values they may take.
        args: the run's configuration; `dataset_columns` names columns that are called otherwise.
        tell: takes each finding and the name of its dataset; by default it becomes a warning, unless it is ignored.
        kept: is filled with what was kept of each dataset, by its name.
        of_lists: whether the run trains on lists; None if the datasets and `gather_lists` decide.
        **datasets: by the name that messages call them.

    Raises:
        InputError: listing the problems of all datasets.
    """
    problems: list[str] = []
    of_each: dict[str, Kept] = {} if kept is None else kept
    tell, is_start = tell or _warn(args), of_lists is None
    of_lists = are_lists(args, datasets) if of_lists is None else of_lists

    def checked(dataset: Any, name: str) -> Any:
        try:
            dataset, of_each[name] = _checked(dataset, name, columns, args, tell, bool(of_lists))
            return dataset
        except InputError as error:
            problems.extend(error.problems)

    prepared: dict[str, Any] = {}
    for name, dataset in datasets.items():
        if isinstance(dataset, dict) and name == "train_dataset":
            splits = ", ".join(map(str, dataset))
            problems.append(
                f"{name} is a {type(dataset).__name__} of {splits}. Pass one split, such as dataset['train']."
            )
        elif isinstance(dataset, dict):
            prepared[name] = {key: checked(part, f"{name}[{key!r}]") for key, part in dataset.items()}
        else:  # TRL names a missing train_dataset itself, and eval_dataset is optional
            prepared[name] = None if dataset is None else checked(dataset, name)
    if is_start and args.gather_lists and of_each and not problems:
        problems += _gathering_problems(of_each, tell)
    if problems:
        raise InputError(*problems)
    return prepared


def _gathering_problems(kept: Mapping[str, Kept], tell: Tell) -> list[str]:
    """Return why `gather_lists` has no effect, and tell where it finds nothing to gather."""
    gathers = {name: each.gathers for name, each in kept.items()}
    if set(gathers.values()) == {None}:
        return [f"gather_lists=True has no effect: {' and '.join(gathers)} holds lists already. Remove it."]
    if True not in gathers.values():
        name = next(name for name, gathered in gathers.items() if gathered is not None)
        lists = kept[name].lists
        sentence = f"gather_lists has no effect: no two of {lists} rows share a prompt, so that each is a list of two"
        finding = Finding("not_gathered", WARNING, lists, lists, sentence, "Remove it, or look at column 'prompt'.")
        tell(name, finding)
    return []


def are_lists(args: Any, datasets: Mapping[str, Any]) -> bool:
    """Whether a run trains on lists: if one of its datasets holds some, or pairs are to be gathered."""
    mapping, parts = args.dataset_columns or {}, named_parts(datasets).values()
    return args.gather_lists or any(
        is_of_lists(part) or holds_lists(sample_mapped(part, mapping), args) for part in parts
    )


def named_parts(datasets: Mapping[str, Any]) -> dict[str, Any]:
    """Each dataset, or each of a dictionary of them, by the name that messages call it."""
    named: dict[str, Any] = {}
    for name, data in datasets.items():
        parts = {f"{name}[{key!r}]": part for key, part in data.items()} if isinstance(data, Mapping) else {name: data}
        named |= {label: part for label, part in parts.items() if part is not None}
    return named


def with_fitting_tool_calls(
    datasets: Mapping[str, Any], processing_class: Any, kept: Mapping[str, Kept] | None = None
) -> dict[str, Any]:
    """Return checked datasets with the arguments of tool calls as the chat template prints them.

    Args:
        datasets: by the name that messages call them.
        processing_class: with the chat template.
        kept: of each dataset, as `checked_datasets` fills it in.

    Raises:
        InputError: listing the problems of all datasets.
    """
    problems: list[str] = []

    def fitted(dataset: Any, name: str) -> Any:
        if isinstance(dataset, dict):
            return {key: fitted(part, f"{name}[{key!r}]") for key, part in dataset.items()}
        try:
            return fit_tool_calls(dataset, processing_class, name, (kept or {}).get(name, KEPT_WHOLE).numbers)
        except InputError as error:
            problems.extend(error.problems)

    found = {name: fitted(dataset, name) for name, dataset in datasets.items()}
    if problems:
        raise InputError(*problems)
    return found


def _warn(args: Any) -> Tell:
    def warn(name: str, finding: Finding) -> None:
        for line in told([finding], name, args):
            warnings.warn(line, stacklevel=7)

    return warn


def _checked(
    dataset: Any, name: str, columns: Mapping[str, Column], args: Any, tell: Tell, of_lists: bool
) -> tuple[Any, Kept]:
    """A dataset in a layout that TRL takes, and what was kept of it."""
    numbers, mapping = EVERY_ROW, args.dataset_columns or {}
    loaded = dataset
    if not isinstance(dataset, (Dataset, IterableDataset)):
        raise InputError(*check_preferences(dataset, name, columns).problems)
    if _trl.is_transformed(dataset):

        def checked(rows: Dataset, which: str) -> Dataset:
            return _checked(rows, which, columns, args, tell, of_lists)[0]

        check_transformed(dataset, name, args, tuple(columns), checked)
        return dataset, KEPT_WHOLE
    dataset = _without_format(dataset)
    if not _trl.is_tokenized(dataset):  # what is, has been here before
        dataset = map_columns(dataset, name, mapping)
        if isinstance(loaded, Dataset) and len(dataset) < len(loaded):
            numbers = _trl.kept_rows(dataset).tolist()
            tell(name, ties(len(loaded), numbers))
        columns = {**columns, **_own_reference(dataset, name, args)}
    lists = None
    if not of_lists and (is_of_lists(dataset) or holds_lists(dataset, args)):
        raise InputError(f"{name} holds lists, and this trainer was created with pairs. Create one with lists.")
    if of_lists and not is_of_lists(dataset):
        scores = next((columns[column] for column in COLUMNS_OF_SCORES if column in columns), None)
        columns = without_scores(columns)
        lists = read_lists(dataset, name, args, numbers, tuple(columns), scores)
        for finding in lists.findings:
            tell(name, finding)
        dataset, numbers = lists.rows, lists.rows[LIST_ROW][:]
    elif (unread := lists_unread(dataset, args)) is not None:
        tell(name, unread)
    # The rows of a list have one prompt, which two of its completions may not tell.
    plan = plan_layout(dataset, name, numbers, conversational=args.texts_to_messages, explicit=is_of_lists(dataset))
    for finding in plan.findings:
        tell(name, finding)
    if plan.problems:
        others = check_preferences(dataset, name, columns, sides=(), numbers=numbers).problems
        raise InputError(*plan.problems, *others)
    if plan.without:
        numbers = np.delete(np.asarray(numbers[: len(dataset)]), plan.without).tolist()
    dataset = apply_layout(dataset, plan, name)
    report = check_preferences(dataset, name, columns, numbers=numbers)
    for finding in report.findings:
        tell(name, finding)
    if report.problems:
        raise InputError(*report.problems)
    read = plan.layout.columns if lists is None else lists.columns
    columns_read = loaded_columns(read, mapping, _trl.column_names(loaded))
    if lists is None:
        return dataset, Kept(numbers, columns_read, plan.notes)
    return dataset, Kept(numbers, columns_read, plan.notes, lists.order, lists.count, lists.gathers)


def _own_reference(dataset: Any, name: str, args: Any) -> dict[str, Column]:
    """The reference log-probs that are read from the dataset."""
    if not args.precompute_ref_log_probs:
        return {}
    problem = lone_column_problem(dataset)
    if problem:
        raise InputError(f"{name} {problem}")
    return read_columns(dataset)


def _without_format(dataset: Any) -> Any:
    """Return the rows as Python values, which TRL tokenizes and collates; a format is about how rows are read."""
    kind = dataset.format["type"] if isinstance(dataset, Dataset) else None
    return dataset.with_format(None) if kind is not None else dataset
