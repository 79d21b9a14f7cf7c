"""Likelihood of the chosen side: the supervised term that other losses are mixed with."""

from __future__ import annotations

import math

import torch

from ..core.pairs import Need, Pairs, Side
from ..core.registry import register_loss

MAX_EXPONENT = 80.0
"""exp() of more than this leaves float32, and what is infinite makes NaN of a difference, a product or a gradient."""


def avg_logps_reward(side: Side, **_: float) -> torch.Tensor:
    """The mean log-prob per token as a reward, shape (pairs,)."""
    return side.avg_logps


@register_loss(
    paper=None,
    needs=Need.TOKENS,
    per_pair=False,
    evidence="framework",
    reward=avg_logps_reward,
    from_trl=True,
)
def sft(p: Pairs) -> torch.Tensor:
    """Negative log-likelihood of the chosen side, averaged over the tokens of the micro-batch.

        -mean over all chosen completion tokens of the batch of log p(token), the same value for every pair

    The supervised part of a mix, such as MPO's `sigmoid`, `bco_pair`, `sft`. For an average over sequences instead of
    tokens, see `dpo_nll`.

    Returns:
        The batch value once per pair, shape (pairs,).

    Example:
        >>> from trl_dpo_ext import Pairs, Side, get_loss
        >>> tokens, mask = torch.tensor([[-1.0, -2.0, -3.0]]), torch.tensor([[True, True, True]])
        >>> side = Side(tokens.sum(1), token_logps=tokens, mask=mask)
        >>> get_loss("sft")(Pairs(chosen=side, rejected=side))
        tensor([2.])
    """
    tokens = p.chosen.token_logps[p.chosen.mask]
    # Truncation can empty every completion of a batch; the mean of nothing is NaN, its sum 0.
    mean = tokens.mean() if tokens.numel() else tokens.sum()
    return -mean.expand_as(p.chosen.logps)


def token_mean_nll(side: Side) -> torch.Tensor:
    """Negative log-likelihood averaged over the tokens of the micro-batch, a scalar: what `sft` gives every pair."""
    return -side.logps.sum() / side.lengths.sum().clamp(min=1)


# Nearer to probability 1 than this, 1 - p is all rounding, and the gradient of its logarithm explodes.
_MAX_LOG_P = -1e-7


def log1mexp(log_p: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(log_p)), elementwise; a log-prob above -1e-7 counts as -1e-7, without gradient."""
    log_p = log_p.clamp(max=_MAX_LOG_P)
    likely = log_p > -math.log(2)
    # Each form is accurate on its own side only. The branch not taken gets a harmless input: where() multiplies its
    # gradient by zero, and zero times inf is NaN.
    harmless = torch.full_like(log_p, -math.log(2))
    of_likely = torch.log(-torch.expm1(torch.where(likely, log_p, harmless)))
    of_unlikely = torch.log1p(-torch.exp(torch.where(likely, harmless, log_p)))
    return torch.where(likely, of_likely, of_unlikely)
