"""Optimal-transport losses: the batch's distribution of rewards is compared, not pair with pair."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..hyper import Beta, LabelSmoothing
from ..pairs import Need, Pairs
from ..registry import register_loss


@register_loss(
    paper="2406.05882",
    needs=Need.REFERENCE | Need.BATCH,
    per_pair=False,
    aligned=False,
    evidence="framework",
    from_trl=True,
)
def aot(p: Pairs, *, beta: Beta, label_smoothing: LabelSmoothing) -> torch.Tensor:
    """AOT, paired: the sorted policy margins should dominate the sorted reference margins.

        d_(k) = sort(logps_chosen - logps_rejected)_k - sort(ref_logps_chosen - ref_logps_rejected)_k
        -(1 - e) * log sigmoid(beta * d_(k)) - e * log sigmoid(-beta * d_(k))

    Returns:
        One value per rank k of the sorted batch, shape (pairs,); value k does not belong to pair k.

    Reference: arXiv 2406.05882, section 4.

    Note:
        As in TRL, the batch is the micro-batch of one process. With one pair in it, this is DPO.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0, -20.0], rejected=[-15.0, -18.0],
        ...                          ref_chosen=[-13.0, -19.5], ref_rejected=[-14.0, -19.0])
        >>> get_loss("aot")(pairs, beta=0.1, label_smoothing=0.0)
        tensor([0.7710, 0.5981])
    """
    policy, _ = torch.sort(p.chosen.logps - p.rejected.logps, dim=0)
    reference, _ = torch.sort(p.chosen.ref_logps - p.rejected.ref_logps, dim=0)
    return _smoothed(beta * (policy - reference), label_smoothing)


@register_loss(
    paper="2406.05882",
    needs=Need.REFERENCE | Need.BATCH,
    per_pair=False,
    aligned=False,
    evidence="framework",
    from_trl=True,
)
def aot_unpaired(p: Pairs, *, beta: Beta, label_smoothing: LabelSmoothing) -> torch.Tensor:
    """AOT, unpaired: the sorted chosen log-ratios should dominate the sorted rejected ones.

        d_(k) = sort(logratio_chosen)_k - sort(logratio_rejected)_k
        -(1 - e) * log sigmoid(beta * d_(k)) - e * log sigmoid(-beta * d_(k))

    Works where chosen and rejected answers come from different prompts.

    Returns:
        One value per rank k of the sorted batch, shape (pairs,); value k does not belong to pair k.

    Reference: arXiv 2406.05882, section 4.

    Note:
        As in TRL, the batch is the micro-batch of one process. TRL called this `aot_pair` once.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0, -20.0], rejected=[-15.0, -18.0],
        ...                          ref_chosen=[-13.0, -19.5], ref_rejected=[-14.0, -19.0])
        >>> get_loss("aot_unpaired")(pairs, beta=0.1, label_smoothing=0.0)
        tensor([0.6685, 0.6931])
    """
    chosen, _ = torch.sort(p.chosen.logratio, dim=0)
    rejected, _ = torch.sort(p.rejected.logratio, dim=0)
    return _smoothed(beta * (chosen - rejected), label_smoothing)


def _smoothed(x: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    return -F.logsigmoid(x) * (1 - label_smoothing) - F.logsigmoid(-x) * label_smoothing
