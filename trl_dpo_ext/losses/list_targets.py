"""Losses with a target for each answer to a prompt, computed from the scores of the answers.

Tests in tests/unit/losses: test_list_golden.py, test_list_gradients.py and test_list_properties.py for every variant of
lists, test_list_limits.py for this family.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F

from ..core.columns import Column
from ..core.hyperparameters import Beta, Hyper
from ..core.lists import Lists
from ..core.numerics import clamp_min
from ..core.pairs import Need
from ..core.registry import register_loss
from ..core.segments import segment_log_softmax, segment_max
from .regression import QrpoBeta, QrpoError, QrpoTransform, SppoBeta, qrpo_error_of

InfoncaTau = Annotated[
    float | None,
    Hyper("Temperature of the target distribution, in units of the scores.", gt=0, required=True),
]
NcaTau = InfoncaTau


def _targets(p: Lists, tau: float | None, dtype: torch.dtype) -> torch.Tensor:
    """softmax(scores / tau) within each prompt, (answers,)."""
    assert tau is not None  # required, so checked before
    scores = p.scores.to(dtype)
    # Before the division, so that a small tau neither overflows nor rounds.
    below = scores - segment_max(scores, p.prompt, p.prompts)[p.prompt]
    return segment_log_softmax(below / tau, p.prompt, p.prompts).exp()


@register_loss(
    paper="2402.05369", reads="lists", order="scores", needs=Need.REFERENCE, f_divergence=True, verification="authors"
)
def infonca(p: Lists, *, beta: Beta, infonca_tau: InfoncaTau = None) -> torch.Tensor:
    """InfoNCA: fits the policy's softmax over the answers to that of their scores.

        -sum over answers k of  t_k * log softmax(r)_k,  t = softmax(scores / tau),  r = beta * score

    Uses how far apart the scores are: near ties are not pushed apart. `infonca_tau` is in units of the scores: a
    difference of tau is odds of e. Toward 0 the labels are hard, and this is `top1`.

    Returns:
        One value per prompt, 0 where all answers are tied, shape (prompts,).

    References:
        arXiv 2402.05369. ListNet's top-one loss.

    Note:
        The minimum is the entropy of the targets, not 0. With two answers this is `soft_dpo` with eta = 1 / tau, except
        where they are tied. The authors' configuration has a temperature of 1e-4 on scores of about ten units, which
        is hard labels, and their code adds 0.01 to the first score; neither is copied here. The paper's alpha is
        1 / tau.

    Example:
        >>> from trl_dpo_ext import Lists, get_loss
        >>> lists = Lists.from_logps(logps=[-12.0, -15.0, -9.0], ref_logps=[-13.0, -14.0, -9.0],
        ...                          prompt=[0, 0, 0], scores=[8.0, 6.0, 2.0])
        >>> get_loss("infonca")(lists, beta=0.1, infonca_tau=1.0)
        tensor([1.0259])
    """
    rewards = beta * p.answers.score
    log_policy = segment_log_softmax(rewards, p.prompt, p.prompts)
    return p.zero_if_tied(-p.sum(_targets(p, infonca_tau, rewards.dtype) * log_policy))


@register_loss(paper="2402.05369", reads="lists", order="scores", needs=Need.REFERENCE, verification="authors")
def nca(p: Lists, *, beta: Beta, nca_tau: NcaTau = None) -> torch.Tensor:
    """NCA: rewards each answer by its share of the scores, and holds all of them down.

        -sum over answers k of  [ t_k * log sigmoid(r_k) + 1/K * log sigmoid(-r_k) ]

        t = softmax(scores / tau),  r = beta * logratio

    Reads the level of each log-ratio and not only their differences, so the likelihood of the best answer does not fall
    along with the others', as it may with `infonca`.

    Returns:
        One value per prompt, 0 where all answers are tied, shape (prompts,).

    References:
        arXiv 2402.05369.

    Note:
        `nca_tau` is in units of the scores, as `infonca_tau` is. With two answers and hard labels this is `nca_pair`.
        The authors' code returns the mean of the batch.

    Example:
        >>> from trl_dpo_ext import Lists, get_loss
        >>> lists = Lists.from_logps(logps=[-12.0, -15.0, -9.0], ref_logps=[-13.0, -14.0, -9.0],
        ...                          prompt=[0, 0, 0], scores=[8.0, 6.0, 2.0])
        >>> get_loss("nca")(lists, beta=0.1, nca_tau=1.0)
        tensor([1.3504])
    """
    rewards = beta * p.answers.logratio
    up = p.sum(_targets(p, nca_tau, rewards.dtype) * F.logsigmoid(rewards))
    return p.zero_if_tied(-up - p.mean(F.logsigmoid(-rewards)))


SppoEta = Annotated[float, Hyper("Scale from a score gap to the log-odds of winning.", gt=0)]
SppoListScores = Annotated[
    Literal["scores", "win_rates"],
    Hyper("What the scores are: scores, which give win rates against the other answers, or the win rates themselves."),
]


def _win_rate_bounds(*, sppo_list_scores: str, **_: object) -> Column:
    if sppo_list_scores == "win_rates":
        return Column("Win rate of the answer.", ge=0, le=1)
    return Column("Score of the answer.")


@register_loss(
    paper="2405.00675",
    reads="lists",
    order="scores",
    needs=Need.REFERENCE,
    prefix="sppo",
    score_bounds=_win_rate_bounds,
    verification="authors",
)
def sppo_list(
    p: Lists, *, sppo_beta: SppoBeta = 1e-3, sppo_eta: SppoEta = 1.0, sppo_list_scores: SppoListScores = "scores"
) -> torch.Tensor:
    """SPPO on lists: regresses each answer's log-ratio to its win rate minus 1/2, scaled.

        mean over answers k of  (logratio_k - (w_k - 1/2) / beta)^2

        w_k = mean over the other answers j of sigmoid(eta * (score_k - score_j)), or the score itself

    For self-play rounds with several samples per prompt. Every answer is used by itself, and keep gradient clipping on:
    see `sppo`.

    Returns:
        One value per prompt, 0 where all answers are tied, shape (prompts,).

    References:
        arXiv 2405.00675.

    Note:
        An answer does not play against itself. With two answers this is `sppo` with p_chosen = sigmoid(eta * score
        gap), except where they are tied. Executed against the authors' code for two answers; more answers follow its
        definition per answer.

    Example:
        >>> from trl_dpo_ext import Lists, get_loss
        >>> lists = Lists.from_logps(logps=[-12.0, -15.0, -9.0], ref_logps=[-13.0, -14.0, -9.0],
        ...                          prompt=[0, 0, 0], scores=[0.8, 0.6, 0.1])
        >>> get_loss("sppo_list")(lists, sppo_beta=0.1, sppo_list_scores="win_rates")
        tensor([8.])
    """
    logratio = p.answers.logratio
    scores = p.scores.to(logratio.dtype)
    win_rates = scores if sppo_list_scores == "win_rates" else _win_rates(p, scores, sppo_eta)
    return p.zero_if_tied(p.mean((logratio - (win_rates - 0.5) / sppo_beta) ** 2))


def _win_rates(p: Lists, scores: torch.Tensor, eta: float) -> torch.Tensor:
    wins = torch.sigmoid(eta * (scores.unsqueeze(1) - scores)).masked_fill(~p.same_prompt, 0)
    itself = 0.5  # an answer's own entry
    return (wins.sum(dim=1) - itself) / clamp_min(p.sizes - 1, 1)[p.prompt]


QrpoListScores = Annotated[
    Literal["quantiles", "samples"],
    Hyper(
        "What the scores are: quantiles, as `qrpo` reads them, or scores of answers that the reference model sampled, "
        "which give the quantiles."
    ),
]


def _quantile_bounds(*, qrpo_list_scores: str, qrpo_transform: str, **_: object) -> Column:
    if qrpo_list_scores == "samples":
        return Column("Score of the answer, which the reference model sampled.")
    meaning = "Share of the reference model's completions to the prompt with a reward up to that of the answer."
    return Column(meaning, ge=0, le=1, gt=0 if qrpo_transform == "log" else None)


@register_loss(
    paper="2507.08068",
    reads="lists",
    order="scores",
    needs=Need.REFERENCE,
    prefix="qrpo",
    score_bounds=_quantile_bounds,
    verification="authors",
)
def qrpo_list(
    p: Lists,
    *,
    qrpo_beta: QrpoBeta = 0.003,
    qrpo_transform: QrpoTransform = "identity",
    qrpo_error: QrpoError = "mse",
    qrpo_list_scores: QrpoListScores = "quantiles",
) -> torch.Tensor:
    """QRPO on lists: regresses each answer's log-ratio to its optimum, for rewards on an absolute scale.

        mean over answers k of  (R_k - beta log Z - beta logratio_k)^2,  R and Z of the quantile as in `qrpo`

        quantile_k = the score itself, or the share of the list's scores that are at most the answer's

    The share within the list estimates the quantile only if the reference model sampled the answers:
    qrpo_list_scores="samples" says so. Learning rates and clipping as for `qrpo`.

    Returns:
        One value per prompt, 0 where all answers are tied, shape (prompts,).

    References:
        arXiv 2507.08068.

    Note:
        QRPO is defined per answer, and so was executed against the authors' code; with two answers this is `qrpo`,
        except where they are tied.

    Example:
        >>> from trl_dpo_ext import Lists, get_loss
        >>> lists = Lists.from_logps(logps=[-12.0, -15.0, -9.0], ref_logps=[-13.0, -14.0, -9.0],
        ...                          prompt=[0, 0, 0], scores=[1.0, 0.6, 0.2])
        >>> get_loss("qrpo_list")(lists, qrpo_beta=0.1)
        tensor([0.1155])
    """
    logratio = p.answers.logratio
    quantiles = _shares(p) if qrpo_list_scores == "samples" else p.scores
    return p.zero_if_tied(p.mean(qrpo_error_of(logratio, quantiles, qrpo_beta, qrpo_transform, qrpo_error)))


def _shares(p: Lists) -> torch.Tensor:
    reached = p.same_prompt & (p.scores <= p.scores.unsqueeze(1))
    return reached.sum(dim=1).to(p.answers.logps.dtype) / p.sizes[p.prompt]
