"""Losses that weight or shift each pair by statistics of the batch, over all processes.

Tests in tests/unit/losses: test_golden.py, test_gradients.py and test_properties.py for every variant, test_rewards.py
and test_special_cases.py for this family.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F

from ..core.hyperparameters import Beta, Hyper
from ..core.numerics import absolute, clamp_max
from ..core.pairs import Need, Pairs, Side
from ..core.registry import register_loss

DrDpoBeta = Annotated[
    float, Hyper("Temperature of the weights; low values favor easy pairs, high values weight all pairs equally.", gt=0)
]


@register_loss(
    paper="2407.07880",
    needs=Need.REFERENCE | Need.BATCH,
    independent_pairs=False,
    f_divergence=True,
    verification="authors",
)
def dr_dpo(p: Pairs, *, beta: Beta, dr_dpo_beta: DrDpoBeta = 1.0) -> torch.Tensor:
    """Dr. DPO: down-weights the pairs with the largest losses in the batch, which are the likeliest to be mislabeled.

        -beta' * log mean over the batch of exp(-loss / beta'),  loss = -log sigmoid(beta * margin)

    Its gradient is DPO's with the weights softmax(-loss / beta') over all pairs of all processes. For noisy labels and
    large micro-batches: gradient accumulation does not enlarge the batch, and a batch of one pair is DPO.

    Returns:
        The batch value times each pair's weight, which is 1 on average, shape (pairs,).

    References:
        arXiv 2407.07880.

    Note:
        The authors take the batch of one process. Averaged over pairs and then over processes, the values give the
        batch value, and their gradients its gradient.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0, -20.0], rejected=[-15.0, -18.0],
        ...                          ref_chosen=[-13.0, -19.5], ref_rejected=[-14.0, -19.0])
        >>> get_loss("dr_dpo")(pairs, beta=0.1, dr_dpo_beta=1.0).mean()
        tensor(0.6808)
    """
    losses = -F.logsigmoid(beta * p.margin)
    everyone = p.gather(losses)
    of_batch = -dr_dpo_beta * (torch.logsumexp(-everyone / dr_dpo_beta, dim=0) - math.log(everyone.numel()))
    own = losses.detach()
    weights = torch.exp((of_batch - own) / dr_dpo_beta)
    return weights * (losses - own + of_batch)


KldpoTau = Annotated[float, Hyper("Temperature of the weights; low values favor the hardest pairs.", gt=0)]


@register_loss(
    paper="2502.01930",
    needs=Need.REFERENCE | Need.BATCH,
    independent_pairs=False,
    f_divergence=True,
    verification="authors",
)
def kldpo(p: Pairs, *, beta: Beta, kldpo_tau: KldpoTau = 0.05) -> torch.Tensor:
    """KLDPO: up-weights pairs whose loss exceeds the batch mean, for robustness to shifts in the preferences.

        min(10, exp((loss - mean loss of the batch) / tau)) * loss,  loss = -log sigmoid(beta * margin)

    The mean is over all processes, and the weight carries no gradient. For preferences that may shift after training;
    the opposite of `dr_dpo`, so not for noisy labels. A batch of one pair is DPO.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2502.01930.

    Note:
        The weights do not sum to one, as in the authors' code; tau is their README's, where the class defaults to 1.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0, -20.0], rejected=[-15.0, -18.0],
        ...                          ref_chosen=[-13.0, -19.5], ref_rejected=[-14.0, -19.0])
        >>> get_loss("kldpo")(pairs, beta=0.1, kldpo_tau=1.0)
        tensor([0.5486, 0.8405])
    """
    losses = -F.logsigmoid(beta * p.margin)
    exponent = (losses.detach() - p.gather(losses).mean()) / kldpo_tau
    return torch.exp(clamp_max(exponent, math.log(10))) * losses


def _gamma_po_reward(side: Side, *, gamma_po_beta: float, **_: object) -> torch.Tensor:
    return gamma_po_beta * side.avg_logps


GammaPoBeta = Annotated[float, Hyper("Scale of the mean log-prob per token; far larger than DPO's beta.", gt=0)]
GammaPoRatio = Annotated[float, Hyper("Mean target margin as a fraction of gamma_po_beta.", ge=0)]
GammaPoTau = Annotated[float, Hyper("Strength of the pull towards equal target margins; high is SimPO.", gt=0)]


@register_loss(
    paper="2506.03690",
    needs=Need.LENGTHS | Need.BATCH,
    independent_pairs=False,
    reward=_gamma_po_reward,
    verification="authors",
)
def gamma_po(
    p: Pairs, *, gamma_po_beta: GammaPoBeta = 10.0, gamma_po_ratio: GammaPoRatio = 0.4, gamma_po_tau: GammaPoTau = 10.0
) -> torch.Tensor:
    """γ-PO: SimPO with a per-pair target margin, larger for the clear pairs of a batch and smaller for ambiguous ones.

        -log sigmoid(gap - gamma),  gap = beta * (logps_chosen / length_chosen - logps_rejected / length_rejected)

    The gammas average to beta * ratio over all pairs of all processes and carry no gradient. For labels of mixed
    quality; the authors train with beta 2.5 to 10, ratio 0.15 to 0.5 and tau 3 to 20, per model.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2506.03690.

    Note:
        The authors' form that looks at one batch; their queue of past gaps, which differs between processes, and their
        form with a reference are not offered. A batch of one pair is SimPO.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0, -20.0], rejected=[-15.0, -18.0],
        ...                          chosen_lengths=[6, 10], rejected_lengths=[8, 5])
        >>> get_loss("gamma_po")(pairs, gamma_po_beta=2.5, gamma_po_ratio=0.15, gamma_po_tau=10.0)
        tensor([1.0919, 0.0264])
    """
    gaps = gamma_po_beta * (p.chosen.avg_logps - p.rejected.avg_logps)
    return -F.logsigmoid(gaps - _target_margins(gaps, p.gather(gaps), gamma_po_beta * gamma_po_ratio, gamma_po_tau))


@torch.no_grad()
def _target_margins(own: torch.Tensor, everyone: torch.Tensor, mean: float, tau: float) -> torch.Tensor:
    """Target margins of this process's pairs, from exponentiated gradient steps on all pairs."""
    pairs = everyone.numel()
    # The own pairs ride along behind everyone's and are left out of the sum, so no pair has to find itself in it.
    gaps = torch.cat((everyone, own))
    log_share = torch.full_like(gaps, -math.log(pairs))
    margins = torch.full_like(gaps, mean)
    step = min(0.5 / tau, 1.0)
    # The authors take 20 steps and return the margins from before the last one.
    for _ in range(19):
        # Their epsilon, too, without which a share that vanishes would never come back.
        gradient = tau * (1 + torch.log(pairs * (torch.exp(log_share) + 1e-10))) + mean * torch.sigmoid(margins - gaps)
        log_share = log_share - step * gradient
        log_share = log_share - torch.logsumexp(log_share[:pairs], dim=0)
        margins = mean * pairs * torch.exp(log_share)
    return margins[pairs:]


def _amapo_reward(side: Side, *, amapo_beta: float, **_: object) -> torch.Tensor:
    return amapo_beta * side.avg_logps


# beta * exp(20) is an absurd margin already, and the logged loss stays finite.
_MAX_AMAPO_EXPONENT = 20.0

# Rounding can put the mean of equal gaps above them.
_AMAPO_TIE = 1e-6

AmapoBeta = Annotated[float, Hyper("Scale of the mean log-prob per token; far larger than DPO's beta.", gt=0)]
AmapoSmoothing = Annotated[float, Hyper("Probability that a preference label is flipped.", ge=0, lt=0.5)]


@register_loss(
    paper="2511.09385",
    needs=Need.LENGTHS | Need.BATCH,
    independent_pairs=False,
    reward=_amapo_reward,
    verification="authors",
    fewest_pairs=8,
)
def amapo(p: Pairs, *, amapo_beta: AmapoBeta = 2.0, amapo_label_smoothing: AmapoSmoothing = 0.0) -> torch.Tensor:
    """AMaPO: SimPO with a target margin for the pairs below the batch's mean gap, and none for those above it.

        -log sigmoid(beta * gap - m),  gap = logps_chosen / length_chosen - logps_rejected / length_rejected

        m = beta * exp((mean - gap) / std * mean)  where gap < mean,  else 0

    Mean and std are over the gaps of all processes and carry no gradient, like m. Puts the weight on pairs that the
    policy ranks worse than others. Authors: beta 2 to 3, learning rates of 4e-7 to 1e-6. For micro-batches of eight
    pairs or more over all processes: gradient accumulation does not enlarge the batch.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2511.09385.

    Note:
        Follows the authors' code, where the paper, as retold by others, has beta in the exponent, too. Gaps within 1e-6
        of the mean, relative to it, count as equal to it, so that a batch of one pair or of equal gaps has no margin;
        the exponent is at most 20.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0, -20.0], rejected=[-15.0, -18.0],
        ...                          chosen_lengths=[6, 10], rejected_lengths=[8, 5])
        >>> get_loss("amapo")(pairs, amapo_beta=2.0)
        tensor([3.6455, 0.0400])
    """
    gaps = p.chosen.avg_logps - p.rejected.avg_logps
    x = amapo_beta * gaps - amapo_beta * _amapo_margins(gaps.detach(), p.gather(gaps))
    return -(1 - amapo_label_smoothing) * F.logsigmoid(x) - amapo_label_smoothing * F.logsigmoid(-x)


def _amapo_margins(own: torch.Tensor, everyone: torch.Tensor) -> torch.Tensor:
    """Target margins of this process's pairs, in units of beta."""
    if everyone.numel() < 2:
        return torch.zeros_like(own)
    mean = everyone.mean()
    below = mean - own > _AMAPO_TIE * absolute(mean)
    distance = (mean - own) / everyone.std().masked_fill(~below.any(), 1.0)
    return torch.exp(clamp_max(distance * mean, _MAX_AMAPO_EXPONENT)).masked_fill(~below, 0.0)
