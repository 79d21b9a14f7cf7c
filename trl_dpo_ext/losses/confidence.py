"""Losses that weight a pair by the policy's confidence in it.

Tests in tests/unit/losses: test_golden.py, test_gradients.py and test_properties.py for every variant,
test_identities.py and test_special_cases.py for this family.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F

from ..core.hyperparameters import Beta, Hyper
from ..core.pairs import Need, Pairs
from ..core.registry import register_loss

FocalpoGamma = Annotated[float, Hyper("Exponent of the weight q^gamma; 0 is DPO.", ge=0)]


@register_loss(paper="2501.06645", needs=Need.REFERENCE, f_divergence=True, verification="third_party")
def focalpo(p: Pairs, *, beta: Beta, focalpo_gamma: FocalpoGamma = 0.05) -> torch.Tensor:
    """FocalPO: down-weights pairs that the policy ranks wrongly, which DPO rarely corrects.

        -q^gamma * log q,  q = sigmoid(beta * margin), no gradient through q^gamma

    The opposite of focal loss in vision, which looks at the hard examples. For noisy or too difficult pairs.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2501.06645.

    Note:
        Checked against third-party code only; the authors' repository has no code for it, and the default gamma is from
        memory. The paper differentiates q^gamma too, which turns the gradient around where q < exp(-1 / gamma).

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("focalpo")(pairs, beta=0.1, focalpo_gamma=0.05)
        tensor([0.5805])
    """
    log_q = F.logsigmoid(beta * p.margin)
    return -torch.exp(focalpo_gamma * log_q).detach() * log_q


RopoAlpha = Annotated[float, Hyper("Weight of the bounded, noise-tolerant term relative to DPO's.", gt=0)]


@register_loss(paper="2404.04102", needs=Need.REFERENCE, f_divergence=True, verification="third_party")
def ropo(p: Pairs, *, beta: Beta, ropo_alpha: RopoAlpha = 14.0) -> torch.Tensor:
    """ROPO: DPO mixed with a bounded loss, so that pairs the policy confidently contradicts lose influence.

        4 alpha / (1 + alpha)^2 * [-log sigmoid(beta * margin) + alpha * sigmoid(-beta * margin)]

    For noisy labels when the noise rate is not known; with a known rate, see `robust` and `cdpo`.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2404.04102, equation 9.

    Note:
        Checked against third-party code only; the default alpha is from memory. The paper's method also filters and
        re-samples the data between rounds, which is not part of a loss.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("ropo")(pairs, beta=0.1, ropo_alpha=14.0)
        tensor([1.7174])
    """
    x = beta * p.margin
    scale = 4 * ropo_alpha / (1 + ropo_alpha) ** 2
    return scale * (-F.logsigmoid(x) + ropo_alpha * torch.sigmoid(-x))
