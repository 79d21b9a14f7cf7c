"""DPO with an offset: the margin must exceed a target that the pair's scores or lengths determine.

Tests in tests/unit/losses: test_golden.py, test_gradients.py and test_properties.py for every variant,
test_identities.py and test_special_cases.py for this family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F

from ..core.columns import SCORE_COLUMNS, Column, Doubt
from ..core.hyperparameters import Beta, Hyper
from ..core.numerics import clamp_min
from ..core.pairs import Need, Pairs
from ..core.registry import register_loss
from .soft_labels import score_gap

# The logarithm of a gap of zero is -inf, of a negative one NaN; at log(1e-6), about -14, a pair hardly counts any more.
_MIN_GAP = 1e-6


def _no_margin(lowest: float, highest: float, _: Mapping[str, Any]) -> Doubt | None:
    if lowest == highest == 0:
        return "margin is 0 in every row, so the loss margin is DPO", "Use loss_type sigmoid, or fill the column."
    if highest < 0:
        remedy = "If the column holds the gap of the rejected side, change its sign."
        return f"margin is at most {highest:g}, so the loss margin asks for less than DPO in every row", remedy
    return None


MARGIN_COLUMN = {"margin": Column("How much better the chosen side is, such as a score gap.", doubts=(_no_margin,))}
MarginScale = Annotated[float, Hyper("Scale of the margin column, in nats per unit.")]


@register_loss(paper=None, needs=Need.REFERENCE, columns=MARGIN_COLUMN, f_divergence=True, verification="framework")
def margin(p: Pairs, *, beta: Beta, margin_scale: MarginScale = 1.0) -> torch.Tensor:
    """DPO with a target margin from a dataset column: the better the chosen side, the larger the margin.

        -log sigmoid(beta * margin - scale * margin column)

    For pairs with graded preferences ("slightly better", "much better"). The column has the name and the meaning that
    it has in TRL's reward trainer.

    Returns:
        One value per pair, shape (pairs,).

    Note:
        The margin of Llama 2's reward model, as TRL's `RewardTrainer` computes it, on implicit rewards: a recipe
        without a paper of its own. Equal to `odpo` with transform identity and the margin as the score gap.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0],
        ...                          columns={"margin": [2.0]})
        >>> get_loss("margin")(pairs, beta=0.1, margin_scale=0.5)
        tensor([1.1711])
    """
    offset = margin_scale * p.columns["margin"].to(p.chosen.logps.dtype)
    return -F.logsigmoid(beta * p.margin - offset)


OdpoAlpha = Annotated[float, Hyper("Weight of the offset.", ge=0)]
OdpoTransform = Annotated[Literal["log", "identity"], Hyper("Transform from the score gap to the offset.")]


@register_loss(
    paper="2402.10571", needs=Need.REFERENCE, columns=SCORE_COLUMNS, f_divergence=True, verification="authors"
)
def odpo(p: Pairs, *, beta: Beta, odpo_alpha: OdpoAlpha = 1.0, odpo_transform: OdpoTransform = "log") -> torch.Tensor:
    """ODPO: DPO with an offset, so that the margin must exceed a function of the score gap.

        -log sigmoid(beta * margin - alpha * f(score gap)),  f = log or identity

    For pairs with reward-model scores in which some are much clearer than others. The paper sweeps alpha from 0 to 1.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2402.10571.

    Note:
        With `log`, a gap below 1e-6 counts as 1e-6, where the authors' code gives -inf or NaN; such pairs are hardly
        pushed at all. Drop pairs whose rejected side scores higher.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0],
        ...                          columns={"score_chosen": [8.0], "score_rejected": [6.0]})
        >>> get_loss("odpo")(pairs, beta=0.1, odpo_alpha=1.0, odpo_transform="log")
        tensor([0.9698])
    """
    gap = score_gap(p)
    offset = torch.log(clamp_min(gap, _MIN_GAP)) if odpo_transform == "log" else gap
    return -F.logsigmoid(beta * p.margin - odpo_alpha * offset)


RdpoAlpha = Annotated[float, Hyper("Length penalty, in nats of reward per extra token.", ge=0)]


@register_loss(paper="2403.19159", needs=Need.REFERENCE | Need.LENGTHS, f_divergence=True, verification="framework")
def rdpo(p: Pairs, *, beta: Beta, rdpo_alpha: RdpoAlpha = 0.01) -> torch.Tensor:
    """R-DPO: DPO with a length penalty, so that a longer chosen answer is trained less and a shorter one more.

        -log sigmoid(beta * margin + alpha * (length_chosen - length_rejected))

    For data in which longer answers are preferred and the policy learns to be long. Searches go from 0.01 to 1.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2403.19159, equation 9.

    Note:
        The sign follows the paper: a longer chosen side *lowers* the loss, which leaves less to learn. Two public
        re-implementations have it the other way round.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0],
        ...                          chosen_lengths=[6], rejected_lengths=[8])
        >>> get_loss("rdpo")(pairs, beta=0.1, rdpo_alpha=0.01)
        tensor([0.6072])
    """
    extra_tokens = (p.chosen.lengths - p.rejected.lengths).to(p.chosen.logps.dtype)
    return -F.logsigmoid(beta * p.margin + rdpo_alpha * extra_tokens)
