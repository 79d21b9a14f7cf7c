"""Squared losses: the margin, or each side's log-ratio, is pulled to a finite target."""

from __future__ import annotations

import torch

from ..hyper import Beta
from ..pairs import Need, Pairs
from ..registry import register_loss


@register_loss(
    paper="2310.12036", needs=Need.REFERENCE | Need.LENGTHS, f_divergence=True, evidence="framework", from_trl=True
)
def ipo(p: Pairs, *, beta: Beta) -> torch.Tensor:
    """IPO, length-averaged: pulls the per-token margin to a finite target, so that sure labels do not overfit.

        (score_chosen / length_chosen - score_rejected / length_rejected - 1 / (2 beta))^2

    `beta` is the paper's tau. The target is per token: beta 0.1 asks for 5 nats per token, so think of 0.5 and above.

    Returns:
        One value per pair, shape (pairs,).

    Reference: arXiv 2310.12036, equation 17.

    Note:
        The paper sums log-probs (that is `ipo_sum`); its authors confirmed that their results used the averaged form.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0],
        ...                          chosen_lengths=[6], rejected_lengths=[8])
        >>> get_loss("ipo")(pairs, beta=0.1)
        tensor([22.1684])
    """
    return (p.chosen.avg_score - p.rejected.avg_score - 1 / (2 * beta)) ** 2


@register_loss(paper="2405.00675", needs=Need.REFERENCE, evidence="authors", from_trl=True)
def sppo_hard(p: Pairs, *, beta: Beta) -> torch.Tensor:
    """SPPO with hard labels: regresses each side's log-ratio to its own target, up for chosen and down for rejected.

        (logratio_chosen - 1 / (2 beta))^2 + (logratio_rejected + 1 / (2 beta))^2

    For self-play rounds. The authors train with beta 1e-3; keep gradient clipping on, the first loss is then 5e5.

    Returns:
        One value per pair, shape (pairs,).

    Reference: arXiv 2405.00675, equation 4.7 with P = 1.

    Note:
        Twice the authors' value, which has a factor 1/2 in front; TRL's form is kept.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("sppo_hard")(pairs, beta=0.1)
        tensor([32.])
    """
    return (p.chosen.logratio - 0.5 / beta) ** 2 + (p.rejected.logratio + 0.5 / beta) ** 2
