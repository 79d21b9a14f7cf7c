"""Losses that treat the two sides differently, to keep the chosen likelihood from falling with the rejected one.

Tests in tests/unit/losses: test_golden.py, test_gradients.py and test_properties.py for every variant,
test_identities.py, test_special_cases.py and test_ties.py for this family.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F

from ..core.columns import Column, Doubt
from ..core.hyperparameters import Beta, Hyper
from ..core.numerics import clamp_min, minimum, relu
from ..core.pairs import Need, Pairs
from ..core.registry import register_loss

DpopLambda = Annotated[
    float, Hyper("Weight of the penalty when the chosen side becomes less likely than under the reference.", ge=0)
]


@register_loss(paper="2402.13228", needs=Need.REFERENCE, aliases=("smaug",), verification="framework")
def dpop(p: Pairs, *, beta: Beta, dpop_lambda: DpopLambda = 50.0) -> torch.Tensor:
    """DPO-Positive: DPO with a penalty whenever the chosen side becomes less likely than under the reference.

        -log sigmoid(beta * (logratio_chosen - logratio_rejected - lambda * max(0, -logratio_chosen)))

    For chosen and rejected answers that differ in few tokens (mathematics, code), where DPO lowers both.

    Returns:
        One value per pair, shape (pairs,).

    References:
        Smaug, arXiv 2402.13228, equation 3.

    Note:
        The penalty stands inside the sigmoid, as the authors settled after the paper's first version. At the reference
        itself, where training starts, its gradient is taken as 0: the first step is DPO's.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-20.0], rejected=[-18.0], ref_chosen=[-19.5], ref_rejected=[-19.0])
        >>> get_loss("dpop")(pairs, beta=0.1, dpop_lambda=50.0)
        tensor([2.7183])
    """
    chosen, rejected = p.chosen.logratio, p.rejected.logratio
    # relu and not clamp_min or a maximum: they pass 1 and 1/2 of the gradient at exactly 0, times lambda, at the first
    # step.
    penalty = dpop_lambda * relu(-chosen)
    return -F.logsigmoid(beta * (chosen - rejected - penalty))


DpoShiftLambda = Annotated[float, Hyper("Weight of the rejected side; 1 is DPO.", gt=0, le=1)]


DpoShiftSchedule = Annotated[
    Literal["fixed", "increase_linear", "decrease_linear"],
    Hyper(
        "Schedule of the rejected side's weight: fixed, or linear between min and max.",
        excludes="dpo_shift_lambda",
    ),
]
DpoShiftMin = Annotated[float, Hyper("Lowest weight of the rejected side in a schedule.", gt=0, le=1)]
DpoShiftMax = Annotated[float, Hyper("Highest weight of the rejected side in a schedule.", gt=0, le=1)]


@register_loss(paper="2502.07599", needs=Need.REFERENCE, verification="authors")
def dpo_shift(
    p: Pairs,
    *,
    beta: Beta,
    dpo_shift_lambda: DpoShiftLambda = 0.75,
    dpo_shift_schedule: DpoShiftSchedule = "fixed",
    dpo_shift_min: DpoShiftMin = 0.75,
    dpo_shift_max: DpoShiftMax = 0.95,
) -> torch.Tensor:
    """DPO-Shift: DPO that down-weights the rejected side, which trades some margin for a likelier chosen side.

        -log sigmoid(beta * (logratio_chosen - lambda * logratio_rejected))

    The authors sweep lambda from 0.55 to 0.95. With a schedule, lambda goes from min to max over the training steps
    (`increase_linear`) or from max to min (`decrease_linear`).

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2502.07599.

    Note:
        Outside a trainer, training is at its start. For a lambda per pair see `mappo`.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("dpo_shift")(pairs, beta=0.1, dpo_shift_lambda=0.75)
        tensor([0.6095])
    """
    weight = dpo_shift_lambda
    if dpo_shift_schedule != "fixed":
        risen = p.progress if dpo_shift_schedule == "increase_linear" else 1 - p.progress
        weight = dpo_shift_min + (dpo_shift_max - dpo_shift_min) * risen
    return -F.logsigmoid(beta * (p.chosen.logratio - weight * p.rejected.logratio))


def _only_ties(lowest: float, highest: float, _: Mapping[str, Any]) -> Doubt | None:
    if highest > 0:
        return None
    remedy = "Give the reward gaps, divided by the largest."
    return "delta_r is 0 in every row, so mappo ignores the rejected answers", remedy


DELTA_R_COLUMN = {
    "delta_r": Column(
        "Reward gap between both sides, normalized to [0, 1]; 0 is a tie.", ge=0, le=1, doubts=(_only_ties,)
    )
}


@register_loss(paper="2507.21183", needs=Need.REFERENCE, columns=DELTA_R_COLUMN, verification="paper")
def mappo(p: Pairs, *, beta: Beta) -> torch.Tensor:
    """MaPPO: DPO that weights the rejected side by the reward gap, so near ties hardly lower it.

        -log sigmoid(beta * (logratio_chosen - delta_r * logratio_rejected))

    For pairs with reward-model scores, of which many are good on both sides.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2507.21183, equation 8.

    Note:
        Checked by reading the paper, not against running code. At delta_r = 0 the rejected side drops out; a constant
        column is `dpo_shift`.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0],
        ...                          columns={"delta_r": [0.04]})
        >>> get_loss("mappo")(pairs, beta=0.1)
        tensor([0.6425])
    """
    weight = p.columns["delta_r"].to(p.chosen.logps.dtype)
    return -F.logsigmoid(beta * (p.chosen.logratio - weight * p.rejected.logratio))


@register_loss(paper="2408.09834", needs=Need.REFERENCE, verification="third_party")
def minor_dpo(p: Pairs, *, beta: Beta) -> torch.Tensor:
    """MinorDPO: lowers the rejected side only while it is likelier than under the reference.

        -log sigmoid(beta * (logratio_chosen - max(0, logratio_rejected)))

    For long runs and high learning rates, where DPO drives the rejected side towards probability 0.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2408.09834.

    Note:
        Checked against third-party code and text only. At the reference itself, where training starts, the rejected
        side is pushed with its full gradient, as that code does.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("minor_dpo")(pairs, beta=0.1)
        tensor([0.6444])
    """
    # clamp_min and not relu: relu passes nothing at exactly 0, and then nothing would ever move the rejected side off
    # it.
    return -F.logsigmoid(beta * (p.chosen.logratio - clamp_min(p.rejected.logratio, 0)))


BdpoLambda = Annotated[
    float, Hyper("Weight of the policy in the mixture that scores the rejected side; 1 is DPO.", gt=0, le=1)
]


@register_loss(paper="2506.12725", needs=Need.REFERENCE, verification="third_party")
def bdpo(p: Pairs, *, beta: Beta, bdpo_lambda: BdpoLambda = 0.5) -> torch.Tensor:
    """Bounded DPO: scores the rejected side under a mixture of policy and reference, which bounds its reward.

        -log sigmoid(beta * (logratio_chosen - log(lambda * exp(logratio_rejected) + 1 - lambda)))

    The rejected term is never below log(1 - lambda): from there on only a likelier chosen side helps.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2506.12725.

    Note:
        Checked against the authors' summary and third-party code only.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("bdpo")(pairs, beta=0.1, bdpo_lambda=0.5)
        tensor([0.6265])
    """
    of_policy = p.rejected.logratio + math.log(bdpo_lambda)
    of_reference = torch.log(torch.full_like(of_policy, 1 - bdpo_lambda))
    return -F.logsigmoid(beta * (p.chosen.logratio - torch.logaddexp(of_policy, of_reference)))


BpoAlpha = Annotated[float, Hyper("Weight of the rejected side relative to the chosen one.", gt=0)]
BpoLink = Annotated[Literal["hinge", "logistic"], Hyper("Link function applied to the margin.")]


@register_loss(paper="2506.03557", needs=Need.REFERENCE, verification="authors")
def bpo(p: Pairs, *, beta: Beta, bpo_alpha: BpoAlpha = 0.3, bpo_link: BpoLink = "hinge") -> torch.Tensor:
    """Balanced PO: trains whichever side lags behind, so the margin cannot grow at the chosen side's expense.

        x = beta * min(logratio_chosen, -alpha * logratio_rejected)
        max(0, 1 - x)  or, with the logistic link,  -log sigmoid(x)

    For reasoning, where DPO lowers the chosen side. Only one side of a pair has a gradient at a time.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2506.03557.

    Note:
        At the reference itself, where training starts, both sides tie and share the gradient. The authors' code has
        four more links, which are not offered.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("bpo")(pairs, beta=0.1, bpo_alpha=0.3)
        tensor([0.9700])
    """
    x = beta * minimum(p.chosen.logratio, -bpo_alpha * p.rejected.logratio)
    return relu(1 - x) if bpo_link == "hinge" else -F.logsigmoid(x)


HdpoAlpha = Annotated[float, Hyper("Weight of the policy's log-probs; below 1 sharpens the policy, 1 is DPO.", gt=0)]


@register_loss(paper="2411.07595", needs=Need.REFERENCE, verification="third_party", shift_invariant=True)
def hdpo(p: Pairs, *, beta: Beta, hdpo_alpha: HdpoAlpha = 0.95) -> torch.Tensor:
    """H-DPO: DPO with control over the policy's entropy, so that it can become sharper than the reference.

        -log sigmoid(beta * (alpha * (logps_chosen - logps_rejected) - (ref_logps_chosen - ref_logps_rejected)))

    For tasks with one right answer. The margin is not 0 at the start unless alpha is 1.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2411.07595.

    Note:
        Checked against third-party code only; the default alpha is from memory.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("hdpo")(pairs, beta=0.1, hdpo_alpha=0.95)
        tensor([0.6049])
    """
    policy = p.chosen.logps - p.rejected.logps
    reference = p.chosen.ref_logps - p.rejected.ref_logps
    return -F.logsigmoid(beta * (hdpo_alpha * policy - reference))


AncDpoDelta = Annotated[float, Hyper("Target reward of the anchor on the chosen side.")]


@register_loss(paper="2406.11839", needs=Need.REFERENCE, verification="authors")
def anc_dpo(p: Pairs, *, beta: Beta, anc_dpo_delta: AncDpoDelta = 0.0) -> torch.Tensor:
    """Anchored DPO: DPO plus a classifier that keeps the chosen side likelier than under the reference.

        -log sigmoid(beta * (logratio_chosen - logratio_rejected)) - log sigmoid(beta * logratio_chosen - delta)

    The anchor of mDPO, without its term for images. For pairs whose chosen side should not become less likely.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2406.11839.

    Note:
        Equal to the authors' code with its term for images held constant.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("anc_dpo")(pairs, beta=0.1, anc_dpo_delta=0.0)
        tensor([1.2425])
    """
    chosen, rejected = p.chosen.logratio, p.rejected.logratio
    return -F.logsigmoid(beta * (chosen - rejected)) - F.logsigmoid(beta * chosen - anc_dpo_delta)
