"""Losses with a likelihood term on the chosen side, alone, beside DPO, or in place of a reference.

Tests in tests/unit/losses: test_golden.py, test_gradients.py and test_properties.py for every variant,
test_identities.py, test_rewards.py, test_special_cases.py and test_ties.py for this family.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F

from ..core.hyperparameters import Beta, Hyper
from ..core.numerics import MAX_EXPONENT, absolute, clamp_max, clamp_min, log1mexp, relu
from ..core.pairs import Need, Pairs, Side
from ..core.registry import register_loss


def avg_logps_reward(side: Side, **_: float) -> torch.Tensor:
    """The mean log-prob per token as a reward, shape (pairs,)."""
    return side.avg_logps


def _token_nll(p: Pairs) -> torch.Tensor:
    return -(p.chosen.token_logps * p.chosen.mask).sum(dim=1)


@register_loss(
    paper=None,
    needs=Need.TOKENS,
    independent_pairs=False,
    verification="framework",
    reward=avg_logps_reward,
    token_sums=_token_nll,
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
    tokens = p.chosen.token_logps[p.chosen.mask]
    # Truncation can empty every completion of a batch; the mean of nothing is NaN, its sum 0.
    mean = tokens.mean() if tokens.numel() else tokens.sum()
    return -mean.expand_as(p.chosen.logps)


def token_mean_nll(side: Side) -> torch.Tensor:
    """Negative log-likelihood averaged over the tokens of the micro-batch, a scalar: what `sft` gives every pair."""
    return -side.logps.sum() / clamp_min(side.lengths.sum(), 1)


DpoNllWeight = Annotated[float, Hyper("Weight of the likelihood term.", ge=0)]
DpoNllNorm = Annotated[
    Literal["seq_mean", "seq_sum", "token_mean"],
    Hyper("Normalization of the likelihood: per token of each answer, per answer, or per token of the micro-batch."),
]


def _dpo_nll_tokens(p: Pairs, *, dpo_nll_weight: float, dpo_nll_norm: str, **_: object) -> torch.Tensor:
    return -dpo_nll_weight * (dpo_nll_norm == "token_mean") * p.chosen.logps


@register_loss(
    paper="2404.19733",
    needs=Need.REFERENCE | Need.LENGTHS,
    independent_pairs=False,
    f_divergence=True,
    token_sums=_dpo_nll_tokens,
    aliases=("irpo",),
    verification="framework",
)
def dpo_nll(
    p: Pairs, *, beta: Beta, dpo_nll_weight: DpoNllWeight = 1.0, dpo_nll_norm: DpoNllNorm = "seq_mean"
) -> torch.Tensor:
    """DPO plus the negative log-likelihood of the chosen side, which keeps its likelihood from falling.

        -log sigmoid(beta * margin) + weight * NLL

        seq_mean    NLL = -logps_chosen / length_chosen                                     (IRPO)
        seq_sum     NLL = -logps_chosen                                                     (RPO of Liu et al.)
        token_mean  NLL = -sum of logps_chosen / sum of length_chosen, over the micro-batch (TRL's ["sigmoid", "sft"])

    For reasoning and for noisy pairs, where DPO lowers both sides. IRPO trains with weight 1, Llama 3 with 0.2; with
    `seq_sum`, Liu et al. use beta * 0.005.

    Returns:
        One value per pair, shape (pairs,).

    References:
        IRPO, arXiv 2404.19733; Llama 3, arXiv 2407.21783; Liu et al., arXiv 2405.16436.

    Note:
        The three normalizations differ by a factor of the length: a weight for one is not a weight for another.
        `seq_sum` was checked by reading the authors' code only. Llama 3's weight is from memory.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0],
        ...                          chosen_lengths=[6], rejected_lengths=[8])
        >>> get_loss("dpo_nll")(pairs, beta=0.1, dpo_nll_weight=1.0)
        tensor([2.5981])
    """
    if dpo_nll_norm == "seq_mean":
        nll = -p.chosen.avg_logps
    elif dpo_nll_norm == "seq_sum":
        nll = -p.chosen.logps
    else:
        nll = token_mean_nll(p.chosen)
    return -F.logsigmoid(beta * p.margin) + dpo_nll_weight * nll


def _beta_logps_reward(side: Side, *, beta: float, **_: object) -> torch.Tensor:
    return beta * side.logps


CpoAlpha = Annotated[float, Hyper("Weight of the likelihood term.", ge=0)]


@register_loss(
    paper="2401.08417",
    needs=Need.LENGTHS,
    independent_pairs=False,
    reward=_beta_logps_reward,
    token_sums=lambda p, *, cpo_alpha, **_: -cpo_alpha * p.chosen.logps,
    verification="framework",
)
def cpo(p: Pairs, *, beta: Beta, cpo_alpha: CpoAlpha = 1.0) -> torch.Tensor:
    """CPO: prefers the chosen side by its summed log-prob and adds a likelihood term on the chosen side.

        -log sigmoid(beta * (logps_chosen - logps_rejected)) + alpha * NLL

    NLL is the mean over all chosen tokens of the micro-batch, as in `sft`. From machine translation: for pairs in which
    the chosen side is good enough to imitate. With alpha = 0 it is DPO without a reference.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2401.08417.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], chosen_lengths=[6], rejected_lengths=[8])
        >>> get_loss("cpo")(pairs, beta=0.1, cpo_alpha=1.0)
        tensor([2.5544])
    """
    return -F.logsigmoid(beta * (p.chosen.logps - p.rejected.logps)) + cpo_alpha * token_mean_nll(p.chosen)


ArpoAlpha = Annotated[float, Hyper("Weight of the likelihood term.", ge=0)]
ArpoDetach = Annotated[bool, Hyper("Detach the weight of the rejected side.")]
ArpoEta1 = Annotated[
    float, Hyper("Weight of the rejected side plus 1 where both sides are equally likely per token.", ge=0)
]
ArpoEta2 = Annotated[
    float, Hyper("Growth rate of the rejected side's weight with the distance between both sides.", ge=0)
]


@register_loss(
    paper="2410.03115",
    needs=Need.LENGTHS,
    independent_pairs=False,
    reward=_beta_logps_reward,
    token_sums=lambda p, *, arpo_alpha, **_: -arpo_alpha * p.chosen.logps,
    verification="authors",
)
def arpo(
    p: Pairs,
    *,
    beta: Beta,
    arpo_alpha: ArpoAlpha = 1.0,
    arpo_detach: ArpoDetach = False,
    arpo_eta1: ArpoEta1 = 0.9,
    arpo_eta2: ArpoEta2 = 0.4,
) -> torch.Tensor:
    """ARPO: CPO that penalizes the rejected side only as far as it differs from the chosen one.

        -log sigmoid(beta * (logps_chosen - w * logps_rejected)) + alpha * NLL

        w = min(1, eta1 * exp(eta2 * |logps_chosen / length_chosen - logps_rejected / length_rejected|) - 1)

    NLL is as in `cpo`. From X-ALMA's machine translation: for pairs so alike that rejecting one would hurt the other.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2410.03115.

    Note:
        As in the authors' code, w carries a gradient and is below 0 for sides that are alike; `arpo_detach` takes the
        gradient away. Where both sides are as likely per token, |...| has a gradient of 0. The exponent is clamped at
        80. The weight of the likelihood term is `cpo`'s default.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-20.0], rejected=[-18.0], chosen_lengths=[10], rejected_lengths=[5])
        >>> get_loss("arpo")(pairs, beta=0.1, arpo_alpha=0.0)
        tensor([1.1218])
    """
    distance = absolute(p.chosen.avg_logps - p.rejected.avg_logps)
    weight = clamp_max(arpo_eta1 * torch.exp(clamp_max(arpo_eta2 * distance, MAX_EXPONENT)) - 1, 1)
    if arpo_detach:
        weight = weight.detach()
    preference = -F.logsigmoid(beta * (p.chosen.logps - weight * p.rejected.logps))
    return preference + arpo_alpha * token_mean_nll(p.chosen)


def _log_odds(side: Side, **_: object) -> torch.Tensor:
    """log(P / (1 - P)) of the mean token probability P = exp(avg_logps), shape (pairs,)."""
    return side.avg_logps - log1mexp(side.avg_logps)


OrpoLambda = Annotated[float, Hyper("Weight of the odds-ratio term relative to the likelihood.", gt=0)]


@register_loss(paper="2403.07691", needs=Need.LENGTHS, reward=_log_odds, verification="framework")
def orpo(p: Pairs, *, orpo_lambda: OrpoLambda = 0.1) -> torch.Tensor:
    """ORPO: fine-tunes on the chosen side with a penalty on the odds of the rejected side.

        NLL - lambda * log sigmoid(log_odds_chosen - log_odds_rejected)

        NLL = -logps_chosen / length_chosen,  log_odds = log(P / (1 - P)),  log P = logps / length

    One stage instead of supervised fine-tuning and DPO: start from a base model, with supervised learning rates.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2403.07691.

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


SlicDelta = Annotated[float, Hyper("Target log-prob margin, in nats.", gt=0)]
SlicLambda = Annotated[float, Hyper("Weight of the likelihood term.", ge=0)]


@register_loss(paper="2305.10425", reward=_logps_reward, verification="framework")
def slic_hf(p: Pairs, *, slic_hf_delta: SlicDelta = 1.0, slic_hf_lambda: SlicLambda = 0.1) -> torch.Tensor:
    """SLiC-HF: a hinge on the log-prob margin plus a likelihood term on the chosen side.

        max(0, delta - (logps_chosen - logps_rejected)) - lambda * logps_chosen

    Both terms are sums over the answer, so delta and lambda scale with its length; the paper tunes both.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2305.10425.

    Note:
        Equal to the code of the first version of HALOs (December 2023), whose defaults these are; its present version
        adds a value per pair to values per token. In the paper the likelihood is that of the fine-tuning target, here
        and there that of the chosen side. TRL's `hinge` is another loss, with a reference and no likelihood.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> get_loss("slic_hf")(Pairs.from_logps(chosen=[-12.0], rejected=[-15.0]), slic_hf_delta=1.0)
        tensor([1.2000])
    """
    return relu(slic_hf_delta - (p.chosen.logps - p.rejected.logps)) - slic_hf_lambda * p.chosen.logps
