"""Which lists and which of their completions are trained on, and what is said of the others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.columns import Column, as_float32
from ...core.lists import ORDERS, Order
from ...errors import InputError
from ..findings import EVERY_ROW, NOTE, WARNING, Finding
from ..messages import ANSWER_FIELDS, is_set
from .layouts import Completions, content_key

_WITHOUT_ORDER = (
    "{}: nothing orders the completions. Add a column scores (a list of numbers for each row, higher is better), ranks "
    "(1 is best), or best (an index)."
)


@dataclass(frozen=True)
class CompletionList:
    """The completions of one prompt that are trained on."""

    row: int
    """Its place in the dataset that was read."""
    prompt: Any
    completions: list[Any]
    scores: list[float]
    """The higher the better; not all are equal."""


@dataclass
class ListSelection:
    """The lists of a dataset that are trained on.

    Args:
        read: all completions of the dataset.
        name: what messages call it.
        numbers: the number that messages give each of its rows.
        most: completions of a list that are kept, at most; None keeps all.
        seed: draws the completions that are kept besides the best and the worst one.
        bounds: what scores may hold; None if no loss reads them.

    Raises:
        InputError: listing what is wrong with the rows, or that no list is left.
    """

    read: Completions
    name: str
    numbers: Sequence[int] = EVERY_ROW
    most: int | None = None
    seed: int = 0
    bounds: Column | None = None
    lists: list[CompletionList] = field(default_factory=list)
    found: dict[str, list[int]] = field(default_factory=dict)
    """By what happened to a list: the places of their rows."""

    def __post_init__(self) -> None:
        if len(self.read.texts) and not self.read.orders:
            raise InputError(_WITHOUT_ORDER.format(self.name))
        if len(self.read.orders) > 1:
            both = " and ".join(order for order in ORDERS if order in self.read.orders)
            raise InputError(f"{self.name} orders its completions by {both}. Remove one of them.")
        for one in self._given():
            kept = self._kept(one)
            if kept is not None:
                self.lists.append(kept)
        problems = self._problems()
        if not self.lists and not problems:
            problems = [f"{self.name}: no list is left to train on. {self._worded(_sentence(self._left_out()))}."]
        if problems:
            raise InputError(*problems)

    @property
    def order(self) -> Order:
        """What orders the completions."""
        orders: list[Order] = [*self.read.orders]
        return orders[0] if orders else "scores"

    def findings(self) -> list[Finding]:
        """Return what was left out, and why."""
        total, found = len(self.read.prompts), []
        left_out = self._left_out()
        if left_out:
            rows = [row for words in left_out for row in self.found[words]]
            reasons = self._worded(_sentence(left_out))
            sentence = f"{len(rows)} of {total} lists have nothing to learn and are left out: {reasons}"
            found.append(self._finding("lists_left_out", WARNING, rows, sentence, "Filter these rows."))
        for name, level, words, remedy in _TOLD:
            rows = self.found.get(words, [])
            if rows:
                lists = len(set(rows))
                sentence = f"{self._worded(words)}: {len(rows)} in {lists} of {total} lists"
                found.append(self._finding(name, level, rows, sentence, remedy))
        return found

    def _worded(self, sentence: str) -> str:
        """A sentence about scores as it is said of what the data has."""
        return sentence.replace("score", "rank") if self.order == "ranks" else sentence

    def _finding(self, name: str, level: str, rows: list[int], sentence: str, remedy: str) -> Finding:
        numbers = [self.numbers[row] for row in sorted(set(rows))]
        sentence += f", first in row {numbers[0]}"
        return Finding(name, level, len(numbers), len(self.read.prompts), sentence, remedy, numbers, "lists")

    def _given(self) -> Iterator[CompletionList]:
        groups = self.read.groups
        for row, prompt, where in zip(self.read.rows.tolist(), self.read.prompts, groups, strict=True):
            yield CompletionList(row, prompt, self.read.texts[where], groups.scores[where].tolist())

    def _kept(self, one: CompletionList) -> CompletionList | None:
        """What is trained on of a list; None if nothing is left to learn."""
        self._note(_EMPTY, one.row, sum(map(says_nothing, one.completions)))
        if self.order == "ranks" and not _is_order(one.scores):
            self._note(_NO_ORDER, one.row)
            return None
        self._check_bounds(one)
        known = [place for place, score in enumerate(one.scores) if _is_usable(score)]
        self._note(_UNSCORED, one.row, len(one.scores) - len(known))
        places = self._different(one, known)
        # As batches hold them, where close scores may be equal.
        scores = np.array([one.scores[place] for place in places], np.float32)
        if len(places) < 2:
            self._note(_ALONE, one.row)
            return None
        if scores.min() == scores.max():
            self._note(_TIED, one.row)
            return None
        if self.most is not None and len(places) > self.most:
            places = [places[at] for at in _drawn(scores, self.most, np.random.default_rng([self.seed, one.row]))]
        return CompletionList(
            one.row, one.prompt, [one.completions[at] for at in places], [one.scores[at] for at in places]
        )

    def _check_bounds(self, one: CompletionList) -> None:
        if self.order != "scores" or self.bounds is None:
            return
        broken = filter(None, (self.bounds.broken_bound(score) for score in one.scores if _is_usable(score)))
        bound = next(broken, None)
        if bound is not None:
            self._note(f"scores must be {bound} ({self.bounds.help.rstrip('.')})", one.row)

    def _different(self, one: CompletionList, known: list[int]) -> list[int]:
        """Of completions that are the same, one; none, if they have different scores."""
        same: dict[str, list[int]] = {}
        for place in known:
            same.setdefault(content_key(one.completions[place]), []).append(place)
        kept = []
        for places in same.values():
            if len({one.scores[place] for place in places}) > 1:
                self._note(_CONTRADICTORY, one.row, len(places))
                continue
            self._note(_REPEATED, one.row, len(places) - 1)
            kept.append(places[0])
        return kept

    def _note(self, words: str, row: int, times: int = 1) -> None:
        if times:
            self.found.setdefault(words, []).extend([row] * times)

    def _left_out(self) -> dict[str, int]:
        return {words: len(self.found[words]) for words in (_ALONE, _TIED) if words in self.found}

    def _problems(self) -> list[str]:
        total = len(self.read.prompts)
        problems = _PROBLEMS | {words: _SCALE for words in self.found if words.startswith("scores must be ")}
        return [
            _problem(self.name, words, [self.numbers[row] for row in rows], total, remedy)
            for words, remedy in problems.items()
            if (rows := self.found.get(words))
        ]


_EMPTY = "a completion is empty"
_NO_ORDER = "the ranks are no order: they must be whole numbers, and the best one 0 or 1"
_PROBLEMS = {_EMPTY: "Filter these completions.", _NO_ORDER: "Correct them, or name them scores if higher is better."}
_SCALE = "Scale them, and give None to completions without a score."
_ALONE = "with fewer than two different completions that have a score"
_TIED = "with equal scores"
_UNSCORED = "completions without a usable score are left out"
_REPEATED = "completions that stand in a list twice with the same score are kept once"
_CONTRADICTORY = "completions that stand in a list twice with different scores are left out"
_TOLD = (
    ("answers_unscored", WARNING, _UNSCORED, ""),
    ("answers_contradictory", WARNING, _CONTRADICTORY, "Decide which score is right."),
    ("answers_repeated", NOTE, _REPEATED, ""),
)


def _sentence(left_out: dict[str, int]) -> str:
    return ", ".join(f"{count} {words}" for words, count in left_out.items())


def empty_completions(read: Completions, name: str) -> list[str]:
    """Return that completions are empty, in how many rows and in which first, as it stops a run that trains on them."""
    where = zip(read.rows.tolist(), read.groups, strict=True)
    rows = [row for row, places in where if any(map(says_nothing, read.texts[places]))]
    return [_problem(name, _EMPTY, rows, len(read.prompts), _PROBLEMS[_EMPTY])] if rows else []


def _problem(name: str, words: str, rows: Sequence[int], total: int, remedy: str) -> str:
    return f"{name}: {words}; wrong in {len(set(rows))} of {total} rows, first in row {min(rows)}. {remedy}"


def _is_usable(score: float) -> bool:
    """Whether a score is a number as batches hold it."""
    return math.isfinite(as_float32(score))


def says_nothing(completion: Any) -> bool:
    """Whether a completion, a text or messages, has no answer."""
    if isinstance(completion, list):
        return not (completion and is_set(completion[-1], (*ANSWER_FIELDS, "value")))
    return not completion


def _is_order(scores: Sequence[float]) -> bool:
    """Whether negative ranks, NaN where none is given, are an order that starts at 0 or 1.

    The first ranks may be those of completions that have none.
    """
    ranks = [-score for score in scores if not np.isnan(score)]
    most = 1 + len(scores) - len(ranks)
    return not ranks or (all(rank == int(rank) for rank in ranks) and 0 <= min(ranks) <= most)


def _drawn(scores: npt.NDArray[np.float32], most: int, random: np.random.Generator) -> list[int]:
    """Places of a best and of a worst completion, and of others at random, in their order."""
    ends = [int(scores.argmax()), int(scores.argmin())]
    others = [place for place in range(len(scores)) if place not in ends]
    return sorted([*ends, *random.choice(others, most - 2, replace=False).tolist()])
