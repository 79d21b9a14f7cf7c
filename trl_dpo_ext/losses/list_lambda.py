"""LiPO: pairs of a list, weighted by what exchanging them would change in the discounted gain of the ranking.

Tests in tests/unit/losses: test_list_golden.py, test_list_gradients.py and test_list_properties.py for every variant of
lists, test_list_limits.py for this family.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F

from ..core.columns import Column
from ..core.hyperparameters import Beta, Hyper
from ..core.lists import Lists
from ..core.numerics import absolute
from ..core.pairs import Need
from ..core.registry import register_loss
from ..core.segments import segment_place

LipoScale = Annotated[
    float | None,
    Hyper("Highest score: scores are divided by it, to be labels from 0 to 1.", gt=0, required=True),
]


def _label_bounds(*, lipo_scale: float, **_: object) -> Column:
    return Column("Score of the answer, from 0 to lipo_scale.", ge=0, le=lipo_scale)


@register_loss(
    paper="2402.01878",
    reads="lists",
    order="scores",
    needs=Need.REFERENCE,
    f_divergence=True,
    score_bounds=_label_bounds,
    verification="framework",
)
def lipo(p: Lists, *, beta: Beta, lipo_scale: LipoScale = None) -> torch.Tensor:
    """LiPO-lambda: DPO on all pairs of a list, weighted by their effect on the discounted gain of the ranking.

        sum over pairs of  w * -log sigmoid(r_better - r_worse),  r = beta * score of the policy

        w = |2^label_better - 2^label_worse| * |1 / log(1 + place_better) - 1 / log(1 + place_worse)|

    `label` is the answer's score / lipo_scale, from 0 to 1; `place` counts from 1, by the policy's own r. Weights and
    places carry no gradient. Mistakes at the top of the list count most.

    Returns:
        One value per prompt, 0 where all answers are tied, shape (prompts,).

    References:
        arXiv 2402.01878; LambdaRank, as Rax implements it.

    Note:
        Equal to Rax's `pairwise_logistic_loss` with its `dcg_lambdaweight`, executed, values and gradients; Rax also
        multiplies by the number of answers, and its logarithm is of base 2 by default. The natural one here is that of
        a transcription of the paper, whose authors published no code. Equal r, as in the first step, take their places
        by label, then by position: with equal places all weights would be 0, and training would never start. The beta
        of the paper was not seen. `lipo_normalized` makes lists comparable.

    Example:
        >>> from trl_dpo_ext import Lists, get_loss
        >>> lists = Lists.from_logps(logps=[-12.0, -15.0, -9.0], ref_logps=[-13.0, -14.0, -9.0],
        ...                          prompt=[0, 0, 0], scores=[8.0, 6.0, 2.0])
        >>> get_loss("lipo")(lists, beta=0.1, lipo_scale=10.0)
        tensor([0.3521])
    """
    labels = _labels(p, lipo_scale)
    return _weighted_pairs(p, beta * p.answers.score, 2**labels, labels)


@register_loss(
    paper="2402.01878",
    reads="lists",
    order="scores",
    needs=Need.REFERENCE,
    prefix="lipo",
    f_divergence=True,
    score_bounds=_label_bounds,
    verification="framework",
)
def lipo_normalized(p: Lists, *, beta: Beta, lipo_scale: LipoScale = None) -> torch.Tensor:
    """LiPO-lambda, normalized: `lipo` divided by the discounted gain of the ideal ranking, as LambdaRank does.

        lipo / sum over answers of (2^label - 1) / log(1 + place),  placed by label

    Lists of any length and level weigh about the same, and the base of the logarithm cancels.

    Returns:
        One value per prompt, 0 where all answers are tied, shape (prompts,).

    References:
        arXiv 2402.01878; LambdaLoss, as allRank implements LambdaRank's weights.

    Note:
        Equal to allRank's `lambdaLoss`, executed, to the precision of its float32 discounts.

    Example:
        >>> from trl_dpo_ext import Lists, get_loss
        >>> lists = Lists.from_logps(logps=[-12.0, -15.0, -9.0], ref_logps=[-13.0, -14.0, -9.0],
        ...                          prompt=[0, 0, 0], scores=[8.0, 6.0, 2.0])
        >>> get_loss("lipo_normalized")(lists, beta=0.1, lipo_scale=10.0)
        tensor([0.2139])
    """
    labels = _labels(p, lipo_scale)
    ideal = p.sum((2**labels - 1) * _inverse_discounts(p, labels, labels))
    # Only a list of labels that are all 0 has the ideal 0, and no pairs.
    gains = 2**labels / torch.where(ideal > 0, ideal, 1.0)[p.prompt]
    return _weighted_pairs(p, beta * p.answers.score, gains, labels)


def _labels(p: Lists, scale: float | None) -> torch.Tensor:
    assert scale is not None  # required, so checked before
    return p.scores.to(p.answers.logps.dtype) / scale


def _weighted_pairs(p: Lists, rewards: torch.Tensor, gains: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    inverse = _inverse_discounts(p, rewards.detach(), labels)
    weights = _differences(gains) * absolute(_differences(inverse))
    values = weights * -F.logsigmoid(_differences(rewards))
    return p.sum(values.masked_fill(~p.better, 0).sum(dim=1))


def _differences(values: torch.Tensor) -> torch.Tensor:
    """An answer's value (row) minus another one's (column), (answers, answers)."""
    return values.unsqueeze(1) - values


@torch.no_grad()
def _inverse_discounts(p: Lists, values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """1 / log(1 + place) of every answer by value, higher first; equal ones by label, then by position, (answers,)."""
    order = labels.argsort(descending=True, stable=True)
    order = order[values[order].argsort(descending=True, stable=True)]
    order = order[p.prompt[order].argsort(stable=True)]
    inverse = 1 / torch.log(2.0 + segment_place(p.prompt[order]).to(values.dtype))
    return torch.empty_like(values).index_copy(0, order, inverse)
