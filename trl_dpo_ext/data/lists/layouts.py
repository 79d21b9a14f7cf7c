"""Read the layouts of several completions: lists in a row, several rows per prompt, right and wrong answers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from ...errors import InputError
from ..row_problems import RowError, RowProblems, rows_of
from .agreement import PairCounts
from .groups import Groups

LISTS = {"scores": 1.0, "rewards": 1.0, "ranks": -1.0}
"""Columns of lists beside `completions`; a higher score is better, a higher rank is worse."""
SINGLE = {"score": 1.0, "reward": 1.0, "rank": -1.0}
"""The same of one completion."""
_UNKNOWN = (
    "--rank needs the column 'completions' (lists), or 'completion' with several rows per prompt, or lists of texts in "
    "'chosen' and 'rejected'; the dataset has {}. Rename its columns, or remove --rank for pairs."
)


@dataclass(frozen=True)
class Completions:
    """All completions of a dataset.

    Attributes:
        prompts: of each prompt, a text or messages.
        texts: of each completion, a text or messages.
        groups: which completions belong to which prompt.
    """

    prompts: list[Any]
    texts: list[Any]
    groups: Groups


def read_completions(dataset: Dataset) -> Completions:
    """Read prompts with their completions, and the scores or ranks that are given for them.

    Raises:
        InputError: listing the columns and rows that do not fit.
    """
    names = set(dataset.column_names)
    if "completions" in names:
        return _of_rows(dataset, _listed, ("prompt", "completions", *LISTS, *SINGLE))
    if "completion" in names:
        return _of_several_rows(dataset)
    if {"chosen", "rejected"} <= names and _is_list_of_texts(dataset.features["chosen"]):
        return _of_rows(dataset, _right_and_wrong, ("prompt", "chosen", "rejected", "num_correct"))
    raise InputError(_UNKNOWN.format(", ".join(dataset.column_names)))


def _is_list_of_texts(feature: Any) -> bool:
    return getattr(getattr(feature, "feature", None), "dtype", None) in ("string", "large_string")


def _of_rows(dataset: Dataset, read: Any, columns: Sequence[str]) -> Completions:
    """One prompt per row."""
    prompts, texts, scores, sizes, by_rank, problems = [], [], [], [0], [], RowProblems()
    for at, row in rows_of(dataset, columns):
        try:
            prompt, (completions, (given, are_ranks)) = _prompt(row), read(row)
        except RowError as error:
            problems.add(at, error)
            continue
        prompts.append(prompt)
        texts += completions
        scores += given
        sizes.append(len(completions))
        by_rank.append(are_ranks)
    problems.raise_all(len(dataset))
    found = np.cumsum(sizes), np.array(scores, np.float64), np.arange(len(texts))
    return Completions(prompts, texts, Groups(*found, by_rank=np.array(by_rank, bool)))


def _of_several_rows(dataset: Dataset) -> Completions:
    """One completion per row; rows with one prompt belong together, wherever they stand."""
    members: dict[str, list[int]] = {}
    prompts, texts, given, problems = {}, [], [], RowProblems()
    for at, row in rows_of(dataset, ("prompt", "completion", *SINGLE)):
        try:
            prompt, text, score = _prompt(row), _text(row["completion"]), _given(row, SINGLE)
        except RowError as error:
            problems.add(at, error)
            continue
        key = json.dumps(prompt, sort_keys=True, default=str)
        prompts.setdefault(key, prompt)
        members.setdefault(key, []).append(len(texts))
        texts.append(text)
        given.append(score)
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
    return Completions(list(prompts.values()), [texts[place] for place in order], groups)


def _prompt(row: Mapping[str, Any]) -> Any:
    prompt = row.get("prompt")
    if not isinstance(prompt, (str, list)):
        raise RowError("there is no prompt, a text or messages, beside the completions. Add a column 'prompt'")
    return prompt


def _listed(row: Mapping[str, Any]) -> tuple[list[Any], tuple[list[float], bool]]:
    """Completions of a row with lists, and their scores."""
    items = row["completions"]
    if not isinstance(items, list):
        raise RowError("completions is not a list", _shown(items))
    beside = {name: row[name] for name in (*LISTS, *SINGLE) if row.get(name) is not None}
    for name, values in beside.items():
        if not isinstance(values, list) or len(values) != len(items):
            raise RowError(f"{name} does not have one value for each completion", _shown(values))
    texts, given = [], []
    for place, item in enumerate(items):
        inside = item if isinstance(item, Mapping) and "completion" in item else {}
        values = {name: inside.get(name) for name in SINGLE} | {name: each[place] for name, each in beside.items()}
        texts.append(_text(inside.get("completion", item)))
        given.append(_given(values, SINGLE | LISTS))
    return texts, _one_order(given)


def _right_and_wrong(row: Mapping[str, Any]) -> tuple[list[Any], tuple[list[float], bool]]:
    """Completions of RewardBench 2's layout: right ones, which are equally good, and wrong ones."""
    sides = [row["chosen"], row["rejected"]]
    if not all(isinstance(side, list) and all(isinstance(text, str) for text in side) for side in sides):
        raise RowError("chosen and rejected are not lists of texts. Remove --rank for pairs")
    return [*sides[0], *sides[1]], ([1.0] * len(sides[0]) + [0.0] * len(sides[1]), False)


def _text(value: Any) -> Any:
    """A completion: a text, or messages."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and "role" in value:
        return [value]
    if isinstance(value, list) and value and all(isinstance(each, Mapping) and "role" in each for each in value):
        return value
    raise RowError("a completion is neither a text nor messages", _shown(value))


def _given(values: Mapping[str, Any], signs: Mapping[str, float]) -> tuple[float, float]:
    """The score and the negative rank of a completion, the higher the better; NaN for what is not given."""
    found = {True: math.nan, False: math.nan}
    for name, sign in signs.items():
        if values.get(name) is not None:
            found[sign < 0] = sign * _number(name, values[name])
    return found[False], found[True]


def _one_order(given: list[tuple[float, float]]) -> tuple[list[float], bool]:
    """The scores of the completions of one prompt, or their negative ranks if not all have a score; and whether so."""
    scores, ranks = np.array(given, np.float64).reshape(-1, 2).T
    both = np.isfinite(scores) & np.isfinite(ranks)
    if both.any() and PairCounts.of(scores[both], ranks[both]).discordant:
        raise RowError("ranks and scores order the completions differently. Remove one of them")
    are_ranks = bool(np.isnan(scores).any() and not np.isnan(ranks).all())
    return (ranks if are_ranks else scores).tolist(), are_ranks


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RowError(f"a value of {name} is not a number", _shown(value))
    if name.startswith("rank") and not math.isfinite(value):
        raise RowError(f"a value of {name} is not finite", _shown(value))
    return float(value)


def _shown(value: Any) -> str:
    return f"{value!r}"[:40]
