"""The two sides treated apart, so that lowering the rejected one does not drag the chosen likelihood along."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F

from ..hyper import Beta, Hyper
from ..pairs import Need, Pairs
from ..registry import register_loss

DpopLambda = Annotated[
    float, Hyper("Weight of the penalty on a chosen side less likely than under the reference.", ge=0)
]


@register_loss(paper="2402.13228", needs=Need.REFERENCE, aliases=("smaug",), evidence="framework")
def dpop(p: Pairs, *, beta: Beta, dpop_lambda: DpopLambda = 50.0) -> torch.Tensor:
    """DPO-Positive: DPO with a penalty whenever the chosen side becomes less likely than under the reference.

        -log sigmoid(beta * (logratio_chosen - logratio_rejected - lambda * max(0, -logratio_chosen)))

    For chosen and rejected answers that differ in few tokens (mathematics, code), where DPO lowers both.

    Returns:
        One value per pair, shape (pairs,).

    Reference: Smaug, arXiv 2402.13228, equation 3.

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
    # relu and not clamp or maximum: they pass 1 and 1/2 of the gradient at exactly 0, times lambda, at the first step.
    penalty = dpop_lambda * torch.relu(-chosen)
    return -F.logsigmoid(beta * (chosen - rejected - penalty))
