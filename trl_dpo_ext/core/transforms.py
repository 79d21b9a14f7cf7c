"""Transforms between token log-probs and a loss: sum per completion, score against the reference, weight the pairs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .numerics import MAX_EXPONENT, MAX_EXPONENT_FLOAT16, clamp_max, clamp_min, relu

F_DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence", "forward_kl_linear")

# From this exponent on, exp() goes on as its tangent in forward_kl_linear.
_LINEAR_FROM = 10.0


def sum_logps(token_logps: torch.Tensor, mask: torch.Tensor, ld_alpha: float | None = None) -> torch.Tensor:
    """Sum the token log-probs of each completion; `ld_alpha` down-weights tokens beyond the pair's shorter side.

    Args:
        token_logps: (rows, tokens), rows = 2 x pairs with the chosen half first; zero outside the completion.
        mask: (rows, tokens), true on completion tokens.
        ld_alpha: weight in [0, 1] of the tokens beyond the length both sides share; None sums all of them.

    Returns:
        Summed log-probs in nats, shape (rows,).

    References:
        LD-DPO, arXiv 2409.06411. It applies to policy and reference alike; on one of them only, the log-ratio would not
        start at zero.
    """
    if ld_alpha is None:
        return token_logps.sum(dim=1)
    position = mask.cumsum(dim=1)
    chosen_lengths, rejected_lengths = mask.sum(dim=1).chunk(2)
    common = torch.where(chosen_lengths < rejected_lengths, chosen_lengths, rejected_lengths).repeat(2).unsqueeze(1)
    shared = (token_logps * ((position > 0) & (position <= common))).sum(dim=1)
    tail = (token_logps * (position > common)).sum(dim=1)
    return shared + ld_alpha * tail


def f_divergence_score(
    logratio: torch.Tensor, f_divergence_type: str = "reverse_kl", alpha: float = 0.5
) -> torch.Tensor:
    """Compute f'(policy / reference) of a divergence, elementwise.

    `reverse_kl`: lr. `forward_kl`: 1 - exp(-lr). `js_divergence`: log 2 + log sigmoid(lr).
    `alpha_divergence`: (exp((alpha - 1) lr) - 1) / (alpha - 1); alpha near 1 is reverse KL.
    `forward_kl_linear`: forward KL whose exp(-lr) goes on as its tangent below lr = -10, so that very unlikely answers
    keep a gradient.

    Exponents are clamped before exp(), at 80 (11 in float16): beyond it the score is constant and its gradient zero,
    where an unclamped exp() overflows and turns every gradient into NaN. At the bound itself, and where
    `forward_kl_linear` goes over into its tangent, the gradient is the one from within.

    References:
        f-DPO, arXiv 2309.16240.

    Note:
        alpha is TRL's; the paper's alpha is 1 minus it.
    """
    if f_divergence_type == "reverse_kl" or (f_divergence_type == "alpha_divergence" and abs(alpha - 1.0) < 1e-6):
        return logratio
    if f_divergence_type == "forward_kl":
        return 1 - torch.exp(_clamp_exponent(-logratio)).to(logratio.dtype)
    if f_divergence_type == "forward_kl_linear":
        return 1 - _linear_exp(-logratio)
    if f_divergence_type == "js_divergence":
        return math.log(2) + F.logsigmoid(logratio)
    if f_divergence_type == "alpha_divergence":
        scale = 1.0 / (alpha - 1.0)
        power = torch.exp(_clamp_exponent((alpha - 1.0) * logratio, scale))
        return (power - 1.0).to(logratio.dtype) * scale
    raise ValueError(f"Unknown f_divergence_type {f_divergence_type!r}; one of {', '.join(F_DIVERGENCES)}.")


def _linear_exp(exponent: torch.Tensor) -> torch.Tensor:
    """exp() up to an exponent of 10, and its tangent there beyond it; at most the largest number of the dtype."""
    wide = exponent.float() if exponent.dtype in (torch.float16, torch.bfloat16) else exponent
    value = torch.exp(clamp_max(wide, _LINEAR_FROM)) + math.exp(_LINEAR_FROM) * relu(wide - _LINEAR_FROM)
    return clamp_max(value, torch.finfo(exponent.dtype).max).to(exponent.dtype)


def _clamp_exponent(exponent: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """`exponent`, at least float32, small enough for exp() and for `scale` times it in the dtype it came in."""
    bound = MAX_EXPONENT
    if exponent.dtype == torch.float16:
        bound = MAX_EXPONENT_FLOAT16 - max(0.0, math.log(abs(scale)))
    wide = exponent.float() if exponent.dtype in (torch.float16, torch.bfloat16) else exponent
    return clamp_max(wide, bound)


@torch.no_grad()
def wpo_weights(
    token_logps: torch.Tensor, log_sum_sq_probs: torch.Tensor, mask: torch.Tensor, clamp: bool = False
) -> torch.Tensor:
    """Compute WPO's weights, how likely the policy is to have written each pair: detached, shape (pairs,).

    A side's weight is `exp(mean_t(logp_t - log sum_v p_v^2))`; a pair's weight is the product of its sides'.

    Args:
        token_logps: (rows, tokens), chosen half first.
        log_sum_sq_probs: (rows, tokens), log of the sum over the vocabulary of squared probabilities.
        mask: (rows, tokens), true on completion tokens.
        clamp: limit the product to 1, as the authors' code does; TRL does not, and so up-weights some pairs.

    References:
        WPO, arXiv 2406.11827, equation 2.
    """
    aligned = (token_logps - log_sum_sq_probs) * mask
    weights = torch.exp(aligned.sum(dim=1) / clamp_min(mask.sum(dim=1), 1))
    chosen, rejected = weights.chunk(2)
    product = chosen * rejected
    return clamp_max(product, 1.0) if clamp else product


@torch.no_grad()
def relative_entropy(token_entropy: torch.Tensor, mask: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Compute each completion's mean token entropy relative to a uniform distribution, in [0, 1], shape (rows,).

    Args:
        token_entropy: (rows, tokens), entropy in nats of the next-token distribution.
        mask: (rows, tokens), true on completion tokens.
        vocabulary: number of tokens to choose from.
    """
    return (token_entropy * mask).sum(dim=1) / clamp_min(mask.sum(dim=1), 1) / math.log(vocabulary)
