"""Token-level losses: weighted or sampled tokens, token-level KL divergence, and unlikelihood.

Tests in tests/unit/losses: test_golden.py, test_gradients.py and test_properties.py for every variant,
test_token_level.py for this family.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping
from typing import Annotated, Any

import torch
import torch.nn.functional as F

from ..core.columns import Column, Doubt
from ..core.hyperparameters import Beta, Hyper
from ..core.numerics import clamp_min, log1mexp
from ..core.pairs import Need, Pairs, Side
from ..core.registry import register_loss
from .likelihood import avg_logps_reward


def _token_logratios(side: Side) -> torch.Tensor:
    """log(policy / reference) of every token, (pairs, tokens), zero outside the completion."""
    return (side.token_logps - side.ref_token_logps) * side.mask


def _position(side: Side) -> torch.Tensor:
    """Place of every token in its completion, from 0 on, (pairs, tokens); 0 in front of the completion."""
    return clamp_min(side.mask.cumsum(dim=1) - 1, 0)


D2poGamma = Annotated[float, Hyper("Discount factor per token; 1 is DPO.", gt=0, le=1)]


@register_loss(
    paper="2502.14340", needs=Need.TOKENS | Need.TOKEN_REFERENCE, verification="authors", shift_invariant=True
)
def d2po(p: Pairs, *, beta: Beta, d2po_gamma: D2poGamma = 0.98) -> torch.Tensor:
    """D²PO: DPO that weights early tokens more than late ones.

        -log sigmoid(beta * (sum_t gamma^t * lr_chosen_t - sum_t gamma^t * lr_rejected_t)),  t = 0, 1, 2, ...

    lr_t is the log-ratio of token t. Against the length bias of DPO, without dividing by length: at gamma = 0.98 the
    tokens beyond the 200th together weigh less than the first.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2502.14340.

    Note:
        The authors' code counts t from 1, which is the same loss with gamma * beta in beta's place; the first token
        weighing 1, as here, is the paper's form as remembered.

    Example:
        >>> from trl_dpo_ext import Pairs, Side, get_loss
        >>> def side(tokens, reference):
        ...     policy, reference = torch.tensor([tokens]), torch.tensor([reference])
        ...     return Side(policy.sum(1), token_logps=policy, mask=policy != 0, ref_token_logps=reference)
        >>> pairs = Pairs(side([-1.0, -2.0, -3.0], [-2.0, -2.0, -3.0]), side([-4.0, -2.0, 0.0], [-4.0, -1.0, 0.0]))
        >>> get_loss("d2po")(pairs, beta=0.1, d2po_gamma=0.5)
        tensor([0.6210])
    """
    chosen, rejected = (
        (_token_logratios(side) * d2po_gamma ** _position(side).to(side.token_logps.dtype)).sum(dim=1)
        for side in (p.chosen, p.rejected)
    )
    return -F.logsigmoid(beta * (chosen - rejected))


@register_loss(
    paper="2406.10957",
    needs=Need.TOKENS | Need.TOKEN_REFERENCE | Need.STATE,
    name="sampo",
    verification="authors",
    shift_invariant=True,
)
class SamPO:
    """SamPO: DPO on an equal number of sampled tokens per side, which removes length bias.

        -log sigmoid(beta * (sum over kept tokens of lr_chosen_t - sum over kept tokens of lr_rejected_t))

    lr_t is the log-ratio of token t. The shorter side keeps all its tokens, the longer one as many, drawn anew for
    every batch without replacement. For data whose chosen answers are the longer ones.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2406.10957.

    Note:
        Equal to the authors' code given the tokens that are kept. It draws for policy and reference apart, which puts
        the noise of two draws into the log-ratio; here both keep the same tokens. The draw is seeded by the number of
        batches seen, the process and the pair's lengths: it touches nobody else's random numbers, a checkpoint
        continues it, and pairs of the same lengths in one batch keep the same places. Evaluation draws like the last
        batch.

    Example:
        >>> from trl_dpo_ext import Pairs, Side, get_loss
        >>> def side(tokens, reference):
        ...     policy, reference = torch.tensor([tokens]), torch.tensor([reference])
        ...     return Side(policy.sum(1), token_logps=policy, mask=policy != 0, ref_token_logps=reference)
        >>> pairs = Pairs(side([-1.0, -2.0, -3.0], [-2.0, -3.0, -4.0]), side([-4.0, -2.0, 0.0], [-4.0, -1.0, 0.0]))
        >>> get_loss("sampo")(pairs, beta=0.1)
        tensor([0.5544])
    """

    def __init__(self) -> None:
        self._batches = 0

    def __call__(self, p: Pairs, *, beta: Beta) -> torch.Tensor:
        """One value per pair; in training, the batch is counted first."""
        if p.training:
            self._batches += 1
        rank = p.rank if p.training else 0  # so that an evaluation is the same on any number of processes
        # The only time that the host waits for the device: what is drawn depends on the lengths.
        lengths = torch.stack([side.mask.sum(dim=1) for side in (p.chosen, p.rejected)], dim=1).tolist()
        chosen, rejected = (
            (_token_logratios(side) * self._kept(side, index, lengths, rank)).sum(dim=1)
            for index, side in enumerate((p.chosen, p.rejected))
        )
        return -F.logsigmoid(beta * (chosen - rejected))

    def _kept(self, side: Side, index: int, lengths: list[list[int]], rank: int) -> torch.Tensor:
        """True for the completion tokens that count, (pairs, tokens)."""
        places = torch.zeros(side.mask.shape, dtype=torch.bool)
        for pair, both in enumerate(lengths):
            drawn = random.Random(f"{self._batches} {rank} {both[0]} {both[1]}").sample(range(max(both)), min(both))
            longer = both[index] > both[1 - index]
            places[pair, drawn if longer else list(range(both[index]))] = True
        return places.to(side.mask.device, non_blocking=True).gather(1, _position(side)) & side.mask

    def state_dict(self) -> dict[str, int]:
        """The number of batches seen, which seeds the next draw."""
        return {"batches": self._batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a saved state."""
        self._batches = int(state["batches"])


def _no_weight(side: str, lowest: float, highest: float, _: Mapping[str, Any]) -> Doubt | None:
    if highest > 0:
        return None
    sentence = f"{side}_token_weights is 0 at every token, so tis_dpo ignores the {side} answers"
    return sentence, "A token of average importance has weight 1."


TOKEN_WEIGHT_COLUMNS = {
    "chosen_token_weights": Column(
        "Weight of each token of the chosen side.",
        ge=0,
        per_token="chosen",
        doubts=(functools.partial(_no_weight, "chosen"),),
    ),
    "rejected_token_weights": Column(
        "Weight of each token of the rejected side.",
        ge=0,
        per_token="rejected",
        doubts=(functools.partial(_no_weight, "rejected"),),
    ),
}


@register_loss(
    paper="2410.04350",
    needs=Need.TOKENS | Need.TOKEN_REFERENCE,
    columns=TOKEN_WEIGHT_COLUMNS,
    verification="authors",
    shift_invariant=True,
)
def tis_dpo(p: Pairs, *, beta: Beta) -> torch.Tensor:
    """TIS-DPO: DPO with a precomputed weight for every token.

        -log sigmoid(beta * (sum_t w_chosen_t * lr_chosen_t - sum_t w_rejected_t * lr_rejected_t))

    lr_t is the log-ratio of token t. The columns hold one list per row, with a weight for each token of the completion
    as the trainer tokenizes it, EOS included. The authors estimate weights from the log-ratio of two models, one that
    was trained towards good answers and one towards bad ones. For answers of which a few tokens decide.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2410.04350.

    Note:
        Without the paper's KL term, which is optional in the authors' code too. Weights of 1 are DPO.

    Example:
        >>> from trl_dpo_ext import Pairs, Side, get_loss
        >>> def side(tokens, reference):
        ...     policy, reference = torch.tensor([tokens]), torch.tensor([reference])
        ...     return Side(policy.sum(1), token_logps=policy, mask=policy != 0, ref_token_logps=reference)
        >>> weights = {"chosen_token_weights": [[1.2, 0.8]], "rejected_token_weights": [[0.7, 1.1]]}
        >>> pairs = Pairs(
        ...     side([-1.0, -2.0], [-2.0, -2.5]), side([-4.0, -2.0], [-4.0, -1.0]),
        ...     columns={name: torch.tensor(values) for name, values in weights.items()},
        ... )
        >>> get_loss("tis_dpo")(pairs, beta=0.1)
        tensor([0.5672])
    """
    chosen = (_token_logratios(p.chosen) * p.columns["chosen_token_weights"]).sum(dim=1)
    rejected = (_token_logratios(p.rejected) * p.columns["rejected_token_weights"]).sum(dim=1)
    return -F.logsigmoid(beta * (chosen - rejected))


UnlikelihoodAlpha = Annotated[float, Hyper("Weight of the rejected side.", ge=0, le=1)]


@register_loss(paper="1911.03860", needs=Need.TOKENS, reward=avg_logps_reward, verification="authors")
def unlikelihood(p: Pairs, *, unlikelihood_alpha: UnlikelihoodAlpha = 1.0) -> torch.Tensor:
    """Unlikelihood: imitates the chosen tokens and makes each rejected token less likely.

        -mean_t log p(chosen_t) - alpha * mean_t log(1 - p(rejected_t))

    Needs no reference. Bounded below, unlike the difference of log-likelihoods of the same name among DPO's baselines:
    a rejected token that is already unlikely is left alone.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 1911.03860, which applies unlikelihood training (arXiv 1908.04319) to utterances that are not wanted.

    Note:
        Equal to the authors' code for one pair. They average over the tokens of the batch, this over those of each
        answer. A log-prob above -1e-7 counts as -1e-7 in 1 - p.

    Example:
        >>> from trl_dpo_ext import Pairs, Side, get_loss
        >>> chosen, rejected = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-0.5, -0.1]])
        >>> sides = (Side(t.sum(1), token_logps=t, mask=t != 0) for t in (chosen, rejected))
        >>> get_loss("unlikelihood")(Pairs(*sides), unlikelihood_alpha=1.0)
        tensor([3.1425])
    """
    # Outside the completion the log-prob is 0, of which log(1 - p) is at its limit.
    unlikely = log1mexp(p.rejected.token_logps.masked_fill(~p.rejected.mask, -1.0))
    return -_token_mean(p.chosen.token_logps, p.chosen) - unlikelihood_alpha * _token_mean(unlikely, p.rejected)


def _token_mean(values: torch.Tensor, side: Side) -> torch.Tensor:
    """Mean of (pairs, tokens) over the completion, (pairs,); an empty completion counts as one token."""
    return (values * side.mask).sum(dim=1) / clamp_min(side.mask.sum(dim=1), 1)


def _sequence_kl(side: Side) -> torch.Tensor:
    """KL(reference || policy) summed over the positions of a completion, shape (pairs,)."""
    return side.token_kl.sum(dim=1).to(side.logps.dtype)


@register_loss(paper="2404.11999", needs=Need.REFERENCE | Need.TOKEN_KL, verification="authors", shift_invariant=True)
def tdpo1(p: Pairs, *, beta: Beta) -> torch.Tensor:
    """TDPO1: DPO whose margin includes each side's token-level KL divergence from the reference.

        -log sigmoid(beta * (logratio_chosen - logratio_rejected - (K_rejected - K_chosen)))

        K_side = sum over the side's positions of KL(reference || policy) of the next token

    The authors' first form; they recommend `tdpo2`, which weights K and does not push the chosen side's up.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2404.11999.

    Example:
        >>> from trl_dpo_ext import Pairs, Side, get_loss
        >>> def side(logps, ref_logps, kl):
        ...     logps, ref_logps, kl = torch.tensor([logps]), torch.tensor([ref_logps]), torch.tensor([kl])
        ...     return Side(logps, ref_logps, token_kl=kl)
        >>> pairs = Pairs(side(-12.0, -13.0, [0.5, 0.25]), side(-15.0, -14.0, [0.125, 0.0]))
        >>> get_loss("tdpo1")(pairs, beta=0.1)
        tensor([0.5705])
    """
    drift = _sequence_kl(p.rejected) - _sequence_kl(p.chosen)
    return -F.logsigmoid(beta * (p.chosen.logratio - p.rejected.logratio - drift))


Tdpo2Alpha = Annotated[float, Hyper("Weight of the token-level KL term; 0 is DPO.", ge=0)]


@register_loss(paper="2404.11999", needs=Need.REFERENCE | Need.TOKEN_KL, verification="authors", shift_invariant=True)
def tdpo2(p: Pairs, *, beta: Beta, tdpo2_alpha: Tdpo2Alpha = 0.5) -> torch.Tensor:
    """TDPO2: DPO that keeps the rejected side's token-level KL divergence close to the chosen side's.

        -log sigmoid(beta * (logratio_chosen - logratio_rejected - alpha * (K_rejected - K_chosen)))

        K_side = sum over the side's positions of KL(reference || policy) of the next token

    K_chosen carries no gradient. For policies that lose diversity, or drift, under DPO.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2404.11999.

    Note:
        The authors' configuration runs `tdpo1` unless told otherwise, although their README calls the command TDPO2.

    Example:
        >>> from trl_dpo_ext import Pairs, Side, get_loss
        >>> def side(logps, ref_logps, kl):
        ...     logps, ref_logps, kl = torch.tensor([logps]), torch.tensor([ref_logps]), torch.tensor([kl])
        ...     return Side(logps, ref_logps, token_kl=kl)
        >>> pairs = Pairs(side(-12.0, -13.0, [0.5, 0.25]), side(-15.0, -14.0, [0.125, 0.0]))
        >>> get_loss("tdpo2")(pairs, beta=0.1, tdpo2_alpha=0.5)
        tensor([0.5842])
    """
    drift = _sequence_kl(p.rejected) - _sequence_kl(p.chosen).detach()
    return -F.logsigmoid(beta * (p.chosen.logratio - p.rejected.logratio - tdpo2_alpha * drift))
