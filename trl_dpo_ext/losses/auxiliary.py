"""Likelihood of the chosen side: the supervised term that other losses are mixed with."""

from __future__ import annotations

import torch

from ..pairs import Need, Pairs, Side
from ..registry import register_loss


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
    return -p.chosen.token_logps[p.chosen.mask].mean().expand_as(p.chosen.logps)


def token_mean_nll(side: Side) -> torch.Tensor:
    """Negative log-likelihood averaged over the tokens of the micro-batch, a scalar: what `sft` gives every pair."""
    return -side.logps.sum() / side.lengths.sum().clamp(min=1)
