"""Losses that hold the policy near the reference token by token, by how far the whole distributions are apart."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F

from ..core.hyperparameters import Beta, Hyper
from ..core.pairs import Need, Pairs, Side
from ..core.registry import register_loss


def _sequence_kl(side: Side) -> torch.Tensor:
    """KL(reference || policy) summed over the positions of a completion, shape (pairs,)."""
    return side.token_kl.sum(dim=1).to(side.logps.dtype)


@register_loss(paper="2404.11999", needs=Need.REFERENCE | Need.TOKEN_KL, evidence="authors", differences=True)
def tdpo1(p: Pairs, *, beta: Beta) -> torch.Tensor:
    """TDPO1: DPO whose margin also counts how far each side has drifted from the reference, token by token.

        -log sigmoid(beta * (logratio_chosen - logratio_rejected - (K_rejected - K_chosen)))

        K_side = sum over the side's positions of KL(reference || policy) of the next token

    The authors' first form; they recommend `tdpo2`, which weighs K and does not push the chosen side's up.

    Returns:
        One value per pair, shape (pairs,).

    Reference: arXiv 2404.11999.

    Example:
        >>> from trl_dpo_ext import Pairs, Side, get_loss
        >>> def side(logps, ref_logps, kl):
        ...     logps, ref_logps, kl = torch.tensor([logps]), torch.tensor([ref_logps]), torch.tensor([kl])
        ...     return Side(logps, ref_logps, token_kl=kl)
        >>> pairs = Pairs(side(-12.0, -13.0, [0.5, 0.25]), side(-15.0, -14.0, [0.125, 0.0]))
        >>> get_loss("tdpo1")(pairs, beta=0.1)
        tensor([0.5705])
    """
    drift = _sequence_kl(p.rejected) - _sequence_kl(p.chosen)
    return -F.logsigmoid(beta * (p.chosen.logratio - p.rejected.logratio - drift))


Tdpo2Alpha = Annotated[float, Hyper("Weight of the drift from the reference; 0 is DPO.", ge=0)]


@register_loss(paper="2404.11999", needs=Need.REFERENCE | Need.TOKEN_KL, evidence="authors", differences=True)
def tdpo2(p: Pairs, *, beta: Beta, tdpo2_alpha: Tdpo2Alpha = 0.5) -> torch.Tensor:
    """TDPO2: DPO that holds the rejected side's drift from the reference near the chosen side's, token by token.

        -log sigmoid(beta * (logratio_chosen - logratio_rejected - alpha * (K_rejected - K_chosen)))

        K_side = sum over the side's positions of KL(reference || policy) of the next token

    K_chosen carries no gradient. For policies that lose diversity, or drift, under DPO.

    Returns:
        One value per pair, shape (pairs,).

    Reference: arXiv 2404.11999.

    Note:
        The authors' configuration runs `tdpo1` unless told otherwise, although their README calls the command TDPO2.

    Example:
        >>> from trl_dpo_ext import Pairs, Side, get_loss
        >>> def side(logps, ref_logps, kl):
        ...     logps, ref_logps, kl = torch.tensor([logps]), torch.tensor([ref_logps]), torch.tensor([kl])
        ...     return Side(logps, ref_logps, token_kl=kl)
        >>> pairs = Pairs(side(-12.0, -13.0, [0.5, 0.25]), side(-15.0, -14.0, [0.125, 0.0]))
        >>> get_loss("tdpo2")(pairs, beta=0.1, tdpo2_alpha=0.5)
        tensor([0.5842])
    """
    drift = _sequence_kl(p.rejected) - _sequence_kl(p.chosen).detach()
    return -F.logsigmoid(beta * (p.chosen.logratio - p.rejected.logratio - tdpo2_alpha * drift))
