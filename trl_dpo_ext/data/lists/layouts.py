"""Read the layouts of several completions: lists in a row, several rows per prompt, right and wrong answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from ...core.lists import Order
from ..row_problems import RowError, RowProblems, rows_of
from .agreement import PairCounts
from .groups import Groups

LISTS = {"scores": 1.0, "rewards": 1.0, "ranks": -1.0}
"""Columns of lists beside `completions`; a higher score is better, a higher rank is worse."""
SINGLE = {"score": 1.0, "reward": 1.0, "rank": -1.0}
"""The same of one completion."""
_TEXTS = ("completion", "response", "answer", "text", "content")
"""What the completion is called where `completions` holds more than it: in UltraFeedback `response`, in Nectar
`answer`."""
_ROLES = {"role", "from"}
"""What tells a message."""


@dataclass(frozen=True)
class Completions:
    """All completions of a dataset.

    Attributes:
        prompts: of each prompt, a text or messages.
        texts: of each completion, a text or messages.
        groups: which completions belong to which prompt.
        orders: what the scores were made of.
        rows: (prompts,) int64; the row of each prompt, its first one where each row holds one completion.
    """

    prompts: list[Any]
    texts: list[Any]
    groups: Groups
    orders: frozenset[Order] = frozenset()
    rows: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


Given = tuple[float, float]
"""The score and the negative rank of a completion, the higher the better; NaN for what is not given."""


@dataclass(frozen=True)
class ListLayout:
    """A layout of several completions per prompt.

    Attributes:
        columns: that are read.
        read: gives the completions of a row and what orders them; None where each row holds one completion.
        prompt, completion: names of columns; the latter of one completion.
        single: columns with the score or rank of one completion, and their signs.
        best: whether the best completions are known and nothing else, so that a score is 1 or 0.
    """

    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], tuple[list[Any], list[Given]]] | None = None
    prompt: str = "prompt"
    completion: str = "completion"
    single: Mapping[str, float] = field(default_factory=lambda: SINGLE)
    best: bool = False


def list_layout(first: Mapping[str, Any]) -> ListLayout | None:
    """Return the layout of a dataset by its first row; None if a row does not hold completions of any number.

    Besides `completions` with `scores`, `ranks`, or `best`, these are the layouts of UltraFeedback, Nectar, HelpSteer,
    RewardBench 2, and of one chosen with several rejected completions.
    """
    if "completions" in first:
        prompt = "prompt" if "prompt" in first or "instruction" not in first else "instruction"
        return ListLayout((prompt, "completions", "best", *LISTS, *SINGLE), _listed, prompt, best="best" in first)
    if is_list_of(first.get("answers"), lambda item: isinstance(item, Mapping) and "answer" in item):
        return ListLayout(("prompt", "answers"), _nectar)
    if "completion" in first:
        return ListLayout(("prompt", "completion", *SINGLE))
    if {"prompt", "response", "helpfulness"} <= set(first):
        return ListLayout(("prompt", "response", "helpfulness"), completion="response", single={"helpfulness": 1.0})
    if "chosen" in first and are_completions(first.get("rejected")):
        return ListLayout(("prompt", "chosen", "rejected", "num_correct"), _right_and_wrong, best=True)
    return None


def is_list_of(value: Any, fits: Callable[[Any], bool]) -> bool:
    """Whether a value is a list with items, which all fit."""
    return isinstance(value, list) and bool(value) and all(map(fits, value))


def read_layout(
    dataset: Dataset,
    layout: ListLayout,
    name: str = "dataset",
    context: Sequence[str] = (),
    shared: Sequence[str] = (),
) -> Completions:
    """Read the completions of a dataset in a layout, which messages call `name`.

    Where each row holds one completion, rows belong together if they also agree in the columns `context`; the columns
    `shared` must have one value for each list.
    """
    if layout.read is None:
        return _of_several_rows(dataset, layout, RowProblems(name), context, shared)
    return _of_rows(dataset, layout, RowProblems(name))


def _of_rows(dataset: Dataset, layout: ListLayout, problems: RowProblems) -> Completions:
    """One prompt per row."""
    assert layout.read is not None
    prompts, texts, scores, sizes, by_rank = [], [], [], [0], []
    orders, rows = set[Order](), list[int]()
    for at, row in rows_of(dataset, layout.columns):
        try:
            prompt, (completions, given) = _prompt(row, layout.prompt), layout.read(row)
            values, are_ranks = _one_order(given)
        except RowError as error:
            problems.add(at, error)
            continue
        prompts.append(prompt)
        texts += completions
        scores += values
        orders |= _orders(given, layout.best)
        rows.append(at)
        sizes.append(len(completions))
        by_rank.append(are_ranks)
    problems.raise_all(len(dataset))
    found = np.cumsum(sizes), np.array(scores, np.float64), np.arange(len(texts))
    groups = Groups(*found, by_rank=np.array(by_rank, bool))
    return Completions(prompts, texts, groups, frozenset(orders), np.array(rows, np.int64))


def _orders(given: list[Given], best: bool) -> set[Order]:
    """What orders completions."""
    has_scores, has_ranks = (any(not math.isnan(each[at]) for each in given) for at in (0, 1))
    found: set[Order] = {"ranks"} if has_ranks else set()
    if has_scores:
        found.add("best" if best else "scores")
    return found


def _of_several_rows(
    dataset: Dataset, layout: ListLayout, problems: RowProblems, context: Sequence[str], shared: Sequence[str]
) -> Completions:
    """One completion per row; rows with one prompt belong together, wherever they stand."""
    members: dict[str, list[int]] = {}
    firsts_of: dict[str, Mapping[str, Any]] = {}
    prompts, texts, given, rows = {}, [], [], []
    for at, row in rows_of(dataset, (*layout.columns, *context, *shared)):
        try:
            prompt, text = _prompt(row, layout.prompt), _text(row[layout.completion])
            score = _given(row, layout.single)
            key = prompt_key(row, prompt, context)
            check_shared(firsts_of.setdefault(key, row), row, shared)
        except RowError as error:
            problems.add(at, error)
            continue
        prompts.setdefault(key, prompt)
        members.setdefault(key, []).append(len(texts))
        texts.append(text)
        given.append(score)
        rows.append(at)
    problems.raise_all(len(dataset))
    scores, by_rank = list[float](), list[bool]()
    for places in members.values():
        try:
            values, are_ranks = _one_order([given[place] for place in places])
            scores += values
            by_rank.append(are_ranks)
        except RowError as error:
            problems.add(places[0], error)
    problems.raise_all(len(dataset))
    order = [place for places in members.values() for place in places]
    bounds = np.cumsum([0, *map(len, members.values())])
    found = bounds, np.array(scores, np.float64), np.array(order, np.int64)
    groups = Groups(*found, in_lists=False, by_rank=np.array(by_rank, bool))
    firsts = np.array([rows[places[0]] for places in members.values()], np.int64)
    texts = [texts[place] for place in order]
    return Completions(list(prompts.values()), texts, groups, frozenset(_orders(given, False)), firsts)


def content_key(value: Any) -> str:
    """Return a text that is equal for equal texts or messages."""
    return json.dumps(value, sort_keys=True, default=str)


def prompt_key(row: Mapping[str, Any], prompt: Any, context: Sequence[str]) -> str:
    """Return a text that is equal for rows with the same prompt in the same context."""
    return content_key([prompt, *(row.get(name) for name in context)])


def check_shared(first: Mapping[str, Any], row: Mapping[str, Any], shared: Sequence[str]) -> None:
    """Check that a row has the values of the first row of its list."""
    for name in shared:
        if content_key(row.get(name)) != content_key(first.get(name)):
            raise RowError(f"column {name!r} differs between rows of one list, which has one value", _shown(row[name]))


def _prompt(row: Mapping[str, Any], column: str = "prompt") -> Any:
    prompt = row.get(column)
    if not isinstance(prompt, (str, list)):
        raise RowError("there is no prompt, a text or messages, beside the completions. Add a column 'prompt'")
    return prompt


def _listed(row: Mapping[str, Any]) -> tuple[list[Any], list[Given]]:
    """Completions of a row with lists, and what orders them."""
    items = _items(row["completions"])
    if not isinstance(items, list):
        raise RowError("completions is not a list. Give a list of texts, or of message lists", _shown(items))
    beside = {name: row[name] for name in (*LISTS, *SINGLE) if row.get(name) is not None}
    for name, values in beside.items():
        if not isinstance(values, list) or len(values) != len(items):
            raise RowError(f"{name} does not have one value for each completion. Give None for none", _shown(values))
    best = _best(row["best"], len(items)) if "best" in row and items else None
    texts, given = [], []
    for place, item in enumerate(items):
        inside = item if isinstance(item, Mapping) and not _ROLES & set(item) else {}
        text = next((inside[name] for name in _TEXTS if name in inside), item)
        values = {name: inside.get(name) for name in SINGLE} | {name: each[place] for name, each in beside.items()}
        texts.append(_text(text))
        score, rank = _given(values, SINGLE | LISTS)
        if "overall_score" in inside:
            own = _usable(inside["overall_score"])
            if not math.isnan(score) and score != own:
                raise RowError("scores differ from overall_score. Remove one of them")
            score = own
        given.append((score, rank))
    if best is not None:
        for order in zip(*given, strict=True):
            if any(value > order[best] for value in order) or (
                math.isnan(order[best]) and not all(map(math.isnan, order))
            ):
                raise RowError("best is not a completion with the highest score or rank. Remove one of them")
        given = [(float(place == best), math.nan) for place in range(len(items))]
    return texts, given


def orders_itself(item: Any) -> bool:
    """Whether an item of `completions` has a score or a rank inside."""
    inside = item if isinstance(item, Mapping) else {}
    return any(inside.get(name) is not None for name in (*SINGLE, "overall_score"))


def are_completions(value: Any) -> bool:
    """Whether a value is a list of texts or of message lists, and not one message list; some may be missing."""
    items = [item for item in value if item is not None] if isinstance(value, list) else []
    return is_list_of(items, lambda item: isinstance(item, (str, list)))


def _items(value: Any) -> Any:
    """No completions where there is nothing, so that the row is left out and counted."""
    return [] if value is None else value


def _best(value: Any, completions: int) -> int:
    whole = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1
    if not whole or not 0 <= value < completions:
        raise RowError(
            "best is not the index of a completion, counted from 0. Correct or filter these rows", _shown(value)
        )
    return int(value)


def _usable(value: Any) -> float:
    """UltraFeedback's score, which some answers do not have."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def _nectar(row: Mapping[str, Any]) -> tuple[list[Any], list[Given]]:
    items = _items(row["answers"])
    if items and not is_list_of(items, lambda item: isinstance(item, Mapping) and "answer" in item):
        raise RowError("answers is not a list of answers with ranks", _shown(items))
    return [_text(item["answer"]) for item in items], [_given(item, {"rank": -1.0}) for item in items]


def _right_and_wrong(row: Mapping[str, Any]) -> tuple[list[Any], list[Given]]:
    """Right completions, which are equally good, and wrong ones; a chosen completion may stand without a list."""
    chosen, rejected = _items(row["chosen"]), _items(row["rejected"])
    if isinstance(chosen, str) or is_list_of(chosen, lambda item: isinstance(item, Mapping)):
        chosen = [chosen]
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        raise RowError("rejected is not a list of completions beside one or several that are chosen", _shown(rejected))
    texts = [_text(each) for each in (*chosen, *rejected)]
    return texts, [(1.0, math.nan)] * len(chosen) + [(0.0, math.nan)] * len(rejected)


def _text(value: Any) -> Any:
    """A completion: a text, or messages."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and _ROLES & set(value):
        return [value]
    if isinstance(value, list) and value and all(isinstance(each, Mapping) and _ROLES & set(each) for each in value):
        return value
    if value is None:
        raise RowError("a completion is missing (None), neither a text nor messages. Filter these completions")
    raise RowError("a completion is neither a text nor messages. Convert these completions", _shown(value))


def _given(values: Mapping[str, Any], signs: Mapping[str, float]) -> Given:
    found = {True: math.nan, False: math.nan}
    for name, sign in signs.items():
        if values.get(name) is not None:
            value, other = sign * _number(name, values[name]), found[sign < 0]
            if not math.isnan(other) and not math.isnan(value) and other != value:
                raise RowError(f"{name} differs from another score or rank of the completion. Remove one of them")
            found[sign < 0] = value
    return found[False], found[True]


def _one_order(given: list[Given]) -> tuple[list[float], bool]:
    """The scores of the completions of one prompt, or their negative ranks if not all have a score; and whether so."""
    scores, ranks = np.array(given, np.float64).reshape(-1, 2).T
    both = np.isfinite(scores) & np.isfinite(ranks)
    if both.any() and PairCounts.of(scores[both], ranks[both]).discordant:
        raise RowError("ranks and scores order the completions differently. Remove one of them")
    are_ranks = bool(np.isnan(scores).any() and not np.isnan(ranks).all())
    return (ranks if are_ranks else scores).tolist(), are_ranks


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RowError(f"a value of {name} is not a number. Convert it; give None for none", _shown(value))
    if name.startswith("rank") and math.isinf(value):
        raise RowError(f"a value of {name} is not finite", _shown(value))
    return float(value)


def _shown(value: Any) -> str:
    return f"{value!r}"[:40]
