"""What is logged of a batch of lists, by TRL's names: the best answers stand for the chosen side, the others for the
rejected one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..core.list_pairs import ordered_pairs
from ..core.lists import Lists
from ..core.pairs import Pairs, Side

PROMPT_METRICS = (
    *("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "rewards/top1_accuracy"),
    *("logps/chosen", "logps/rejected"),
)
"""Metrics that are means over prompts."""
OWN_METRICS = ("rewards/top1_accuracy",)
"""Those of them that TRL does not log."""
TOKEN_METRICS = {"logits/chosen": "chosen", "logits/rejected": "rejected", "mean_token_accuracy": "chosen"}
"""Metrics that are means over the tokens of the best answers, or of the others."""


@dataclass(frozen=True)
class ListSums:
    """What a batch of lists adds up to; each tensor is a number, and `vector` has all of them."""

    prompts: torch.Tensor
    by_prompt: Mapping[str, torch.Tensor]
    """Sums over prompts of `PROMPT_METRICS`."""
    tokens: Mapping[str, torch.Tensor]
    """Tokens of the best answers (chosen) and of the others (rejected)."""
    by_token: Mapping[str, torch.Tensor]
    """Sums over tokens of `TOKEN_METRICS`."""

    @property
    def vector(self) -> torch.Tensor:
        """All numbers, (numbers,) float32."""
        parts = [self.prompts, *self.by_prompt.values(), *self.tokens.values(), *self.by_token.values()]
        return torch.stack([part.float() for part in parts])


def means(sums: torch.Tensor) -> dict[str, float]:
    """The metrics of what `ListSums.vector` adds up to over all processes."""
    numbers = iter(sums.tolist())
    prompts = next(numbers)
    found = {name: next(numbers) / max(prompts, 1) for name in PROMPT_METRICS}
    tokens = {side: next(numbers) for side in ("chosen", "rejected")}
    return found | {name: next(numbers) / max(tokens[side], 1) for name, side in TOKEN_METRICS.items()}


def list_sums(lists: Lists, rewards: torch.Tensor, fields: Mapping[str, torch.Tensor]) -> ListSums:
    """Add up what is logged of lists.

    Args:
        lists: the batch, without repeated lists.
        rewards: of each answer, (answers,).
        fields: of the policy's output for each answer, (answers, tokens): `mean_logits` and `is_top1`.
    """
    best, logps = lists.best, lists.answers.logps.detach()
    rewards, count = rewards.to(logps.dtype), torch.tensor(lists.prompts, device=logps.device)
    chosen, rejected = _mean_of(lists, rewards, best), _mean_of(lists, rewards, ~best)
    values = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/accuracies": pair_accuracy(lists, rewards),
        "rewards/margins": chosen - rejected,
        "rewards/top1_accuracy": top1_accuracy(lists, rewards),
        "logps/chosen": _mean_of(lists, logps, best),
        "logps/rejected": _mean_of(lists, logps, ~best),
    }
    of_side, mask = {"chosen": best, "rejected": ~best}, lists.answers.mask
    scored = {side: mask & answers.unsqueeze(1) for side, answers in of_side.items()}
    measured = {"logits/chosen": "mean_logits", "logits/rejected": "mean_logits", "mean_token_accuracy": "is_top1"}
    return ListSums(
        count,
        {name: value.sum() for name, value in values.items()},
        {side: tokens.sum() for side, tokens in scored.items()},
        {name: fields[measured[name]][scored[side]].float().sum() for name, side in TOKEN_METRICS.items()},
    )


def _mean_of(lists: Lists, values: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """The mean of some answers' values by prompt, (prompts,)."""
    counted = answers.to(values.dtype)
    return lists.sum(values * counted) / lists.sum(counted).clamp(min=1)


def pair_accuracy(lists: Lists, rewards: torch.Tensor) -> torch.Tensor:
    """The share of the ordered pairs of a prompt that rewards order right, equal ones counting one half, (prompts,)."""
    better, worse = ordered_pairs(lists.scores, lists.prompt, "all")
    right = (rewards[better] > rewards[worse]).to(rewards.dtype) + (rewards[better] == rewards[worse]) / 2
    prompt = lists.prompt[better]
    zeros = rewards.new_zeros(lists.prompts)
    return zeros.index_add(0, prompt, right) / zeros.index_add(0, prompt, torch.ones_like(right)).clamp(min=1)


def top1_accuracy(lists: Lists, rewards: torch.Tensor) -> torch.Tensor:
    """1 where the answer with the highest reward is a best one; answers with equal rewards share it, (prompts,)."""
    top = rewards == lists.max(rewards)[lists.prompt]
    return lists.sum((top & lists.best).to(rewards.dtype)) / lists.sum(top.to(rewards.dtype)).clamp(min=1)


def ends(lists: Lists) -> tuple[torch.Tensor, torch.Tensor]:
    """The index of the first best and of the first worst answer of each prompt, each (prompts,)."""
    worst = lists.scores == -lists.max(-lists.scores)[lists.prompt]
    places = torch.arange(len(lists.prompt), device=lists.prompt.device)

    def first(answers: torch.Tensor) -> torch.Tensor:
        found = places.new_full((lists.prompts,), len(places))
        return found.scatter_reduce(0, lists.prompt[answers], places[answers], "amin")

    return first(lists.best), first(worst)


def end_pairs(lists: Lists, index: tuple[torch.Tensor, torch.Tensor]) -> Pairs:
    """The best and the worst answer of each prompt as a pair."""
    names = [name for name in Side.__slots__ if getattr(lists.answers, name) is not None]
    sides = [Side(**{name: getattr(lists.answers, name)[at] for name in names}) for at in index]
    return Pairs(
        *sides,
        columns=lists.columns,
        gather=lists.gather,
        training=lists.training,
        rank=lists.rank,
        progress=lists.progress,
    )
