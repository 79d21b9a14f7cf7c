"""Other links than the logistic one: the same margin, another curve."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F

from ..hyper import Beta, Hyper
from ..pairs import Need, Pairs
from ..registry import register_loss

# exp() of more than this is inf in float32, and inf times the vanishing weight in front of it is NaN.
_MAX_EXPONENT = 80.0


@register_loss(
    paper="2309.06657", needs=Need.REFERENCE, f_divergence=True, aliases=("rso",), evidence="framework", from_trl=True
)
def hinge(p: Pairs, *, beta: Beta) -> torch.Tensor:
    """RSO's hinge: pushes a pair until its margin reaches 1 / beta, then leaves it alone.

        max(0, 1 - beta * margin)

    Returns:
        One value per pair, shape (pairs,).

    Reference: arXiv 2309.06657 (hinge-norm).

    Note:
        TRL's documentation calls this SLiC; SLiC-HF has no reference and a likelihood term, and is `slic_hf` here.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("hinge")(pairs, beta=0.1)
        tensor([0.8000])
    """
    return torch.relu(1 - beta * p.margin)


DiscopopTau = Annotated[float, Hyper("Temperature of the switch between the logistic and the exponential part.", gt=0)]


@register_loss(paper="2406.08414", needs=Need.REFERENCE, f_divergence=True, evidence="authors", from_trl=True)
def discopop(p: Pairs, *, beta: Beta, discopop_tau: DiscopopTau) -> torch.Tensor:
    """DiscoPOP's log-ratio-modulated loss: logistic for wrong pairs, exponential for right ones.

        (1 - m) * -log sigmoid(x) + m * exp(-x),  x = beta * margin,  m = sigmoid(x / tau)

    Found by a search over programs. The paper trains with beta 0.05 and tau 0.05.

    Returns:
        One value per pair, shape (pairs,).

    Reference: arXiv 2406.08414, equation 5.

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
    logistic, exponential = -F.logsigmoid(x), torch.exp((-x).clamp(max=_MAX_EXPONENT))
    return logistic * (1 - exponential_part) + exponential * exponential_part
