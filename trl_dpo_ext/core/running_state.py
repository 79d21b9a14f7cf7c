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


def restored(state: Mapping[str, float | int | str], *names: str) -> list[torch.Tensor] | list[float]:
    """Return averages that `saved` wrote, as scalar tensors, or as the zeros that averages of no batch are.

    States of former versions have no dtype.
    """
    if "dtype" not in state and not any(state[name] for name in names):
        return [0.0] * len(names)  # in a dtype, they would lend it to the first batch
    dtype = getattr(torch, str(state.get("dtype", "float32")))
    return [torch.tensor(float(state[name]), dtype=dtype) for name in names]
