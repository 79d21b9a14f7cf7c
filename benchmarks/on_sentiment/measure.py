"""What a policy has become: expected reward and divergence on fresh samples, and what held-out pairs say."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from trl_dpo_ext.watch.kl import exact

from .language_model import padded, sample
from .preferences import Pair
from .task import Task

BATCH = 32
"""Sequences: few enough for their logits to stay in memory that is used again."""


@torch.no_grad()
def divergences(
    policy: Any, reference: Any, prefixes: Sequence[list[int]], continuations: Sequence[list[int]], pad: int
) -> tuple[list[float], list[float]]:
    """Estimate KL(policy || reference) of sequences, in nats, on continuations that the policy sampled.

    Returns:
        For each continuation the sum over its tokens of the exact KL of the next token, and the log-ratio of the
        sequence. Both have the divergence of sequences as their mean; the former varies less.
    """
    sums: list[float] = []
    ratios: list[float] = []
    for start in range(0, len(prefixes), BATCH):
        pairs = list(zip(prefixes[start : start + BATCH], continuations[start : start + BATCH], strict=True))
        ids, mask = padded([prefix + answer for prefix, answer in pairs], pad, policy.device)
        answered = _answered(mask, [len(prefix) for prefix, _ in pairs])
        ours, theirs = (
            model(input_ids=ids, attention_mask=mask).logits[:, :-1][answered] for model in (policy, reference)
        )
        labels = ids[:, 1:][answered][:, None]
        taken, expected = (each.float().log_softmax(-1).gather(-1, labels).squeeze(-1) for each in (ours, theirs))
        lengths = [len(answer) for _, answer in pairs]
        sums += [part.sum().item() for part in exact(ours, theirs).split(lengths)]
        ratios += [part.sum().item() for part in (taken - expected).split(lengths)]
    return sums, ratios


def _answered(mask: torch.Tensor, prefixes: Sequence[int]) -> torch.Tensor:
    """Mark the positions that predict a continuation's tokens, (rows, tokens - 1)."""
    places = torch.arange(mask.size(1) - 1, device=mask.device)
    return (mask[:, 1:] == 1) & (places >= torch.tensor(prefixes, device=mask.device)[:, None] - 1)


@torch.no_grad()
def logps(model: Any, tokenizer: Any, pairs: Sequence[Pair], side: str) -> torch.Tensor:
    """Summed log-probs of one side of each pair, (pairs,)."""
    found = []
    for start in range(0, len(pairs), BATCH):
        part = pairs[start : start + BATCH]
        prompts = [tokenizer(pair.prompt)["input_ids"] for pair in part]
        whole = [tokenizer(pair.prompt + getattr(pair, side) + tokenizer.eos_token)["input_ids"] for pair in part]
        ids, mask = padded(whole, tokenizer.pad_token_id, model.device)
        answered = _answered(mask, [len(prompt) for prompt in prompts])
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1][answered].float()
        taken = logits.log_softmax(-1).gather(-1, ids[:, 1:][answered][:, None]).squeeze(-1)
        found.append(torch.stack([each.sum() for each in taken.split(answered.sum(1).tolist())]))
    return torch.cat(found)


class Judge:
    """Measures policies against one reference."""

    def __init__(self, task: Task, reference: Any, tokenizer: Any) -> None:
        self.task, self.reference, self.tokenizer = task, reference, tokenizer
        self._theirs = {side: logps(reference, tokenizer, task.held_out_pairs, side) for side in ("chosen", "rejected")}

    def measure(self, policy: Any, seed: int, samples: int) -> dict[str, float]:
        """Return means; rewards and divergences over `samples` fresh continuations of each held-out prefix."""
        task, tokenizer = self.task, self.tokenizer
        was = policy.training
        policy.eval()
        prefixes = [prefix for prefix in task.held_out for _ in range(samples)]
        made = sample(policy, tokenizer, prefixes, task.settings.tokens, seed)
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in made]
        rewards = [task.score(prefix, answer) for prefix, answer in zip(prefixes, texts, strict=True)]
        starts = [tokenizer(prefix)["input_ids"] for prefix in prefixes]
        sums, ratios = divergences(policy, self.reference, starts, made, tokenizer.pad_token_id)
        ours = {side: logps(policy, tokenizer, task.held_out_pairs, side) for side in ("chosen", "rejected")}
        policy.train(was)
        chosen, rejected = (ours[side] - self._theirs[side] for side in ("chosen", "rejected"))
        return {
            "reward": statistics.fmean(rewards),
            "kl": statistics.fmean(sums),
            "kl_of_log_ratios": statistics.fmean(ratios),
            "tokens": statistics.fmean(map(len, made)),
            "distinct": len({tuple(ids) for ids in made}) / len(made),
            "accuracy": ((chosen > rejected).float() + (chosen == rejected).float() / 2).mean().item(),
            "chosen_drift": chosen.mean().item(),
            "rejected_drift": rejected.mean().item(),
        }
