"""Losses without a reference that also imitate the chosen side, which is what holds the policy in place."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F

from ..core.hyperparameters import Beta, Hyper
from ..core.pairs import Need, Pairs, Side
from ..core.registry import register_loss
from .numerics import MAX_EXPONENT, log1mexp, token_mean_nll


def _beta_logps_reward(side: Side, *, beta: float, **_: object) -> torch.Tensor:
    return beta * side.logps


CpoAlpha = Annotated[float, Hyper("Weight of the likelihood term.", ge=0)]


@register_loss(paper="2401.08417", needs=Need.LENGTHS, per_pair=False, reward=_beta_logps_reward, evidence="framework")
def cpo(p: Pairs, *, beta: Beta, cpo_alpha: CpoAlpha = 1.0) -> torch.Tensor:
    """CPO: prefers the chosen side by its summed log-prob, with the likelihood of the chosen side as the anchor.

        -log sigmoid(beta * (logps_chosen - logps_rejected)) + alpha * NLL

    NLL is the mean over all chosen tokens of the micro-batch, as in `sft`. From machine translation: for pairs in which
    the chosen side is good enough to imitate. With alpha = 0 it is DPO without a reference.

    Returns:
        One value per pair, shape (pairs,).

    Reference: arXiv 2401.08417.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], chosen_lengths=[6], rejected_lengths=[8])
        >>> get_loss("cpo")(pairs, beta=0.1, cpo_alpha=1.0)
        tensor([2.5544])
    """
    return -F.logsigmoid(beta * (p.chosen.logps - p.rejected.logps)) + cpo_alpha * token_mean_nll(p.chosen)


ArpoAlpha = Annotated[float, Hyper("Weight of the likelihood term.", ge=0)]
ArpoDetach = Annotated[bool, Hyper("Whether the weight of the rejected side carries no gradient.")]
ArpoEta1 = Annotated[
    float, Hyper("1 more than the rejected side's weight where both sides are as likely per token.", ge=0)
]
ArpoEta2 = Annotated[
    float, Hyper("How fast the rejected side's weight grows with the distance of the two sides.", ge=0)
]


@register_loss(paper="2410.03115", needs=Need.LENGTHS, per_pair=False, reward=_beta_logps_reward, evidence="authors")
def arpo(
    p: Pairs,
    *,
    beta: Beta,
    arpo_alpha: ArpoAlpha = 1.0,
    arpo_detach: ArpoDetach = False,
    arpo_eta1: ArpoEta1 = 0.9,
    arpo_eta2: ArpoEta2 = 0.4,
) -> torch.Tensor:
    """ARPO: CPO that rejects a side only as far as it differs from the chosen one.

        -log sigmoid(beta * (logps_chosen - w * logps_rejected)) + alpha * NLL

        w = min(1, eta1 * exp(eta2 * |logps_chosen / length_chosen - logps_rejected / length_rejected|) - 1)

    NLL is as in `cpo`. From X-ALMA's machine translation: for pairs so alike that rejecting one would hurt the other.

    Returns:
        One value per pair, shape (pairs,).

    Reference: arXiv 2410.03115.

    Note:
        As in the authors' code, w carries a gradient and is below 0 for sides that are alike; `arpo_detach` takes the
        gradient away. The exponent is clamped at 80. The weight of the likelihood term is `cpo`'s default.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-20.0], rejected=[-18.0], chosen_lengths=[10], rejected_lengths=[5])
        >>> get_loss("arpo")(pairs, beta=0.1, arpo_alpha=0.0)
        tensor([1.1218])
    """
    distance = (p.chosen.avg_logps - p.rejected.avg_logps).abs()
    weight = (arpo_eta1 * torch.exp((arpo_eta2 * distance).clamp(max=MAX_EXPONENT)) - 1).clamp(max=1)
    if arpo_detach:
        weight = weight.detach()
    preference = -F.logsigmoid(beta * (p.chosen.logps - weight * p.rejected.logps))
    return preference + arpo_alpha * token_mean_nll(p.chosen)


def _log_odds(side: Side, **_: object) -> torch.Tensor:
    """log(P / (1 - P)) of the mean token probability P = exp(avg_logps), shape (pairs,)."""
    return side.avg_logps - log1mexp(side.avg_logps)


OrpoLambda = Annotated[float, Hyper("Weight of the odds ratio against the likelihood.", gt=0)]


@register_loss(paper="2403.07691", needs=Need.LENGTHS, reward=_log_odds, evidence="framework")
def orpo(p: Pairs, *, orpo_lambda: OrpoLambda = 0.1) -> torch.Tensor:
    """ORPO: fine-tunes on the chosen side while its odds should exceed those of the rejected one.

        NLL - lambda * log sigmoid(log_odds_chosen - log_odds_rejected)

        NLL = -logps_chosen / length_chosen,  log_odds = log(P / (1 - P)),  log P = logps / length

    One stage instead of supervised fine-tuning and DPO: start from a base model, with supervised learning rates.

    Returns:
        One value per pair, shape (pairs,).

    Reference: arXiv 2403.07691.

    Note:
        The likelihood is of the completion only; the authors' and TRL's code also count the prompt. A mean log-prob
        above -1e-7 counts as -1e-7 in 1 - P, where TRL's gradient is NaN. TRL calls lambda beta.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], chosen_lengths=[6], rejected_lengths=[8])
        >>> get_loss("orpo")(pairs, orpo_lambda=0.1)
        tensor([2.0769])
    """
    return -p.chosen.avg_logps - orpo_lambda * F.logsigmoid(_log_odds(p.chosen) - _log_odds(p.rejected))


def _logps_reward(side: Side, **_: object) -> torch.Tensor:
    return side.logps


SlicDelta = Annotated[float, Hyper("Nats by which the chosen side has to be the likelier one.", gt=0)]
SlicLambda = Annotated[float, Hyper("Weight of the likelihood term.", ge=0)]


@register_loss(paper="2305.10425", reward=_logps_reward, evidence="memory")
def slic_hf(p: Pairs, *, slic_hf_delta: SlicDelta = 1.0, slic_hf_lambda: SlicLambda = 0.1) -> torch.Tensor:
    """SLiC-HF: pushes a pair until the chosen side is likelier by a fixed distance, and imitates the chosen side.

        max(0, delta - (logps_chosen - logps_rejected)) - lambda * logps_chosen

    Both terms are sums over the answer, so delta and lambda scale with its length; the paper tunes both.

    Returns:
        One value per pair, shape (pairs,).

    Reference: arXiv 2305.10425.

    Note:
        The formula is the paper's as remembered, the defaults are those of a public framework whose own code for it
        is broken: not checked against running code. TRL's `hinge` is another loss, with a reference and no likelihood.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> get_loss("slic_hf")(Pairs.from_logps(chosen=[-12.0], rejected=[-15.0]), slic_hf_delta=1.0)
        tensor([1.2000])
    """
    return torch.relu(slic_hf_delta - (p.chosen.logps - p.rejected.logps)) - slic_hf_lambda * p.chosen.logps
