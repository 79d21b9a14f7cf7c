"""Losses of the margin with other link functions than the logistic one, or with another score.

Tests in tests/unit/losses: test_golden.py, test_gradients.py and test_properties.py for every variant,
test_identities.py and test_ties.py for this family.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F

from ..core.hyperparameters import Beta, Hyper
from ..core.numerics import MAX_EXPONENT, clamp_max, clamp_min, relu, squared
from ..core.pairs import Need, Pairs
from ..core.registry import register_loss

# Lower than overflow asks for: one pair must not be 1e34 times as loud as another.
_MAX_GPO_EXPONENT = 30.0
_MAX_CHI_SQUARED_EXPONENT = 20.0


@register_loss(
    paper="2309.06657",
    needs=Need.REFERENCE,
    f_divergence=True,
    aliases=("rso",),
    verification="framework",
    from_trl=True,
)
def hinge(p: Pairs, *, beta: Beta) -> torch.Tensor:
    """RSO's hinge: increases a pair's margin until it reaches 1 / beta.

        max(0, 1 - beta * margin)

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2309.06657 (hinge-norm).

    Note:
        TRL's documentation calls this SLiC; SLiC-HF has no reference and a likelihood term, and is `slic_hf` here.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("hinge")(pairs, beta=0.1)
        tensor([0.8000])
    """
    return relu(1 - beta * p.margin)


DiscopopTau = Annotated[float, Hyper("Temperature of the switch between the logistic and the exponential part.", gt=0)]


@register_loss(paper="2406.08414", needs=Need.REFERENCE, f_divergence=True, verification="authors", from_trl=True)
def discopop(p: Pairs, *, beta: Beta, discopop_tau: DiscopopTau) -> torch.Tensor:
    """DiscoPOP's log-ratio-modulated loss: logistic for wrong pairs, exponential for right ones.

        (1 - m) * -log sigmoid(x) + m * exp(-x),  x = beta * margin,  m = sigmoid(x / tau)

    Found by a search over programs. The paper trains with beta 0.05 and tau 0.05.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2406.08414, equation 5.

    Note:
        exp(-x) is clamped at an exponent of 80, where TRL returns NaN; m is not detached, as in the authors' code.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("discopop")(pairs, beta=0.1, discopop_tau=0.05)
        tensor([0.8148])
    """
    x = p.margin * beta
    exponential_part = torch.sigmoid(x / discopop_tau)
    logistic, exponential = -F.logsigmoid(x), torch.exp(clamp_max(-x, MAX_EXPONENT))
    return logistic * (1 - exponential_part) + exponential * exponential_part


@register_loss(paper="2402.05749", needs=Need.REFERENCE, f_divergence=True, verification="third_party")
def gpo_exp(p: Pairs, *, beta: Beta) -> torch.Tensor:
    """GPO with the exponential link: up-weights wrong pairs exponentially.

        exp(-beta * margin)

    For clean labels only: one mislabeled pair can outweigh a batch. Usual beta: 0.1 to 1.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2402.05749.

    Note:
        Checked against third-party code that cites GPO: the link is equal. The paper's table was not seen. The exponent
        is clamped at 30: beyond it the loss is constant and the pair is left alone, where an unclamped one would
        overflow.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("gpo_exp")(pairs, beta=0.5)
        tensor([0.3679])
    """
    return torch.exp(clamp_max(-beta * p.margin, _MAX_GPO_EXPONENT))


@register_loss(paper="2402.05749", needs=Need.REFERENCE, f_divergence=True, verification="third_party")
def gpo_truncquad(p: Pairs, *, beta: Beta) -> torch.Tensor:
    """GPO with the truncated quadratic link: the squared hinge, whose gradient shrinks towards the target margin.

        max(0, 1 - beta * margin)^2

    Between `hinge`, which pushes every unfinished pair alike, and `ipo_sum`, which also pulls finished ones back.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2402.05749.

    Note:
        Checked against third-party code that cites GPO: the link is equal. The paper's table was not seen.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-20.0], rejected=[-18.0], ref_chosen=[-19.5], ref_rejected=[-19.0])
        >>> get_loss("gpo_truncquad")(pairs, beta=0.5)
        tensor([3.0625])
    """
    return squared(relu(1 - beta * p.margin))


@register_loss(paper="2402.05749", needs=Need.REFERENCE, f_divergence=True, verification="third_party")
def gpo_savage(p: Pairs, *, beta: Beta) -> torch.Tensor:
    """GPO with the Savage link: a bounded loss whose gradient vanishes for very wrong pairs.

        1 / (1 + exp(beta * margin))^2

    For noisy labels. Not convex: a pair far on the wrong side has no gradient left.

    Returns:
        One value per pair in (0, 1), shape (pairs,).

    References:
        arXiv 2402.05749.

    Note:
        Checked against third-party code that cites GPO: the link is equal. The paper's table was not seen.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("gpo_savage")(pairs, beta=0.5)
        tensor([0.0723])
    """
    return torch.sigmoid(-beta * p.margin) ** 2


@register_loss(paper="2410.04203", needs=Need.REFERENCE, f_divergence=True, verification="authors")
def cauchy(p: Pairs, *, beta: Beta) -> torch.Tensor:
    """DPO with a Cauchy link: its heavy tails down-weight outliers.

        -log(arctan(beta * margin) / pi + 1/2)

    For noisy labels: the push on a very wrong pair falls with 1 / margin, where DPO's stays at beta.

    Returns:
        One value per pair, shape (pairs,).

    References:
        RainbowPO, arXiv 2410.04203, whose code has it.

    Note:
        Computed as an angle of two arguments, which keeps its digits for very wrong pairs; the values are the same.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("cauchy")(pairs, beta=0.1)
        tensor([0.5748])
    """
    x = beta * p.margin
    return -torch.log(torch.atan2(torch.ones_like(x), -x) / math.pi)


ChipoClip = Annotated[
    float | None, Hyper("Maximum reward R; the scaled margin is clipped to +-2 R. Off by default.", gt=0)
]


@register_loss(paper="2407.13399", needs=Need.REFERENCE, verification="third_party")
def chipo(p: Pairs, *, beta: Beta, chipo_clip: ChipoClip = None) -> torch.Tensor:
    """χPO: DPO regularized by chi-squared and KL divergence, which keeps the policy close to the data.

        -log sigmoid(clip(beta * (phi(logratio_chosen) - phi(logratio_rejected)))),  phi(z) = exp(z) + z

    Against over-optimization: the score grows exponentially once the policy leaves the reference, so small steps reach
    the margin. The paper trains Pythia 2.8B with beta 0.05 and 0.005.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2407.13399.

    Note:
        Checked against third-party code and two transcriptions of the paper's algorithm; no code of the authors was
        found, nor the paper's value of R, so the clip is off by default. exp(z) is clamped at z = 20, where an
        unclamped one gives NaN gradients; the practical variant in the paper's appendix, with mixing weights, is not
        offered. A clipped pair has no gradient.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("chipo")(pairs, beta=0.1)
        tensor([0.4991])
    """
    chosen, rejected = p.chosen.logratio, p.rejected.logratio
    # The differences are taken term by term: added to exp(20), a log-ratio loses its digits.
    x = beta * (_clamped_exp(chosen) - _clamped_exp(rejected) + (chosen - rejected))
    if chipo_clip is not None:
        x = clamp_max(clamp_min(x, -2 * chipo_clip), 2 * chipo_clip)
    return -F.logsigmoid(x)


SympoLink = Annotated[Literal["sigmoid", "ramp"], Hyper("Link function applied to the difference of the rewards.")]
SympoClip = Annotated[float, Hyper("Each side's reward is clipped to +- this; 0 switches the clip off.", ge=0)]


@register_loss(paper="2505.24709", needs=Need.REFERENCE, verification="authors")
def sympo(p: Pairs, *, beta: Beta, sympo_link: SympoLink = "sigmoid", sympo_clip: SympoClip = 10.0) -> torch.Tensor:
    """SymPO: a symmetric loss of the margin, whose minimum stays where it is when labels are flipped at random.

        x = clip(beta * logratio_chosen) - clip(beta * logratio_rejected)
        sigmoid(-x)  or, with the ramp link,  min(1, max(0, 1/2 - x / 2))

    f(x) + f(-x) = 1, so a share e of flipped labels turns the expected loss into (1 - 2 e) f(x) + e. For noisy labels
    whose rate is not known. Both links saturate: a pair that is very wrong does not move either.

    Returns:
        One value per pair in [0, 1], shape (pairs,).

    References:
        arXiv 2505.24709.

    Note:
        The ramp is the authors' `symmetric_ramp`; theirs called `ramp` is not symmetric. A clipped side, and a pair
        outside of the ramp, |x| < 1, has no gradient. The authors train with beta 0.1 and a learning rate of 5e-6.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("sympo")(pairs, beta=0.1)
        tensor([0.4502])
    """
    chosen, rejected = beta * p.chosen.logratio, beta * p.rejected.logratio
    if sympo_clip:
        chosen, rejected = (clamp_max(clamp_min(side, -sympo_clip), sympo_clip) for side in (chosen, rejected))
    x = chosen - rejected
    return torch.sigmoid(-x) if sympo_link == "sigmoid" else _ramp(0.5 - 0.5 * x)


def _ramp(x: torch.Tensor) -> torch.Tensor:
    """Return x between 0 and 1, without gradient from either end on."""
    return relu(x).masked_fill(x >= 1, 1.0)


def _clamped_exp(logratio: torch.Tensor) -> torch.Tensor:
    return torch.exp(clamp_max(logratio, _MAX_CHI_SQUARED_EXPONENT))
