"""Losses without a reference model, with the policy's mean log-prob per token as the reward.

Tests in tests/unit/losses: test_golden.py, test_gradients.py and test_properties.py for every variant,
test_identities.py, test_rewards.py, test_special_cases.py and test_ties.py for this family.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F

from ..core.hyperparameters import Hyper
from ..core.numerics import MAX_EXPONENT, clamp_max, clamp_min, relu
from ..core.pairs import Need, Pairs, Side
from ..core.registry import register_loss
from .likelihood import avg_logps_reward


def _simpo_reward(side: Side, *, simpo_beta: float, **_: object) -> torch.Tensor:
    return simpo_beta * side.avg_logps


SimpoBeta = Annotated[float, Hyper("Scale of the mean log-prob per token; far larger than DPO's beta.", gt=0)]
SimpoGamma = Annotated[float | None, Hyper("Target reward margin; 0.5 if unset.")]
SimpoRatio = Annotated[float | None, Hyper("Target reward margin as a fraction of simpo_beta.", excludes="simpo_gamma")]
SimpoSmoothing = Annotated[float, Hyper("Probability that a preference label is flipped.", ge=0, lt=0.5)]
SimpoLink = Annotated[Literal["sigmoid", "hinge"], Hyper("Link function applied to the margin.")]


@register_loss(paper="2405.14734", needs=Need.LENGTHS, reward=_simpo_reward, verification="authors")
def simpo(
    p: Pairs,
    *,
    simpo_beta: SimpoBeta = 2.0,
    simpo_gamma: SimpoGamma = None,
    simpo_gamma_beta_ratio: SimpoRatio = None,
    simpo_label_smoothing: SimpoSmoothing = 0.0,
    simpo_link: SimpoLink = "sigmoid",
) -> torch.Tensor:
    """SimPO: prefers the chosen side by its mean log-prob per token, with a target margin.

        x = beta * (logps_chosen / length_chosen - logps_rejected / length_rejected) - gamma
        -log sigmoid(x)  or, with the hinge link,  max(0, 1 - x)

    Half the memory of DPO and no bias to length, at the price of nothing that holds the policy back: learning rates of
    3e-7 to 1e-6. Beta is 2 to 10 and a recipe of its own for each model; at DPO's 0.1 the loss is nearly flat.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2405.14734.

    Note:
        The authors' code takes gamma / beta, which is `simpo_gamma_beta_ratio` here; gamma = 0.5 is their default ratio
        of 0.25 at their default beta of 2, and does not grow with beta. Label smoothing also applies to the hinge,
        where their code ignores it.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], chosen_lengths=[6], rejected_lengths=[8])
        >>> get_loss("simpo")(pairs, simpo_beta=2.0, simpo_gamma=0.5)
        tensor([1.1369])
    """
    gamma = 0.5 if simpo_gamma is None else simpo_gamma
    if simpo_gamma_beta_ratio is not None:
        gamma = simpo_gamma_beta_ratio * simpo_beta
    x = simpo_beta * (p.chosen.avg_logps - p.rejected.avg_logps) - gamma
    right, flipped = (relu(1 - x), relu(1 + x)) if simpo_link == "hinge" else (-F.logsigmoid(x), -F.logsigmoid(-x))
    return (1 - simpo_label_smoothing) * right + simpo_label_smoothing * flipped


RepoGamma = Annotated[float, Hyper("Target margin, in nats per token.")]


@register_loss(paper="2503.07426", needs=Need.LENGTHS, reward=avg_logps_reward, verification="authors")
def repo(p: Pairs, *, repo_gamma: RepoGamma = 0.6) -> torch.Tensor:
    """RePO: increases a pair's per-token margin until it reaches a threshold.

        max(0, gamma - (logps_chosen / length_chosen - logps_rejected / length_rejected))

    SimPO with one number to tune: its limit for a large beta. The authors use 0.6 for Llama 3, and 0.4 for Mistral and
    Gemma, which they call the ratio of gamma to beta.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2503.07426.

    Note:
        The authors' beta only scales the rewards that are logged.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], chosen_lengths=[6], rejected_lengths=[8])
        >>> get_loss("repo")(pairs, repo_gamma=0.6)
        tensor([0.7250])
    """
    return relu(repo_gamma - (p.chosen.avg_logps - p.rejected.avg_logps))


def _inverse_perplexity(side: Side, **_: object) -> torch.Tensor:
    return torch.exp(side.avg_logps)


@register_loss(paper="2502.00883", needs=Need.LENGTHS, reward=_inverse_perplexity, verification="authors")
def simper(p: Pairs) -> torch.Tensor:
    """SimPER: raises the inverse perplexity of the chosen side and lowers that of the rejected one.

        -exp(logps_chosen / length_chosen) + exp(logps_rejected / length_rejected)

    Nothing to tune. Unlikely text has tiny gradients (5 nats per token: a factor of exp(-5)), so it needs a larger
    learning rate than SimPO.

    Returns:
        One value per pair in (-1, 1), negative when the chosen side is the likelier one, shape (pairs,).

    References:
        arXiv 2502.00883.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], chosen_lengths=[6], rejected_lengths=[8])
        >>> get_loss("simper")(pairs)
        tensor([0.0180])
    """
    return _inverse_perplexity(p.rejected) - _inverse_perplexity(p.chosen)


def _alphapo_reward(side: Side, *, alphapo_beta: float, alphapo_alpha: float, **_: object) -> torch.Tensor:
    if alphapo_alpha == 0:
        return alphapo_beta * side.avg_logps
    exponent = clamp_max(-alphapo_alpha * side.avg_logps, MAX_EXPONENT)
    return alphapo_beta * -torch.expm1(exponent) / alphapo_alpha


AlphapoBeta = Annotated[float, Hyper("Scale of the reward; far larger than DPO's beta.", gt=0)]
AlphapoAlpha = Annotated[float, Hyper("Shape of the reward: 0 is SimPO's logarithm, -1 the probability.")]
AlphapoGamma = Annotated[float, Hyper("Target reward margin.")]


@register_loss(paper="2501.03884", needs=Need.LENGTHS, reward=_alphapo_reward, verification="framework")
def alphapo(
    p: Pairs,
    *,
    alphapo_beta: AlphapoBeta = 2.5,
    alphapo_alpha: AlphapoAlpha = 0.25,
    alphapo_gamma: AlphapoGamma = 0.1,
) -> torch.Tensor:
    """AlphaPO: SimPO with an adjustable reward shape, which controls how far both likelihoods fall.

        -log sigmoid(beta * (r_chosen - r_rejected) - gamma),  r = (1 - P^-alpha) / alpha,  log P = logps / length

    Alpha above 0 up-weights unlikely answers, below 0 down-weights them; towards 0 it is SimPO. Tune alpha per model.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2501.03884.

    Note:
        The defaults are those of TRL's documentation. The exponent is clamped at 80, where TRL's form overflows.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], chosen_lengths=[6], rejected_lengths=[8])
        >>> get_loss("alphapo")(pairs, alphapo_beta=2.5, alphapo_alpha=0.25, alphapo_gamma=0.1)
        tensor([1.0422])
    """
    reward_of = {"alphapo_beta": alphapo_beta, "alphapo_alpha": alphapo_alpha}
    return -F.logsigmoid(
        _alphapo_reward(p.chosen, **reward_of) - _alphapo_reward(p.rejected, **reward_of) - alphapo_gamma
    )


# In float32 the mean of equal probabilities can exceed them by one rounding.
_BELOW_MEAN = 1 - 1e-6


def _unsure_tokens(side: Side) -> torch.Tensor:
    """1 for the tokens that are less likely than the mean of their completion, (pairs, tokens)."""
    likelihood = torch.exp(side.token_logps.detach()) * side.mask
    mean = likelihood.sum(dim=1) / clamp_min(side.mask.sum(dim=1), 1)
    return ((likelihood < _BELOW_MEAN * mean.unsqueeze(1)) & side.mask).to(side.token_logps.dtype)


def _unsure_mean(side: Side, unsure: torch.Tensor) -> torch.Tensor:
    return (side.token_logps * unsure).sum(dim=1) / clamp_min(unsure.sum(dim=1), 1)


def _confpo_reward(side: Side, *, confpo_beta: float, **_: object) -> torch.Tensor:
    return confpo_beta * _unsure_mean(side, _unsure_tokens(side))


ConfpoBeta = Annotated[float, Hyper("Scale of the mean log-prob per unsure token.", gt=0)]
ConfpoGamma = Annotated[float, Hyper("Target reward margin.", ge=0)]


@register_loss(paper="2506.08712", needs=Need.TOKENS, reward=_confpo_reward, verification="authors")
def confpo(p: Pairs, *, confpo_beta: ConfpoBeta = 1.5, confpo_gamma: ConfpoGamma = 1.6) -> torch.Tensor:
    """ConfPO: SimPO on the tokens of which the policy is unsure.

        -log sigmoid(beta * (m_chosen - m_rejected) - gamma)

        m = mean log-prob of the tokens whose probability is below the mean probability of their completion

    Which tokens these are carries no gradient. Leaves alone what the policy says with confidence on both sides, so that
    less of it is overwritten. Needs no reference; learning rates as for SimPO.

    Returns:
        One value per pair, 0 where a side has no such token (one token, or all equally likely), shape (pairs,).

    References:
        arXiv 2506.08712.

    Note:
        Probabilities are compared with 1e-6 of tolerance. The defaults are those of the published script; the authors'
        class has those of TRL's CPO.

    Example:
        >>> from trl_dpo_ext import Pairs, Side, get_loss
        >>> chosen, rejected = torch.tensor([[0.5, 0.2, 0.9, 0.7]]).log(), torch.tensor([[0.3, 0.8, 0.6]]).log()
        >>> sides = (Side(t.sum(1), token_logps=t, mask=t != 0) for t in (chosen, rejected))
        >>> get_loss("confpo")(Pairs(*sides))
        tensor([1.7186])
    """
    chosen, rejected = _unsure_tokens(p.chosen), _unsure_tokens(p.rejected)
    gap = _unsure_mean(p.chosen, chosen) - _unsure_mean(p.rejected, rejected)
    either_sure = (chosen.sum(dim=1) == 0) | (rejected.sum(dim=1) == 0)
    return -F.logsigmoid(confpo_beta * gap - confpo_gamma).masked_fill(either_sure, 0.0)
