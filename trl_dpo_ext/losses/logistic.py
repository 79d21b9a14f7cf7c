"""Logistic losses of the margin: DPO, its length-normalized form, and its forms for noisy labels.

Tests in tests/unit/losses: test_golden.py, test_gradients.py and test_properties.py for every variant,
test_identities.py and test_special_cases.py for this family.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F

from ..core.hyperparameters import Beta, Hyper, LabelSmoothing
from ..core.numerics import absolute
from ..core.pairs import Need, Pairs
from ..core.registry import register_loss


@register_loss(
    paper="2305.18290", needs=Need.REFERENCE, f_divergence=True, aliases=("dpo",), verification="authors", from_trl=True
)
def sigmoid(p: Pairs, *, beta: Beta) -> torch.Tensor:
    """DPO: logistic regression on the margin of the two scores.

        -log sigmoid(beta * margin)

    The default, and the yardstick for every other variant. Usual beta: 0.01 to 0.5.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2305.18290, equation 7; with `f_divergence_type`, arXiv 2309.16240.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("sigmoid")(pairs, beta=0.1)
        tensor([0.5981])
    """
    return -F.logsigmoid(beta * p.margin)


@register_loss(
    paper="2411.15124",
    needs=Need.REFERENCE | Need.LENGTHS,
    f_divergence=True,
    aliases=("dpo_norm", "ln_dpo"),
    verification="framework",
    from_trl=True,
)
def sigmoid_norm(p: Pairs, *, beta: Beta) -> torch.Tensor:
    """Length-normalized DPO: DPO on the per-token score, which removes length bias.

        -log sigmoid(beta * (score_chosen / length_chosen - score_rejected / length_rejected))

    Beta must be 10 to 100 times DPO's: Tülu 3 trains with 5. At 0.1 the loss is nearly flat.

    Returns:
        One value per pair, shape (pairs,).

    References:
        Tülu 3, arXiv 2411.15124, section 5.1.2.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0],
        ...                          chosen_lengths=[6], rejected_lengths=[8])
        >>> get_loss("sigmoid_norm")(pairs, beta=5.0)
        tensor([0.2091])
    """
    return -F.logsigmoid(beta * (p.chosen.avg_score - p.rejected.avg_score))


@register_loss(paper="2403.00409", needs=Need.REFERENCE, f_divergence=True, verification="framework", from_trl=True)
def robust(p: Pairs, *, beta: Beta, label_smoothing: LabelSmoothing) -> torch.Tensor:
    """Robust DPO: an unbiased estimate of DPO's loss when labels are flipped with a known probability e.

        [(1 - e) * -log sigmoid(beta * margin) - e * -log sigmoid(-beta * margin)] / (1 - 2 e)

    For noisy labels with a noise rate you can estimate. Compare `cdpo`, which has a finite target instead.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2403.00409, equation 12.

    Note:
        Unbounded below: as the margin grows, the loss falls with slope -e * beta / (1 - 2 e). Negative values are
        normal.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("robust")(pairs, beta=0.1, label_smoothing=0.1)
        tensor([0.5731])
    """
    clean = -(1 - label_smoothing) * F.logsigmoid(beta * p.margin)
    flipped = -label_smoothing * F.logsigmoid(-beta * p.margin)
    return (clean - flipped) / (1 - 2 * label_smoothing)


@register_loss(
    paper="https://ericmitchell.ai/cdpo.pdf", needs=Need.REFERENCE, f_divergence=True, verification="authors"
)
def cdpo(p: Pairs, *, beta: Beta, label_smoothing: LabelSmoothing) -> torch.Tensor:
    """Conservative DPO: cross-entropy against labels that are right only with probability 1 - e.

        (1 - e) * -log sigmoid(beta * margin) + e * -log sigmoid(-beta * margin)

    For noisy labels: the optimum is the finite margin log((1 - e) / e) / beta, so sure pairs are not pushed forever.
    This is what `label_smoothing` did with `sigmoid` in TRL before 0.29; today TRL ignores it there.

    Returns:
        One value per pair, shape (pairs,).

    References:
        E. Mitchell, "A note on DPO with noisy preferences and relationship to IPO", 2023.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("cdpo")(pairs, beta=0.1, label_smoothing=0.1)
        tensor([0.6181])
    """
    x = beta * p.margin
    return -(1 - label_smoothing) * F.logsigmoid(x) - label_smoothing * F.logsigmoid(-x)


ExoSmoothing = Annotated[float, Hyper("Target probability of the rejected side.", gt=0, lt=0.5)]


@register_loss(paper="2402.00856", needs=Need.REFERENCE, f_divergence=True, verification="framework", from_trl=True)
def exo_pair(p: Pairs, *, beta: Beta, label_smoothing: ExoSmoothing) -> torch.Tensor:
    """EXO: reverse KL between the policy's preference and the labels, which seeks the mode where DPO covers the mass.

        KL(q || 1 - e),  q = sigmoid(beta * margin):  q log(q / (1 - e)) + (1 - q) log((1 - q) / e)

    `label_smoothing` is e and must be above 0; the paper recommends 1e-3.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2402.00856, equation 16.

    Note:
        The authors' code uses unnormalized target log-probs (0, -10) in place of e.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("exo_pair")(pairs, beta=0.1, label_smoothing=1e-3)
        tensor([2.4220])
    """
    x = beta * p.margin
    smoothing = x.new_full((), label_smoothing)  # a tensor of a number on the host would be copied
    chosen = torch.sigmoid(x) * (F.logsigmoid(x) - torch.log1p(-smoothing))
    rejected = torch.sigmoid(-x) * (F.logsigmoid(-x) - torch.log(smoothing))
    return chosen + rejected


CenteredBeta = Annotated[float, Hyper("As DPO's; 0 is the limit, a loss linear in the margin.", ge=0)]

# log(cosh(x)) is |x| - log 2 in every digit from here on, where cosh is still far from overflow.
_LINEAR = 20.0


@register_loss(
    paper="2608.27032", needs=Need.REFERENCE, f_divergence=True, aliases=("centred",), verification="framework"
)
def centered(p: Pairs, *, beta: CenteredBeta) -> torch.Tensor:
    """DPO divided by beta and shifted to 0 at the start, so that the scale of its gradient does not depend on beta.

        (-log sigmoid(beta * margin) - log 2) / beta,  and -margin / 2 for beta 0

    The same minimum and the same weights of pairs as `sigmoid`: for comparing betas at one learning rate, down to 0.
    Adam does not see the factor 1 / beta either, but for gradient clipping, its epsilon, and sums with other losses, so
    do not expect more than that of it.

    Returns:
        One value per pair, at least -log(2) / beta, shape (pairs,). Negative values are normal.

    References:
        arXiv 2608.27032.

    Note:
        Equal to the code of a repository that implements it (hard labels); that it is the paper's was not confirmed.
        Computed as -margin / 2 + log(cosh(beta * margin / 2)) / beta, which keeps its digits for small beta.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("centered")(pairs, beta=0.1)
        tensor([-0.9501])
    """
    if beta == 0:
        return -p.margin / 2
    x = beta * p.margin / 2
    linear = absolute(x) > _LINEAR
    near = torch.log1p(2 * torch.sinh(x.masked_fill(linear, 0.0) / 2) ** 2)
    return -p.margin / 2 + torch.where(linear, absolute(x) - math.log(2), near) / beta
