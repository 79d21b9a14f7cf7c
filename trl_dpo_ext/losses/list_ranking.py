"""Losses of the order of the answers to one prompt: likelihoods of the ranking, of the best answer, and ranking hinges.

Tests in tests/unit/losses: test_list_golden.py, test_list_gradients.py and test_list_properties.py for every variant of
lists, test_list_limits.py for this family.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch

from ..core.hyperparameters import Beta, Hyper
from ..core.lists import Lists
from ..core.numerics import clamp_min, relu
from ..core.pairs import Need, Side
from ..core.registry import register_loss
from .likelihood import avg_logps_reward

PlReduction = Annotated[
    Literal["sum", "mean"],
    Hyper("Sum or mean over the answers that others are ranked below; the sum grows with their number."),
]


@register_loss(
    paper="2305.18290", reads="lists", order="ranks", needs=Need.REFERENCE, f_divergence=True, verification="framework"
)
def pl(p: Lists, *, beta: Beta, pl_reduction: PlReduction = "sum") -> torch.Tensor:
    """Plackett-Luce DPO: raises the likelihood of the whole ranking of the answers.

        sum over answers k of  [ log(sum of exp(r_j), over k and the answers ranked below k) - r_k ],  r = beta * score

    DPO's own form for rankings, from the appendix of its paper: the best answer is to win against all others, the
    second against those below it, and so on. Reads ranks, not how far apart the scores are.

    Returns:
        One value per prompt, 0 where all answers are tied, shape (prompts,).

    References:
        arXiv 2305.18290, appendix A.3; ListMLE.

    Note:
        The paper has no ties. Here tied answers do not compete: each only has to win against the answers below it.
        ListMLE implementations break ties at random, which makes the loss random. Equal to that of allRank, executed on
        implicit rewards without ties.

    Example:
        >>> from trl_dpo_ext import Lists, get_loss
        >>> lists = Lists.from_logps(logps=[-12.0, -15.0, -9.0], ref_logps=[-13.0, -14.0, -9.0],
        ...                          prompt=[0, 0, 0], scores=[8.0, 6.0, 2.0])
        >>> get_loss("pl")(lists, beta=0.1)
        tensor([1.7463])
    """
    return _plackett_luce(p, beta * p.answers.score, pl_reduction)


def _length_normalized(side: Side, *, pl_reference_free_beta: float, **_: object) -> torch.Tensor:
    return pl_reference_free_beta * side.avg_logps


PlReferenceFreeBeta = Annotated[float, Hyper("Scale of the mean log-prob per token; far larger than DPO's beta.", gt=0)]


@register_loss(
    paper="2305.18290",
    reads="lists",
    order="ranks",
    needs=Need.LENGTHS,
    prefix="pl",
    reward=_length_normalized,
    verification="framework",
)
def pl_reference_free(
    p: Lists, *, pl_reference_free_beta: PlReferenceFreeBeta = 2.0, pl_reduction: PlReduction = "sum"
) -> torch.Tensor:
    """Plackett-Luce DPO without a reference: SimPO's reward, the mean log-prob per token, in `pl`.

        sum over answers k of  [ log(sum of exp(r_j), over k and the answers ranked below k) - r_k ]

        r = beta * logps / length

    Half the memory of `pl`, at the price of nothing that holds the policy back: learning rates as for `simpo`.

    Returns:
        One value per prompt, 0 where all answers are tied, shape (prompts,).

    References:
        arXiv 2305.18290, appendix A.3, with the reward of arXiv 2405.14734.

    Note:
        With two answers this is `simpo` without a target margin. Ties as in `pl`.

    Example:
        >>> from trl_dpo_ext import Lists, get_loss
        >>> lists = Lists.from_logps(logps=[-12.0, -15.0, -9.0], lengths=[6, 8, 4], prompt=[0, 0, 0],
        ...                          scores=[8.0, 6.0, 2.0])
        >>> get_loss("pl_reference_free")(lists, pl_reference_free_beta=2.0)
        tensor([1.4483])
    """
    return _plackett_luce(p, pl_reference_free_beta * p.answers.avg_logps, pl_reduction)


@register_loss(
    paper="2406.09215", reads="lists", order="best", needs=Need.REFERENCE, f_divergence=True, verification="authors"
)
def top1(p: Lists, *, beta: Beta) -> torch.Tensor:
    """S-DPO: one best answer against all others at once, by the softmax over them.

        log(exp(r_best) + sum over the others of exp(r_j)) - r_best,  r = beta * score

    For one good answer and many that are not, such as sampled negatives in recommendation. The gradient weighs the
    other answers by their softmax, so those that the policy prefers count most. Reads nothing but which is best.

    Returns:
        One value per prompt, 0 where all answers are tied, shape (prompts,).

    References:
        S-DPO, arXiv 2406.09215.

    Note:
        Several best answers do not compete with each other; the value is their mean. The authors' code sums the
        exponentials of differences, which overflows in float32 at a gap of 90; this does not.

    Example:
        >>> from trl_dpo_ext import Lists, get_loss
        >>> lists = Lists.from_logps(logps=[-12.0, -15.0, -9.0], ref_logps=[-13.0, -14.0, -9.0],
        ...                          prompt=[0, 0, 0], scores=[1.0, 0.0, 0.0])
        >>> get_loss("top1")(lists, beta=0.1)
        tensor([1.0019])
    """
    nll = _nll_against(beta * p.answers.score, p.better)
    best = p.best.to(nll.dtype)
    return p.sum(nll * best) / p.sum(best)


def _plackett_luce(p: Lists, rewards: torch.Tensor, reduction: str) -> torch.Tensor:
    better = p.better
    value = p.sum(_nll_against(rewards, better))
    if reduction == "sum":
        return value
    return value / clamp_min(p.sum(better.any(dim=1).to(value.dtype)), 1)


def _nll_against(rewards: torch.Tensor, better: torch.Tensor) -> torch.Tensor:
    """-log of the probability that an answer wins against all that it is better than, 0 for none, (answers,)."""
    own = torch.eye(rewards.numel(), dtype=torch.bool, device=rewards.device)
    return rewards.expand_as(better).masked_fill(~(better | own), -torch.inf).logsumexp(dim=1) - rewards


RrhfNllWeight = Annotated[float, Hyper("Weight of the likelihood of the best answer.", ge=0)]
RrhfReduction = Annotated[Literal["sum", "mean"], Hyper("Sum or mean over the ordered pairs of a prompt.")]


@register_loss(
    paper="2304.05302",
    reads="lists",
    order="ranks",
    needs=Need.LENGTHS,
    reward=avg_logps_reward,
    verification="authors",
)
def rrhf(p: Lists, *, rrhf_nll_weight: RrhfNllWeight = 1.0, rrhf_reduction: RrhfReduction = "sum") -> torch.Tensor:
    """RRHF: orders the answers by their mean log-prob per token, and learns the best one.

        sum over pairs of max(0, a_worse - a_better)  +  weight * (-a_best),  a = logps / length

    Without a reference, and nothing to tune. An ordered pair has no gradient, so the likelihood term is what trains
    once the ranking is right.

    Returns:
        One value per prompt, 0 where all answers are tied, shape (prompts,).

    References:
        arXiv 2304.05302.

    Note:
        The authors' code multiplies the hinges by 100 by default and averages the likelihood over the padded row,
        prompt included; here it is the answer's own mean. Several best answers: the mean of theirs. With two answers
        this is `repo` with gamma 0, plus the likelihood.

    Example:
        >>> from trl_dpo_ext import Lists, get_loss
        >>> lists = Lists.from_logps(logps=[-12.0, -15.0, -9.0], lengths=[6, 8, 9], prompt=[0, 0, 0],
        ...                          scores=[8.0, 6.0, 2.0])
        >>> get_loss("rrhf")(lists)
        tensor([4.])
    """
    per_token = p.answers.avg_logps
    better = p.better
    hinges = p.sum(relu(per_token - per_token.unsqueeze(1)).masked_fill(~better, 0).sum(dim=1))
    if rrhf_reduction == "mean":
        hinges = hinges / clamp_min(p.sum(better.sum(dim=1)), 1)
    best = p.best.to(per_token.dtype)
    return p.zero_if_tied(hinges - rrhf_nll_weight * p.sum(per_token * best) / p.sum(best))
