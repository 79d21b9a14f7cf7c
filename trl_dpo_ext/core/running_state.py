"""Running averages as numbers that JSON can hold, and back, to the bit.

Tests in tests/unit/losses/test_running_statistics.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

RunningState = dict[str, float | int | str]
"""The state of a loss, by name; `dtype` is the one of its averages."""


def saved(**averages: torch.Tensor | float) -> RunningState:
    """Return averages as floats, with their dtype: float64 arithmetic after a restart would round in another way."""
    dtypes = {str(each.dtype).removeprefix("torch.") for each in averages.values() if isinstance(each, torch.Tensor)}
    values: RunningState = {name: float(each) for name, each in averages.items()}
    return {**values, "dtype": dtypes.pop()} if dtypes else values


def restored(state: Mapping[str, float | int | str], *names: str) -> list[torch.Tensor]:
    """Return averages that `saved` wrote, as scalar tensors; states without a dtype were written by former versions."""
    dtype = getattr(torch, str(state.get("dtype", "float32")))
    return [torch.tensor(float(state[name]), dtype=dtype) for name in names]
