"""Losses of each side's own reward, anchored at the reference: the absolute reward matters, not only the margin."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..hyper import Beta
from ..pairs import Need, Pairs
from ..registry import register_loss


@register_loss(paper="2402.05369", needs=Need.REFERENCE, evidence="framework", from_trl=True)
def nca_pair(p: Pairs, *, beta: Beta) -> torch.Tensor:
    """NCA: noise-contrastive alignment of both sides, which keeps the chosen likelihood from falling.

        -log sigmoid(r_chosen) - 1/2 log sigmoid(-r_chosen) - 1/2 log sigmoid(-r_rejected),  r = beta * logratio

    Returns:
        One value per pair, shape (pairs,).

    Reference: arXiv 2402.05369, the two-response case.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("nca_pair")(pairs, beta=0.1)
        tensor([1.3388])
    """
    chosen, rejected = beta * p.chosen.logratio, beta * p.rejected.logratio
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


@register_loss(paper="2404.04656", needs=Need.REFERENCE, evidence="framework", from_trl=True)
def bco_pair(p: Pairs, *, beta: Beta) -> torch.Tensor:
    """BCO without its reward shift: a binary classifier of chosen against rejected, with the reference as threshold.

        -log sigmoid(beta * logratio_chosen) - log sigmoid(-beta * logratio_rejected)

    Returns:
        One value per pair, shape (pairs,).

    Reference: arXiv 2404.04656.

    Note:
        The paper subtracts a running mean of the rewards, which TRL dropped; that form is `bco_pair_delta`.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("bco_pair")(pairs, beta=0.1)
        tensor([1.2888])
    """
    return -F.logsigmoid(beta * p.chosen.logratio) - F.logsigmoid(-(beta * p.rejected.logratio))


@register_loss(paper="2408.06266", needs=Need.REFERENCE, evidence="framework", from_trl=True)
def apo_zero(p: Pairs, *, beta: Beta) -> torch.Tensor:
    """APO-zero: raises the chosen side and lowers the rejected one, each towards saturation.

        1 - sigmoid(beta * logratio_chosen) + sigmoid(beta * logratio_rejected)

    For answers better than what the model says today. Saturating: a pair far on either side stops moving.

    Returns:
        One value per pair in (0, 2), shape (pairs,).

    Reference: arXiv 2408.06266, equation 7.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("apo_zero")(pairs, beta=0.1)
        tensor([0.9500])
    """
    return 1 - torch.sigmoid(beta * p.chosen.logratio) + torch.sigmoid(beta * p.rejected.logratio)


@register_loss(paper="2408.06266", needs=Need.REFERENCE, evidence="framework", from_trl=True)
def apo_down(p: Pairs, *, beta: Beta) -> torch.Tensor:
    """APO-down: lowers both sides, the rejected one more.

        sigmoid(beta * logratio_chosen) + 1 - sigmoid(beta * (logratio_chosen - logratio_rejected))

    For chosen answers that are worse than what the model says today.

    Returns:
        One value per pair in (0, 2), shape (pairs,).

    Reference: arXiv 2408.06266, equation 8.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("apo_down")(pairs, beta=0.1)
        tensor([0.9751])
    """
    chosen, rejected = p.chosen.logratio, p.rejected.logratio
    return torch.sigmoid(beta * chosen) + (1 - torch.sigmoid(beta * (chosen - rejected)))
