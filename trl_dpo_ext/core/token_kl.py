"""Computes the KL divergence of next-token distributions without keeping both models' logits in memory."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

# Logits of this many tokens are held at a time, and worked out again for the gradient.
_TOKENS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Projection:
    """Inputs of a model's logits: hidden states and the output layer."""

    hidden: torch.Tensor
    """(rows, tokens, width), or (completion tokens, width) in the row-major order of the batch."""
    weight: torch.Tensor
    bias: torch.Tensor | None

    def at(self, places: torch.Tensor) -> torch.Tensor:
        """The hidden states at flat indices into (rows x tokens), (places, width)."""
        return self.hidden if self.hidden.dim() == 2 else self.hidden.flatten(0, 1).index_select(0, places)


def token_kl(policy: Projection, reference: Projection, mask: torch.Tensor) -> torch.Tensor:
    """Compute KL(reference || policy) of the next token at every completion token; only the policy gets a gradient.

    Args:
        policy, reference: hidden states in the positions of `mask`, and output layers over one vocabulary.
        mask: (rows, tokens), true on completion tokens.

    Returns:
        KL in nats and float32, shape (rows, tokens), zero outside the completion.
    """
    places = mask.flatten().nonzero().squeeze(1)  # the only time that the host waits for the device
    hidden, layer = _inputs(policy, places)
    ref_hidden, ref_layer = _inputs(reference, places)
    ref_hidden, ref_layer = ref_hidden.detach(), [part if part is None else part.detach() for part in ref_layer]
    parts = [
        checkpoint(_kl, ours, *layer, theirs, *ref_layer, use_reentrant=False)
        for ours, theirs in zip(hidden.split(_TOKENS_AT_ONCE), ref_hidden.split(_TOKENS_AT_ONCE), strict=True)
    ]
    found = torch.cat(parts) if parts else hidden.sum(dim=-1, dtype=torch.float32)
    return found.new_zeros(mask.numel()).index_copy(0, places, found).view(mask.shape)


def _inputs(model: Projection, places: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """Hidden states, and weight and bias: in bfloat16 if its products can be added up in float32, else in float32."""
    hidden = model.at(places)
    if hidden.dtype == model.weight.dtype == torch.bfloat16 and _multiplies_to_float32(hidden.device):
        return hidden, [model.weight, model.bias]
    return hidden.float(), [part if part is None else part.float() for part in (model.weight, model.bias)]


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
        logps = F.log_softmax(_logits(hidden, weight, bias), dim=-1)
        ref_logps = F.log_softmax(_logits(ref_hidden, ref_weight, ref_bias), dim=-1)
    return (ref_logps.exp() * (ref_logps - logps)).sum(dim=-1)


def _logits(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Logits in float32, (tokens, vocabulary)."""
    if weight.dtype == torch.float32:
        return F.linear(hidden, weight, bias)
    logits = _ToFloat32.apply(hidden, weight)
    assert isinstance(logits, torch.Tensor)
    return logits if bias is None else logits + bias.float()


class _ToFloat32(torch.autograd.Function):
    """hidden @ weight.T of bfloat16 in float32, without a copy of the weight in float32.

    The product of two bfloat16 numbers is exact in float32, in which tensor cores add them up. Gradients are rounded to
    bfloat16 before they are multiplied, as those of every layer in bfloat16 are.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(hidden, weight)
        return _product(hidden, weight.T)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:  # type: ignore[override]
        hidden, weight = ctx.saved_tensors
        grad = grad.to(hidden.dtype)
        needs_hidden, needs_weight = ctx.needs_input_grad
        return grad @ weight if needs_hidden else None, grad.T @ hidden if needs_weight else None


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.mm(left, right, out_dtype=torch.float32)


@functools.cache
def _multiplies_to_float32(device: torch.device) -> bool:
    """Whether matrices in bfloat16 can be multiplied to one in float32, as on CUDA."""
    if device.type != "cuda":
        return False
    ones = torch.ones(8, 8, dtype=torch.bfloat16, device=device)
    try:
        return _product(ones, ones).dtype == torch.float32
    except (RuntimeError, TypeError):
        return False
