"""Losses with soft labels: a preference probability, or one computed from two scores.

Tests in tests/unit/losses: test_golden.py, test_gradients.py and test_properties.py for every variant,
test_identities.py for this family.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F

from ..core.columns import P_CHOSEN_COLUMN, SCORE_COLUMNS
from ..core.hyperparameters import Beta, Hyper
from ..core.pairs import Need, Pairs
from ..core.registry import register_loss

SoftDpoEta = Annotated[float, Hyper("Scale from the score gap to the log-odds that the label is correct.", gt=0)]
RpoEta = Annotated[float, Hyper("Scale of the score gap, in nats per point.", gt=0)]


def score_gap(p: Pairs) -> torch.Tensor:
    """Score of the chosen side minus score of the rejected side, in the dtype of the log-probs, shape (pairs,)."""
    return (p.columns["score_chosen"] - p.columns["score_rejected"]).to(p.chosen.logps.dtype)


@register_loss(
    paper="2410.03145",
    needs=Need.REFERENCE,
    columns=SCORE_COLUMNS,
    f_divergence=True,
    aliases=("mmpo",),
    verification="authors",
)
def soft_dpo(p: Pairs, *, beta: Beta, soft_dpo_eta: SoftDpoEta = 1.0) -> torch.Tensor:
    """Soft-label DPO: uses the preference probability implied by two scores as the label.

        q * -log sigmoid(beta * margin) + (1 - q) * -log sigmoid(-beta * margin),  q = sigmoid(eta * score gap)

    For pairs ranked by a reward model or a judge: near ties are not pushed apart, and the optimum is the margin
    eta * score gap / beta. Fit eta to the scale of your scores; MMPO trains with 0.3 to 2.2.

    Returns:
        One value per pair, shape (pairs,).

    References:
        MMPO, arXiv 2410.03145; InfoNCA with two responses, arXiv 2402.05369.

    Note:
        The same gradients as `rpo_bwd`, which subtracts the labels' entropy and so ends at zero. `infonca` is its form
        for lists of answers, with the temperature 1 / eta.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0],
        ...                          columns={"score_chosen": [8.0], "score_rejected": [6.0]})
        >>> get_loss("soft_dpo")(pairs, beta=0.1, soft_dpo_eta=1.0)
        tensor([0.6220])
    """
    return _cross_entropy(torch.sigmoid(soft_dpo_eta * score_gap(p)), beta * p.margin)


@register_loss(
    paper="2410.03145", needs=Need.REFERENCE, columns=P_CHOSEN_COLUMN, f_divergence=True, verification="authors"
)
def soft_dpo_p(p: Pairs, *, beta: Beta) -> torch.Tensor:
    """Soft-label DPO with given labels: reads the preference probability from a dataset column.

        q * -log sigmoid(beta * margin) + (1 - q) * -log sigmoid(-beta * margin),  q = p_chosen

    For pairs that several annotators have voted on. With q below 1/2 the rejected side is preferred.

    Returns:
        One value per pair, shape (pairs,).

    References:
        MMPO, arXiv 2410.03145, which computes q from scores; that form is `soft_dpo`.

    Note:
        With the constant column 1 - e this is `cdpo`.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0],
        ...                          columns={"p_chosen": [0.9]})
        >>> get_loss("soft_dpo_p")(pairs, beta=0.1)
        tensor([0.6181])
    """
    return _cross_entropy(p.columns["p_chosen"].to(p.chosen.logps.dtype), beta * p.margin)


@register_loss(
    paper="2406.11704",
    needs=Need.REFERENCE,
    columns=SCORE_COLUMNS,
    f_divergence=True,
    prefix="rpo",
    verification="framework",
)
def rpo_bwd(p: Pairs, *, beta: Beta, rpo_eta: RpoEta = 1.0) -> torch.Tensor:
    """Reward-aware preference optimization, backward KL: the policy's preference covers that of the scores.

        KL(q || sigmoid(beta * margin)),  q = sigmoid(eta * score gap)

    Nemotron-4's recipe, for pairs with reward-model scores. Compare `rpo_fwd` and `rpo_sq`, other distances to the
    same target.

    Returns:
        One value per pair, 0 at the target margin eta * score gap / beta, shape (pairs,).

    References:
        Nemotron-4, arXiv 2406.11704; arXiv 2502.00203.

    Note:
        Backward and forward are NeMo-Aligner's words: backward has the scores' distribution first.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0],
        ...                          columns={"score_chosen": [8.0], "score_rejected": [6.0]})
        >>> get_loss("rpo_bwd")(pairs, beta=0.1, rpo_eta=1.0)
        tensor([0.2566])
    """
    return _bernoulli_kl(rpo_eta * score_gap(p), beta * p.margin)


@register_loss(
    paper="2406.11704",
    needs=Need.REFERENCE,
    columns=SCORE_COLUMNS,
    f_divergence=True,
    prefix="rpo",
    verification="framework",
)
def rpo_fwd(p: Pairs, *, beta: Beta, rpo_eta: RpoEta = 1.0) -> torch.Tensor:
    """Reward-aware preference optimization, forward KL: the policy's preference seeks the mode of that of the scores.

        KL(sigmoid(beta * margin) || q),  q = sigmoid(eta * score gap)

    Grows without bound where the scores are sure and the policy is not; `rpo_bwd` does so where the policy is sure and
    the scores are not.

    Returns:
        One value per pair, 0 at the target margin eta * score gap / beta, shape (pairs,).

    References:
        Nemotron-4, arXiv 2406.11704; arXiv 2502.00203.

    Note:
        Backward and forward are NeMo-Aligner's words: forward has the policy's distribution first. With a constant
        target 1 - e this is `exo_pair`.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0],
        ...                          columns={"score_chosen": [8.0], "score_rejected": [6.0]})
        >>> get_loss("rpo_fwd")(pairs, beta=0.1, rpo_eta=1.0)
        tensor([0.3391])
    """
    return _bernoulli_kl(beta * p.margin, rpo_eta * score_gap(p))


def _cross_entropy(probability: torch.Tensor, logit: torch.Tensor) -> torch.Tensor:
    return -probability * F.logsigmoid(logit) - (1 - probability) * F.logsigmoid(-logit)


def _bernoulli_kl(logit: torch.Tensor, other_logit: torch.Tensor) -> torch.Tensor:
    """KL(sigmoid(logit) || sigmoid(other_logit)), from log-sigmoids so that sure labels do not give log(0)."""
    first = torch.sigmoid(logit) * (F.logsigmoid(logit) - F.logsigmoid(other_logit))
    second = torch.sigmoid(-logit) * (F.logsigmoid(-logit) - F.logsigmoid(-other_logit))
    return first + second
