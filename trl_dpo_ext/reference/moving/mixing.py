"""Mixing the weight changes of two low-rank adapters exactly.

With frozen weights W and the adapters' scale c, the policy is W + c B A and the reference W + c B' A'. TR-DPO moves the
reference to W + c (a B A + (1 - a) B' A'). Averaging the factors one by one would miss that by
-a (1 - a) c (B - B') (A - A'), so the factors of both are placed side by side instead, which raises the rank.
"""

from __future__ import annotations

import math

import torch

_NEGLIGIBLE = 2.0**-24
"""Share of a weight change that float32 cannot tell from nothing beside the whole."""

Factors = tuple[torch.Tensor, torch.Tensor]
"""A (rank, in, ...) and B (out, rank, ...)."""


def mix_factors(policy: Factors, reference: Factors, alpha: float) -> Factors:
    """Return factors whose product is `alpha` times the policy's and `1 - alpha` times the reference's.

    The result equals the exact one to rounding. Its rank grows by the policy's with each call, up to the number at
    which older terms weigh less than rounding, or to the smaller dimension of the product.

    Args:
        policy: A and B of the policy's adapter.
        reference: A and B of the reference's; of a higher rank after earlier calls.
        alpha: in (0, 1]; 1 copies the policy.

    Source: Gorbatovski et al., Learn Your Reference Model for Real Good Alignment (arXiv 2404.09656), eq. 8.
    """
    (a, b), (ref_a, ref_b) = policy, reference
    if alpha == 1.0 or not ref_b.any():  # the reference's change is replaced, or was nothing so far
        return a.clone(), b * alpha
    mixed_a = torch.cat([ref_a, a.to(ref_a.dtype)], dim=0)
    mixed_b = torch.cat([ref_b * (1.0 - alpha), b.to(ref_b.dtype) * alpha], dim=1)
    rank, largest = len(a), _largest_rank(a, b)
    terms = _terms_that_count(alpha) * rank
    if terms <= largest:  # the oldest terms come first
        return mixed_a[-terms:].contiguous(), mixed_b[:, -terms:].contiguous()
    return _product(mixed_a, mixed_b) if len(mixed_a) > largest else (mixed_a, mixed_b)


def _terms_that_count(alpha: float) -> int:
    """After how many further moves a term's weight, (1 - alpha) to that power, is negligible."""
    return math.ceil(math.log(_NEGLIGIBLE) / math.log1p(-alpha)) + 1


def _largest_rank(a: torch.Tensor, b: torch.Tensor) -> float:
    """The rank that the product of two matrices can have; that of a convolution's kernels is left alone."""
    return min(a.size(1), b.size(0)) if a.dim() == b.dim() == 2 else math.inf


def _product(a: torch.Tensor, b: torch.Tensor) -> Factors:
    """Factors of B A, one of which is the identity."""
    whole = (b.float() @ a.float()).to(b.dtype)
    rows, columns = whole.shape
    if rows <= columns:
        return whole.to(a.dtype), torch.eye(rows, dtype=b.dtype, device=b.device)
    return torch.eye(columns, dtype=a.dtype, device=a.device), whole
