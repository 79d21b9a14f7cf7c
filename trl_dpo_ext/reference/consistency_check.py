"""Step-0 consistency check: the untrained policy must reproduce the stored reference log-probs."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import InputError

# Root mean square of the difference per token, in nats. In float32 two batch shapes differ by rounding, 1e-5 or so;
# with 8 bits of mantissa by a few hundredths. Another model, template or vocabulary is off by one half and more.
_TOLERANCE = {torch.float32: 1e-2, torch.float64: 1e-2}
_LOW_PRECISION_TOLERANCE = 0.25


def tolerance(dtype: torch.dtype, quantized: bool) -> float:
    """Return the largest root mean square difference per token that rounding explains, in nats."""
    return _LOW_PRECISION_TOLERANCE if quantized else _TOLERANCE.get(dtype, _LOW_PRECISION_TOLERANCE)


def difference(logps: torch.Tensor, ref_logps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the root mean square difference per token of policy and reference, a scalar in nats.

    Args:
        logps: policy, (rows, tokens) or summed (rows,).
        ref_logps: reference, of the same shape.
        mask: (rows, tokens) bool.
    """
    apart = (logps.detach().float() - ref_logps.float()).square()
    if apart.dim() == 1:
        return (apart / mask.sum(dim=1).clamp(min=1).square()).mean().sqrt()
    return (apart.sum() / mask.sum().clamp(min=1)).sqrt()


def skip_reason(args: Any, config: Any, own_reference: bool) -> str | None:
    """Return why policy and stored reference need not agree at step 0; None if they must."""
    if own_reference:
        return "the reference is another model"
    if not args.disable_dropout or getattr(config, "attention_dropout", 0):
        return "the policy runs with dropout"
    if args.neftune_noise_alpha:
        return "the policy runs with noise in its embeddings"
    return None


def check(measured: float, allowed: float, source: str) -> None:
    """Stop a run whose stored reference is not the model that it trains.

    Raises:
        InputError: naming both numbers, and how to go on.
    """
    if not measured <= allowed:  # NaN is wrong too
        raise InputError(
            "Before the first step, the policy and its stored reference should be the same model, but they differ by "
            f"{measured:.3g} nats per token (root mean square; rounding explains up to {allowed:.3g}). Another model, "
            f"chat template or code computed the log-probs in {source}. Recompute them in another --ref_store, or set "
            "--verify_reference false to continue."
        )
