"""What stands between token log-probs and a loss, once more in plain Python with 50 digits."""

from __future__ import annotations

from collections.abc import Sequence

from mpmath import exp, log, mpf

from .oracle import ls


def f_divergence_score(lr: mpf, f_divergence_type: str, alpha: float = 0.5) -> mpf:
    """f'(policy / reference) of one log-ratio; the exponent of exp() stops at 80. Alpha 1 is the limit, reverse KL."""
    lr, alpha = mpf(lr), mpf(alpha)
    if f_divergence_type == "forward_kl":
        return 1 - exp(min(-lr, mpf(80)))
    if f_divergence_type == "forward_kl_linear":
        return 1 - (exp(-lr) if -lr < 10 else exp(mpf(10)) * (1 - lr - 10))
    if f_divergence_type == "js_divergence":
        return log(2) + ls(lr)
    if f_divergence_type == "alpha_divergence" and alpha != 1:
        return (exp(min((alpha - 1) * lr, mpf(80))) - 1) / (alpha - 1)
    return lr


def sum_logps(chosen: Sequence[float], rejected: Sequence[float], ld_alpha: float | None = None) -> tuple[mpf, mpf]:
    """Summed log-prob of each side; tokens beyond the shorter side's length count `ld_alpha`."""
    common = min(len(chosen), len(rejected))
    tail = mpf(1) if ld_alpha is None else mpf(ld_alpha)
    return tuple(
        sum(mpf(logp) * (1 if position < common else tail) for position, logp in enumerate(side))
        for side in (chosen, rejected)
    )


def wpo_weight(
    chosen: Sequence[tuple[float, float]], rejected: Sequence[tuple[float, float]], clamp: bool = False
) -> mpf:
    """Weight of one pair from (log-prob of the token, log of the sum of squared probabilities) per token."""
    sides = [exp(sum(mpf(logp) - mpf(lse) for logp, lse in side) / len(side)) for side in (chosen, rejected)]
    product = sides[0] * sides[1]
    return min(product, mpf(1)) if clamp else product
