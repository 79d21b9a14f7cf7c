"""Losses whose beta depends on the entropy of the reference.

Tests in tests/unit/losses: test_golden.py, test_gradients.py and test_properties.py for every variant, test_entropy.py
for this family.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F

from ..core.hyperparameters import Beta, Hyper
from ..core.numerics import clamp_max, clamp_min
from ..core.pairs import Need, Pairs
from ..core.registry import register_loss

# At an entropy of 0 the dispersion would be infinite, and at 1 the pair would not count at all.
_MIN_ENTROPY = 1e-3


def _dispersion(p: Pairs, mean: float) -> torch.Tensor:
    """How much a pair counts, (pairs,), without gradient: -mean * log of the reference's entropy over both sides."""
    entropy = (0.5 * (p.chosen.ref_entropy + p.rejected.ref_entropy)).detach().to(p.chosen.logps.dtype)
    return -mean * torch.log(clamp_max(clamp_min(entropy, _MIN_ENTROPY), 1 - _MIN_ENTROPY))


MallowsMean = Annotated[
    float, Hyper("Scale of the dispersion -log(entropy); 1 / its mean on your data keeps beta on DPO's scale.", gt=0)
]


@register_loss(paper="2405.14953", needs=Need.REFERENCE | Need.REF_ENTROPY, f_divergence=True, verification="authors")
def mallows_dpo(p: Pairs, *, beta: Beta, mallows_dpo_mean: MallowsMean = 0.29) -> torch.Tensor:
    """Mallows-DPO: DPO with a larger beta where the reference is confident, and a smaller one for open-ended prompts.

        -log sigmoid(beta * dispersion * margin),  dispersion = -mean * log(entropy)

    The entropy is the reference's, averaged over the tokens of both sides and divided by log(vocabulary size). For data
    that mixes questions with one right answer and open ones.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2405.14953.

    Note:
        As in the authors' code (theirs calls it `neg_log_dispersion_mean`), mean multiplies. Entropies are kept within
        0.001 and 0.999, where theirs give infinite or no weight.

    Example:
        >>> from trl_dpo_ext import Pairs, Side, get_loss
        >>> entropy = torch.tensor([0.2])
        >>> chosen = Side(torch.tensor([-12.0]), torch.tensor([-13.0]), ref_entropy=entropy)
        >>> rejected = Side(torch.tensor([-15.0]), torch.tensor([-14.0]), ref_entropy=entropy)
        >>> get_loss("mallows_dpo")(Pairs(chosen, rejected), beta=0.1, mallows_dpo_mean=1.0)
        tensor([0.5451])
    """
    return -F.logsigmoid(beta * _dispersion(p, mallows_dpo_mean) * p.margin)


RainbowBeta = Annotated[float, Hyper("Scale of the mean log-prob per token; far larger than DPO's beta.", gt=0)]
RainbowAlpha = Annotated[float, Hyper("Weight of the reference in the margin; 0 is SimPO.", ge=0, le=1)]
RainbowHome = Annotated[float, Hyper("Target margin per token, weighted by 1 - alpha.", ge=0)]
RainbowMean = Annotated[float, Hyper("Scale of the dispersion -log(entropy) of the reference.", gt=0)]


@register_loss(
    paper="2410.04203",
    needs=Need.REFERENCE | Need.LENGTHS | Need.REF_ENTROPY,
    verification="authors",
    shift_invariant=True,
)
def rainbowpo(
    p: Pairs,
    *,
    rainbowpo_beta: RainbowBeta = 10.0,
    rainbowpo_alpha: RainbowAlpha = 0.25,
    rainbowpo_home: RainbowHome = 0.1,
    rainbowpo_mean: RainbowMean = 0.29,
) -> torch.Tensor:
    """RainbowPO: a mix of normalized DPO and SimPO, per token, with the dispersion of Mallows-DPO.

        -log sigmoid(beta * dispersion * (gap - alpha * ref_gap - (1 - alpha) * home))

        gap = logps_chosen / length_chosen - logps_rejected / length_rejected,  ref_gap the same of the reference

    With alpha = 1 it is `sigmoid_norm` times the dispersion of `mallows_dpo`, with alpha = 0 `simpo` with it.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2410.04203.

    Note:
        Defaults and form are the authors' code's, whose `home_advantage` is home. Entropies are kept within 0.001 and
        0.999. The margin is not 0 at the start.

    Example:
        >>> from trl_dpo_ext import Pairs, Side, get_loss
        >>> def side(logps, ref_logps, length):
        ...     logps, ref_logps = torch.tensor([logps]), torch.tensor([ref_logps])
        ...     return Side(logps, ref_logps, lengths=torch.tensor([length]), ref_entropy=torch.tensor([0.2]))
        >>> get_loss("rainbowpo")(Pairs(side(-12.0, -13.0, 6), side(-15.0, -14.0, 8)), rainbowpo_beta=10.0)
        tensor([0.9416])
    """
    ref_chosen, ref_rejected = (side.ref_logps / clamp_min(side.lengths, 1) for side in (p.chosen, p.rejected))
    target = rainbowpo_alpha * (ref_chosen - ref_rejected) + (1 - rainbowpo_alpha) * rainbowpo_home
    margin = p.chosen.avg_logps - p.rejected.avg_logps - target
    return -F.logsigmoid(rainbowpo_beta * _dispersion(p, rainbowpo_mean) * margin)
