"""Functions with a kink, each with a stated gradient there, and the bounds that keep exp() finite.

Losses and transforms use these in place of torch's `clamp`, `relu`, `minimum` and `abs`. At the first step policy and
reference are equal, so a log-ratio is exactly at the kink, and what torch passes there depends on its version: up to
2.13 `clamp` passes the gradient at its bounds, from 2.14 on it does not.

Tested in tests/unit/core/test_numerics.py; for each loss in tests/unit/losses/test_ties.py.
"""

from __future__ import annotations

import math

import torch

MAX_EXPONENT, MAX_EXPONENT_FLOAT16 = 80.0, 11.0
"""exp() of more than this leaves float32 (float16), and what is infinite makes NaN of a difference, a product or a
gradient. One bound for float32 and wider keeps their values comparable."""


def clamp_min(x: torch.Tensor, bound: float) -> torch.Tensor:
    """Return max(x, bound), elementwise; the gradient is 1 from the bound on, the bound included, and 0 below it."""
    return x.masked_fill(x < bound, bound)


def clamp_max(x: torch.Tensor, bound: float) -> torch.Tensor:
    """Return min(x, bound), elementwise; the gradient is 1 up to the bound, the bound included, and 0 above it."""
    return x.masked_fill(x > bound, bound)


def relu(x: torch.Tensor) -> torch.Tensor:
    """Return max(x, 0), elementwise; the gradient is 1 above 0, and 0 at 0 and below it."""
    return x.masked_fill(x <= 0, 0)


def absolute(x: torch.Tensor) -> torch.Tensor:
    """Return |x|, elementwise; the gradient is the sign, which is 0 at 0."""
    return x * torch.sign(x).detach()


def minimum(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return min(a, b), elementwise; where they are equal, each has half of the gradient."""
    # The mean comes last, so that a NaN in either ends up there and not in the other's value.
    return torch.where(a < b, a, torch.where(b < a, b, 0.5 * a + 0.5 * b))


def sort(x: torch.Tensor) -> torch.Tensor:
    """Return the values of a vector in ascending order; of equal ones, the first has the lower rank's gradient."""
    return x.sort(stable=True).values


# Nearer to probability 1 than this, 1 - p is all rounding, and the gradient of its logarithm explodes.
_MAX_LOG_P = -1e-7


def log1mexp(log_p: torch.Tensor) -> torch.Tensor:
    """Return log(1 - exp(log_p)), elementwise; a log-prob above -1e-7 counts as -1e-7, without gradient."""
    log_p = clamp_max(log_p, _MAX_LOG_P)
    likely = log_p > -math.log(2)
    # Each form is accurate on its own side only. The branch not taken gets a harmless input: where() multiplies its
    # gradient by zero, and zero times inf is NaN.
    harmless = torch.full_like(log_p, -math.log(2))
    of_likely = torch.log(-torch.expm1(torch.where(likely, log_p, harmless)))
    of_unlikely = torch.log1p(-torch.exp(torch.where(likely, harmless, log_p)))
    return torch.where(likely, of_likely, of_unlikely)


def squared(gap: torch.Tensor) -> torch.Tensor:
    """Return the square, elementwise; flat, and so without gradient, where it would overflow.

    Scores of an exponential divergence reach exp(80), whose square leaves float32.
    """
    largest = 0.5 * torch.finfo(gap.dtype).max ** 0.5
    return clamp_max(clamp_min(gap, -largest), largest) ** 2
