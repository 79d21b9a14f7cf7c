"""Gathers rows of pairs that share a prompt into lists."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from ...core.columns import SCORE_COLUMNS
from ...core.lists import Order
from ...errors import InputError
from ..row_problems import RowError, RowProblems, rows_of
from .groups import Groups
from .layouts import Completions, check_shared, content_key, prompt_key

_Scored = dict[str, set[float]]


def read_pairs(
    dataset: Dataset, name: str, gather: bool, context: Sequence[str] = (), shared: Sequence[str] = ()
) -> tuple[Completions, list[int]]:
    """Read pairs as lists: each pair one of two, or all pairs of a prompt as one, wherever they stand.

    With scores of both sides, these order a list. Without, the pairs do: their completions get ranks, if the pairs
    decide between any two of different rank; otherwise each chosen completion makes a list with those that it was
    preferred to.

    Args:
        dataset: with `prompt`, `chosen`, `rejected`, and perhaps `score_chosen` and `score_rejected`.
        name: what messages call it.
        gather: whether rows that share a prompt become one list.
        context: columns that are part of the prompt, such as a system message.
        shared: columns with one value for each list.

    Returns:
        The lists, and the rows whose pairs contradict others and are left out.

    Raises:
        InputError: there is no column `prompt`, or a row's scores are no numbers.
    """
    if "prompt" not in dataset.column_names:
        raise InputError(f"{name} has no column 'prompt', which tells the rows of one list. Add it.")
    scored = set(SCORE_COLUMNS) <= set(dataset.column_names)
    members: dict[str, list[tuple[int, Any]]] = {}
    problems = RowProblems(name)
    for at, row in rows_of(dataset, ("prompt", "chosen", "rejected", *SCORE_COLUMNS, *context, *shared)):
        try:
            _check(row, scored)
        except RowError as error:
            problems.add(at, error)
        key = prompt_key(row, row["prompt"], context) if gather else str(at)
        several = members.setdefault(key, [])
        several.append((at, row))
        try:
            check_shared(several[0][1], row, shared)
        except RowError as error:
            problems.add(at, error)
    problems.raise_all(len(dataset))
    prompts, texts, scores, sizes, rows, contradicting = [], [], [], [0], [], list[int]()
    for several in members.values():
        lists, wrong = _of_scores(several) if scored else _of_preferences(several)
        contradicting += wrong
        for at, completions in lists:
            prompts.append(several[0][1]["prompt"])
            texts += [text for text, _ in completions]
            scores += [score for _, score in completions]
            sizes.append(len(completions))
            rows.append(at)
    groups = Groups(np.cumsum(sizes), np.array(scores, np.float64), np.arange(len(texts)))
    order: Order = "scores" if scored else "ranks"
    return Completions(prompts, texts, groups, frozenset([order]), np.array(rows, np.int64)), sorted(contradicting)


_List = tuple[int, list[tuple[Any, float]]]
"""The first row of a list, and its completions with their scores."""


def _check(row: Any, scored: bool) -> None:
    for column in SCORE_COLUMNS if scored else ():
        if isinstance(row[column], bool) or not isinstance(row[column], (int, float, type(None))):
            raise RowError(f"column {column!r} must be a number", repr(row[column])[:40])
    chosen, rejected = (row[column] if scored else None for column in SCORE_COLUMNS)
    if chosen is not None and rejected is not None and chosen < rejected:
        told = f"{chosen:g} and {rejected:g}"
        raise RowError("score_chosen is lower than score_rejected, so that the list would reverse the pair", told)


def _of_scores(rows: Sequence[tuple[int, Any]]) -> tuple[list[_List], list[int]]:
    """One list of the completions with their scores; a completion with several has each of them."""
    found: dict[tuple[str, float], tuple[Any, float]] = {}
    for _, row in rows:
        for side in ("chosen", "rejected"):
            given = row[f"score_{side}"]
            score = math.nan if given is None else float(given)
            found.setdefault((content_key(row[side]), score), (row[side], score))
    return [(rows[0][0], list(found.values()))], []


def _of_preferences(rows: Sequence[tuple[int, Any]]) -> tuple[list[_List], list[int]]:
    texts: dict[str, Any] = {}
    over: dict[str, set[str]] = {}
    first: dict[str, int] = {}
    for at, row in rows:
        chosen, rejected = content_key(row["chosen"]), content_key(row["rejected"])
        texts |= {chosen: row["chosen"], rejected: row["rejected"]}
        over.setdefault(chosen, set()).add(rejected)
        first.setdefault(chosen, at)
    below = _all_below(over)
    circular = {key for key in below if key in below[key]}
    wrong = [at for at, row in rows if content_key(row["chosen"]) in circular]
    over = {key: losers for key, losers in over.items() if key not in circular}
    below = {key: losers for key, losers in below.items() if key not in circular}
    if not over:
        return [], wrong
    ranks = _ranks(below)
    # -rank is the order; without a full one, each chosen completion has a list.
    if all(ranks[worse] <= ranks[better] or worse in below.get(better, ()) for better in ranks for worse in ranks):
        place = min(first[key] for key in over)
        return [(place, [(texts[key], -float(rank)) for key, rank in ranks.items()])], wrong
    return [
        (first[key], [(texts[key], -1.0), *((texts[loser], -2.0) for loser in _in_order(losers, texts))])
        for key, losers in over.items()
    ], wrong


def _all_below(over: dict[str, set[str]]) -> dict[str, set[str]]:
    """Everything that a completion is preferred to, directly or by others."""
    below: dict[str, set[str]] = {}
    for start in over:
        waiting, seen = [*over[start]], set[str]()
        while waiting:
            key = waiting.pop()
            if key not in seen:
                seen.add(key)
                waiting += over.get(key, ())
        below[start] = seen
    return below


def _ranks(below: dict[str, set[str]]) -> dict[str, int]:
    """The rank of each completion, from 1: one more than the number of those above it in the longest chain."""
    every = dict.fromkeys([*below, *(key for losers in below.values() for key in losers)])
    above = {key: [better for better, losers in below.items() if key in losers] for key in every}
    ranks: dict[str, int] = {}
    for key in sorted(every, key=lambda key: len(above[key])):  # whoever is above has fewer above
        ranks[key] = 1 + max((ranks[better] for better in above[key]), default=0)
    return ranks


def _in_order(keys: Iterable[str], texts: dict[str, Any]) -> list[str]:
    """Keys in the order in which their texts were read, which does not depend on Python's hash seed."""
    wanted = set(keys)
    return [key for key in texts if key in wanted]
