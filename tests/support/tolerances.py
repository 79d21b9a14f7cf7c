"""How far apart two correct computations of the same number may be, from its dtype and the size of what is summed.

Another CPU, another version of torch, or another batch size adds the same terms in another order. Each addition rounds the
running sum by up to half a unit in its last place, so the result moves with the size of the sum, not of the result: a
difference of two log-probs of -100 that is 0.01 is known to about 1e-4 in float32, as each of them is.
"""

from __future__ import annotations

import torch

# Roundings that add up on the way through a small model and a sum over a completion; they have both signs, so this is
# about the square root of their number.
_ROUNDINGS = 32


def rounding(size: float, dtype: torch.dtype = torch.float32) -> float:
    """The absolute tolerance for a number that was computed by adding terms whose absolute values add up to `size`.

    Example:
        >>> f"{rounding(100.0):.1e}"  # a summed log-prob of about -100
        '3.8e-04'
        >>> f"{rounding(1.0):.1e}"
        '3.8e-06'
        >>> f"{rounding(1.0, torch.float64):.1e}"
        '7.1e-15'
    """
    return _ROUNDINGS * torch.finfo(dtype).eps * size
