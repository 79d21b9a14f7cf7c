"""Batches of pairs as TRL's collator makes them, and a model's output and gradients on them."""

from __future__ import annotations

from typing import Any

import torch

FIELDS = ("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs")


def batch(*pairs: tuple[list[int], list[int], list[int]]) -> dict[str, torch.Tensor]:
    """What TRL's collator makes of (prompt, chosen, rejected), and the labels that TRL gives a model."""
    sides = [[(p, c) for p, c, _ in pairs], [(p, r) for p, _, r in pairs]]
    rows = [row for side in sides for row in side]
    width = max(len(p) + len(c) for p, c in rows)
    ids = [p + c + [0] * (width - len(p) - len(c)) for p, c in rows]
    attention = [[1] * (len(p) + len(c)) + [0] * (width - len(p) - len(c)) for p, c in rows]
    labels = [[-100] * len(p) + c + [-100] * (width - len(p) - len(c)) for p, c in rows]
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(attention),
        "labels": torch.tensor(labels),
    }


# Completions that begin alike, one that is the start of the other, identical ones; prompts of one token and of none; a short
# completion after a long prompt and a long one after a short prompt; prompts that begin alike; rows longer than the windows.
PAIRS = batch(
    ([5, 6, 7, 8, 9, 10], [21, 22, 23, 2], [21, 31, 2]),
    ([12], [24, 2], [32, 33, 34, 35, 36, 37, 2]),
    ([13, 14, 15], [25, 26], [25, 26, 27, 28]),
    ([16, 17], [40, 2], [40, 2]),
    ([5, 6, 7, 8, 11], [42, 2], [43, 44, 2]),
    ([], [41, 42, 2], [43, 2]),
)


def output_and_gradients(model: Any, call: Any, routed: bool) -> tuple[Any, list[torch.Tensor]]:
    """Run a batch in which no two tokens weigh the same, and add the auxiliary loss of a mixture of experts."""
    model.zero_grad()
    routing = {"output_router_logits": True} if routed else {}  # as TRL asks for it
    output = call(**PAIRS, fused_lm_head=True, use_cache=False, **routing)
    scored = PAIRS["labels"][:, 1:]
    weights = torch.linspace(-1.0, 2.0, scored.numel()).view(scored.shape)
    loss = (output.log_probs * weights).sum() + (output.aux_loss if routed else 0.0)
    loss.backward()
    return output, [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
