"""Makes pairs of lists after the forward pass, so that every loss of single pairs trains on lists.

K answers go through the model once; their ordered pairs, up to K(K-1)/2, are index operations on the log-probs.

Tests in tests/unit/core/test_list_pairs.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from .lists import Lists, take_answers
from .numerics import sort
from .pairs import Pairs
from .segments import segment_max, segment_place, segment_sizes, segment_sum, within_segments

PairChoice = Literal["all", "best", "best_worst", "neighbors"]
ListPairs = PairChoice | int
"""Which ordered pairs of a list are kept: a choice by name, or how many are drawn per prompt."""

Reduction = Literal["mean", "sum"]
"""How the values of a prompt's pairs become the value of the prompt."""

Draw = torch.Generator | Sequence[torch.Generator] | None
"""What draws the pairs where a choice is a number: one generator for all prompts, or one for each, whose pairs then do
not depend on the other prompts of the batch."""

PAIR_CHOICES: dict[PairChoice, str] = {
    "all": "every better answer against every worse one",
    "best": "the best answer against every other one",
    "best_worst": "the best answer against the worst one",
    "neighbors": "every answer against those of the next lower score",
}
"""The choices by name; answers of one score share their place."""

MOST_PAIRS = 2**31 - 1
"""More than any list has, and a number that tensors can hold."""


def parse_list_pairs(value: Any) -> ListPairs:
    """Return the choice that a flag's text or number names.

    Raises:
        ValueError: no choice has that name, or the number is not from 1 to `MOST_PAIRS`.
    """
    if value in get_args(PairChoice):
        return value
    text = str(value)
    # The length is checked first: Python refuses to read more than 4300 digits.
    if text.isdecimal() and not isinstance(value, bool) and len(text) <= 10 and 0 < int(text) <= MOST_PAIRS:
        return int(text)
    raise ValueError(
        f"list_pairs must be one of {', '.join(PAIR_CHOICES)}, or a number of pairs to draw per prompt, from 1 to "
        f"{MOST_PAIRS}; got {repr(value)[:40]}."
    )


@torch.no_grad()
def ordered_pairs(
    scores: torch.Tensor, prompt: torch.Tensor, which: ListPairs, generator: Draw = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the index of the better and of the worse answer of every kept pair, in the order of prompts.

    Tied answers form no pair, so a prompt whose answers are all tied has none.

    Args:
        scores: higher is better, shape (answers,).
        prompt: index of each answer's prompt, ascending from 0, shape (answers,).
        which: the pairs to keep.
        generator: draws the pairs where `which` is a number; without replacement, all pairs where a prompt has fewer.
            One generator, or one for each prompt.

    Returns:
        Two int64 tensors of shape (pairs,).

    Raises:
        ValueError: `which` is a number and no generator is given.
    """
    count = scores.numel()
    scores = scores if scores.is_floating_point() else scores.double()
    prompts = int(prompt[-1]) + 1 if count else 0
    better, worse = within_segments(prompt, prompts)
    better, worse = _keep(scores[better] > scores[worse], better, worse)
    if which == "neighbors":
        next_lower = segment_max(scores[worse], better, count)
        return _keep(scores[worse] == next_lower[better], better, worse)
    if which in ("best", "best_worst"):
        better, worse = _keep(scores[better] == segment_max(scores, prompt, prompts)[prompt[better]], better, worse)
    if which == "best_worst":
        better, worse = _keep(-scores[worse] == segment_max(-scores, prompt, prompts)[prompt[worse]], better, worse)
    if isinstance(which, int):
        return _drawn(better, worse, prompt[better], which, generator)
    return better, worse


def _keep(kept: torch.Tensor, better: torch.Tensor, worse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return better[kept], worse[kept]


def _drawn(
    better: torch.Tensor, worse: torch.Tensor, prompt: torch.Tensor, number: int, generator: Draw
) -> tuple[torch.Tensor, torch.Tensor]:
    """At most `number` pairs of each prompt, drawn without replacement; `prompt` is that of each pair."""
    if generator is None:
        raise ValueError(f"Drawing {number} pairs per prompt needs a torch.Generator: pass generator=.")
    order = _keys(prompt, generator).argsort()
    order = order[prompt[order].argsort(stable=True)]
    drawn = sort(order[segment_place(prompt[order]) < number])
    return better[drawn], worse[drawn]


def _keys(prompt: torch.Tensor, generator: torch.Generator | Sequence[torch.Generator]) -> torch.Tensor:
    """A random number for each pair, (pairs,); `prompt` is that of each pair."""
    if isinstance(generator, torch.Generator):
        return torch.rand(prompt.numel(), generator=generator, device=generator.device).to(prompt.device)
    counts = prompt.bincount(minlength=len(generator)).tolist()
    drawn = [torch.rand(n, generator=one, device=one.device) for n, one in zip(counts, generator, strict=True)]
    return torch.cat([torch.zeros(0), *drawn]).to(prompt.device)


def pairs_of(
    lists: Lists, which: ListPairs = "all", reduction: Reduction = "mean", generator: Draw = None
) -> tuple[Pairs, torch.Tensor]:
    """Return ordered pairs of the lists' answers, and the weight of each pair in the value of its prompt.

    Args:
        lists: the batch.
        which: the pairs to keep; see `ordered_pairs`.
        reduction: whether a prompt's value is the mean or the sum of its pairs' values.
        generator: draws the pairs where `which` is a number; one, or one for each prompt.

    Returns:
        The pairs, with the columns `score_chosen`, `score_rejected`, and `margin` from the scores and those of the
        lists repeated for every pair of a prompt; and weights of shape (pairs,), in the dtype of the log-probs. The
        weighted values of a prompt's pairs add up to the value of the prompt; the loss is the mean of that over all
        prompts of the lists, where a prompt without pairs counts with 0.
    """
    paired = pair_lists(lists, which, reduction, generator)
    return paired.pairs, paired.weights


@dataclass(frozen=True, slots=True, eq=False)
class PairedLists:
    """Pairs of lists, with what leads back from pairs to prompts."""

    pairs: Pairs
    weights: torch.Tensor
    """Weight of each pair in the value of its prompt, shape (pairs,)."""
    prompt: torch.Tensor
    """Index of each pair's prompt, shape (pairs,)."""
    prompts: int

    def by_prompt(self, values: torch.Tensor) -> torch.Tensor:
        """Return the value of each prompt, from one value per pair: (pairs,) to (prompts,); 0 without pairs."""
        return segment_sum(values * self.weights, self.prompt, self.prompts)


def pair_lists(
    lists: Lists, which: ListPairs = "all", reduction: Reduction = "mean", generator: Draw = None
) -> PairedLists:
    """Return what `pairs_of` returns, with the prompt of each pair."""
    better, worse = ordered_pairs(lists.scores, lists.prompt, which, generator)
    prompt = lists.prompt[better]
    columns = {name: values.index_select(0, prompt) for name, values in lists.columns.items()}
    columns["score_chosen"], columns["score_rejected"] = lists.scores[better], lists.scores[worse]
    columns["margin"] = columns["score_chosen"] - columns["score_rejected"]
    pairs = Pairs(
        take_answers(lists.answers, better),
        take_answers(lists.answers, worse),
        columns,
        training=lists.training,
        rank=lists.rank,
        progress=lists.progress,
    )
    weights = torch.ones_like(pairs.chosen.logps, requires_grad=False)
    if reduction == "mean":
        weights = weights / segment_sizes(prompt, lists.prompts)[prompt]
    return PairedLists(pairs, weights, prompt, lists.prompts)
