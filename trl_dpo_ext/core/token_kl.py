"""Computes the KL divergence of next-token distributions without keeping both models' logits in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

# Logits of this many tokens are held at a time, and worked out again for the gradient.
_TOKENS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Projection:
    """Inputs of a model's logits: hidden states (rows, tokens, width) and the output layer."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None


def token_kl(policy: Projection, reference: Projection, mask: torch.Tensor) -> torch.Tensor:
    """Compute KL(reference || policy) of the next token at every completion token; only the policy gets a gradient.

    Args:
        policy, reference: hidden states in the positions of `mask`, and output layers over one vocabulary.
        mask: (rows, tokens), true on completion tokens.

    Returns:
        KL in nats and float32, shape (rows, tokens), zero outside the completion.
    """
    hidden, ref_hidden = policy.hidden[mask].float(), reference.hidden[mask].float().detach()
    layer, ref_layer = _in_float32(policy), [part if part is None else part.detach() for part in _in_float32(reference)]
    parts = [
        checkpoint(_kl, ours, *layer, theirs, *ref_layer, use_reentrant=False)
        for ours, theirs in zip(hidden.split(_TOKENS_AT_ONCE), ref_hidden.split(_TOKENS_AT_ONCE), strict=True)
    ]
    found = torch.cat(parts) if parts else hidden.sum(dim=-1)
    return found.new_zeros(mask.shape).masked_scatter(mask, found)


def _in_float32(model: Projection) -> list[torch.Tensor | None]:
    return [part if part is None else part.float() for part in (model.weight, model.bias)]


def _kl(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    ref_hidden: torch.Tensor,
    ref_weight: torch.Tensor,
    ref_bias: torch.Tensor | None,
) -> torch.Tensor:
    # Logits rounded to half precision differ by more than a step of training moves them.
    with torch.autocast(hidden.device.type, enabled=False):
        logps = F.log_softmax(F.linear(hidden, weight, bias), dim=-1)
        ref_logps = F.log_softmax(F.linear(ref_hidden, ref_weight, ref_bias), dim=-1)
    return (ref_logps.exp() * (ref_logps - logps)).sum(dim=-1)
