"""Squared losses, which regress the margin or each side's log-ratio to a finite target.

Tests in tests/unit/losses: test_golden.py, test_gradients.py and test_properties.py for every variant,
test_identities.py and test_special_cases.py for this family.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F

from ..core.columns import P_CHOSEN_COLUMN, SCORE_COLUMNS, Column
from ..core.hyperparameters import Beta, Hyper
from ..core.numerics import absolute, squared
from ..core.pairs import Need, Pairs
from ..core.registry import register_loss
from .soft_labels import RpoEta, score_gap


@register_loss(
    paper="2310.12036", needs=Need.REFERENCE | Need.LENGTHS, f_divergence=True, verification="framework", from_trl=True
)
def ipo(p: Pairs, *, beta: Beta) -> torch.Tensor:
    """IPO, length-averaged: regresses the per-token margin to a finite target, which limits overfitting.

        (score_chosen / length_chosen - score_rejected / length_rejected - 1 / (2 beta))^2

    `beta` is the paper's tau. The target is per token: beta 0.1 asks for 5 nats per token, so think of 0.5 and above.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2310.12036, equation 17.

    Note:
        The paper sums log-probs (that is `ipo_sum`); its authors confirmed that their results used the averaged form.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0],
        ...                          chosen_lengths=[6], rejected_lengths=[8])
        >>> get_loss("ipo")(pairs, beta=0.1)
        tensor([22.1684])
    """
    return squared(p.chosen.avg_score - p.rejected.avg_score - 1 / (2 * beta))


@register_loss(paper="2310.12036", needs=Need.REFERENCE, f_divergence=True, verification="authors")
def ipo_sum(p: Pairs, *, beta: Beta) -> torch.Tensor:
    """IPO on summed log-probs: regresses the margin to a finite target.

        (margin - 1 / (2 beta))^2

    IPO as its paper writes it and as most frameworks outside Hugging Face train it; compare `ipo`, which divides by the
    lengths. The target is for the whole answer: beta 0.1 asks for 5 nats.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2310.12036.

    Note:
        The value and the gradient grow with 1 / beta; keep gradient clipping on when beta is small.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("ipo_sum")(pairs, beta=0.1)
        tensor([9.])
    """
    return squared(p.margin - 1 / (2 * beta))


@register_loss(
    paper="2406.11704",
    needs=Need.REFERENCE,
    columns=SCORE_COLUMNS,
    f_divergence=True,
    prefix="rpo",
    aliases=("rebel",),
    verification="framework",
)
def rpo_sq(p: Pairs, *, beta: Beta, rpo_eta: RpoEta = 1.0) -> torch.Tensor:
    """Reward-aware preference optimization, squared: regresses the policy's margin to the gap of two scores.

        (beta * margin - eta * score gap)^2

    For scores that mean something on an absolute scale: eta * score gap is a target in nats. For scores that only rank,
    `rpo_bwd` and `soft_dpo` saturate instead.

    Returns:
        One value per pair, shape (pairs,).

    References:
        Nemotron-4, arXiv 2406.11704; arXiv 2502.00203. REBEL and reward distillation regress the same quantity.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0],
        ...                          columns={"score_chosen": [8.0], "score_rejected": [6.0]})
        >>> get_loss("rpo_sq")(pairs, beta=0.1, rpo_eta=1.0)
        tensor([3.2400])
    """
    return squared(beta * p.margin - rpo_eta * score_gap(p))


@register_loss(paper="2405.00675", needs=Need.REFERENCE, verification="authors", from_trl=True)
def sppo_hard(p: Pairs, *, beta: Beta) -> torch.Tensor:
    """SPPO with hard labels: regresses each side's log-ratio to its own target, up for chosen and down for rejected.

        (logratio_chosen - 1 / (2 beta))^2 + (logratio_rejected + 1 / (2 beta))^2

    For self-play rounds. The authors train with beta 1e-3; keep gradient clipping on, the first loss is then 5e5.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2405.00675, equation 4.7 with P = 1.

    Note:
        Twice the authors' value, which has a factor 1/2 in front; TRL's form is kept.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("sppo_hard")(pairs, beta=0.1)
        tensor([32.])
    """
    return (p.chosen.logratio - 0.5 / beta) ** 2 + (p.rejected.logratio + 0.5 / beta) ** 2


SppoBeta = Annotated[float, Hyper("SPPO's beta: a certain pair is regressed to the log-ratio 1 / (2 beta).", gt=0)]


@register_loss(paper="2405.00675", needs=Need.REFERENCE, columns=P_CHOSEN_COLUMN, verification="authors")
def sppo(p: Pairs, *, sppo_beta: SppoBeta = 1e-3) -> torch.Tensor:
    """SPPO with soft labels: regresses each side's log-ratio to its win probability minus 1/2, scaled.

        1/2 (logratio_chosen - t)^2 + 1/2 (logratio_rejected + t)^2,  t = (p_chosen - 1/2) / beta

    For self-play rounds in which a preference model gives each pair a win probability. Keep gradient clipping on: at
    the authors' beta of 1e-3 the first losses are in the 1e5 and each log-ratio's gradient is up to 500.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2405.00675.

    Note:
        One column serves both sides: the rejected side wins with 1 - p_chosen, while the authors read a column of
        win probabilities per side. With p_chosen = 1 this is half of `sppo_hard`.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0],
        ...                          columns={"p_chosen": [0.9]})
        >>> get_loss("sppo")(pairs, sppo_beta=0.1)
        tensor([9.0000])
    """
    target = (p.columns["p_chosen"].to(p.chosen.logps.dtype) - 0.5) / sppo_beta
    return 0.5 * ((p.chosen.logratio - target) ** 2 + (p.rejected.logratio + target) ** 2)


CalDpoBeta = Annotated[float, Hyper("Cal-DPO's beta: each side is calibrated to the log-ratio 1 / (2 beta).", gt=0)]


@register_loss(paper="2412.14516", needs=Need.REFERENCE, verification="authors")
def cal_dpo(p: Pairs, *, cal_dpo_beta: CalDpoBeta = 0.002) -> torch.Tensor:
    """Cal-DPO: DPO plus a calibration term that pulls each side's log-ratio to a fixed target.

        -log sigmoid(D) + 1/2 (logratio_chosen - t)^2 + 1/2 (logratio_rejected + t)^2,  t = 1 / (2 beta)

    D is the difference of the log-ratios, without beta. For keeping the chosen likelihood from falling along with the
    rejected one. The target at the authors' beta of 0.002 is 250 nats: keep gradient clipping on.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2412.14516.

    Note:
        The factor 1/2 is the authors' code's. This is `sigmoid` at beta 1 plus half of `sppo_hard` at this beta.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("cal_dpo")(pairs, cal_dpo_beta=0.1)
        tensor([16.1269])
    """
    chosen, rejected = p.chosen.logratio, p.rejected.logratio
    target = 0.5 / cal_dpo_beta
    return -F.logsigmoid(chosen - rejected) + 0.5 * ((chosen - target) ** 2 + (rejected + target) ** 2)


QUANTILE_COLUMNS = {
    f"quantile_{side}": Column(
        f"Share of the reference model's completions to the prompt with a reward up to that of the {side} side; with "
        "qrpo_transform=log at least 1 / n, of n completions.",
        ge=0,
        le=1,
        gt_zero_with=("qrpo_transform", "log"),
    )
    for side in ("chosen", "rejected")
}
QrpoBeta = Annotated[float, Hyper("QRPO's beta; far smaller than DPO's.", gt=0)]
QrpoTransform = Annotated[Literal["identity", "log"], Hyper("Transform from the quantile to the reward.")]
QrpoError = Annotated[Literal["mse", "mae"], Hyper("Squared or absolute error.")]


@register_loss(paper="2507.08068", needs=Need.REFERENCE, columns=QUANTILE_COLUMNS, verification="authors")
def qrpo(
    p: Pairs, *, qrpo_beta: QrpoBeta = 0.003, qrpo_transform: QrpoTransform = "identity", qrpo_error: QrpoError = "mse"
) -> torch.Tensor:
    """QRPO: regresses each side's log-ratio to the optimum of KL-regularized reinforcement learning, in closed form.

        1/2 (R_chosen - beta log Z - beta logratio_chosen)^2 + 1/2 (R_rejected - beta log Z - beta logratio_rejected)^2

        identity:  R = quantile,      Z = beta (exp(1 / beta) - 1)
        log:       R = log quantile,  Z = beta / (1 + beta)

    The quantile of a completion is the share of rewards of the reference model's own completions that are at most its
    reward: `reward_quantile` computes it. For rewards on an absolute scale: both sides may be good, or bad. The authors
    train with beta 3e-4 to 3e-3, learning rates of 1e-7 to 1e-6, and without gradient clipping.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2507.08068.

    Note:
        The exact Z of the paper: the authors' code leaves out the -1, which changes nothing below beta 0.03. Gradients
        are of the order of beta, so a sum with other losses needs weights.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0],
        ...                          columns={"quantile_chosen": [1.0], "quantile_rejected": [0.2]})
        >>> get_loss("qrpo")(pairs, qrpo_beta=0.1)
        tensor([0.1188])
    """
    total = torch.zeros_like(p.chosen.logps)
    for side, name in ((p.chosen, "quantile_chosen"), (p.rejected, "quantile_rejected")):
        total = total + qrpo_error_of(side.logratio, p.columns[name], qrpo_beta, qrpo_transform, qrpo_error)
    return total / 2


def qrpo_error_of(
    logratio: torch.Tensor, quantile: torch.Tensor, beta: float, transform: str, error: str
) -> torch.Tensor:
    """QRPO's error of every answer, in the shape of `logratio`."""
    if transform == "log":
        log_z = -math.log1p(1 / beta)
    else:  # exp(1 / beta) overflows
        log_z = math.log(beta) + 1 / beta + math.log1p(-math.exp(-1 / beta))
    reward = quantile.to(logratio.dtype)
    reward = torch.log(reward) if transform == "log" else reward
    gap = reward - beta * log_z - beta * logratio
    return absolute(gap) if error == "mae" else squared(gap)


def reward_quantile(reward: torch.Tensor, ref_rewards: torch.Tensor) -> torch.Tensor:
    """Compute the share of the reference model's rewards that a reward reaches, for `qrpo`.

    Args:
        reward: of a completion, shape (pairs,).
        ref_rewards: of completions that the reference model wrote to the same prompt, shape (pairs, completions).

    Returns:
        Shares in [0, 1], shape (pairs,).

    References:
        arXiv 2507.08068.

    Example:
        >>> reward_quantile(torch.tensor([0.5]), torch.tensor([[0.1, 0.5, 0.7, 0.9]]))
        tensor([0.5000])
    """
    reached = ref_rewards <= reward.unsqueeze(-1)
    return reached.to(ref_rewards.dtype if ref_rewards.is_floating_point() else torch.float32).mean(dim=-1)
