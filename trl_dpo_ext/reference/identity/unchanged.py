"""Notice that a model's weights have changed since it was identified, without hashing them again."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .weights import base_tensors

_SAMPLED = 16
_NAN = -1e300
"""Stands for NaN, which equals nothing, so that broken weights count as unchanged."""


def version(model: nn.Module) -> int:
    """Return a number that grows with each in-place change of a parameter.

    Torch counts what `load_state_dict` and `copy_` do, but neither fused optimizers nor changes of `parameter.data`.
    """
    return sum(parameter._version for parameter in model.parameters())


def checksums(model: nn.Module) -> dict[str, Any]:
    """Return dtype, shape and two sums over the bits of each weight, a few times faster than its hash.

    Torch's counters miss changes through `data`, such as PEFT's `merge_and_unload`, and a sample misses most single
    values. Weights that an engine holds elsewhere are left out.
    """
    weights = model.state_dict(keep_vars=True)
    return {name: _checksum(value) for name, value in weights.items() if _is_here(value)}


def _is_here(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not (
        value.is_meta or hasattr(value, "_local_tensor") or hasattr(value, "ds_id")
    )


def _checksum(tensor: torch.Tensor) -> Any:
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()  # pyright: ignore[reportAttributeAccessIssue]
        return [_checksum(getattr(tensor, name)) for name in names]
    kind = str(tensor.dtype), list(tensor.shape)
    if not tensor.numel():
        return kind
    rows = tensor.detach().reshape(tensor.size(0) if tensor.dim() > 1 else 1, -1).contiguous()
    sums = rows.view(_INTEGERS[rows.element_size()]).sum(dim=1, dtype=torch.int64)
    order = torch.arange(1, len(sums) + 1, device=sums.device)  # so that two rows cannot change places
    return *kind, int(sums.sum()), int((sums * order).sum())


_INTEGERS: Mapping[int, torch.dtype] = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}


def base_sample(model: nn.Module) -> dict[str, list[float]]:
    """Return some values of each base weight: equal before and after what leaves the base as it is."""
    return {name: _sample(p) for name, p in base_tensors(model).items() if _can_be_read(p)}


def sample_fingerprint(model: nn.Module) -> str | None:
    """Return 32 hexadecimal digits for some values of each base weight and their dtypes, as a model is recorded by.

    Models with the same weights have the same digits; a trained, merged or resized one has others. None where an engine
    holds a part of the weights elsewhere.
    """
    tensors = {name: p for name, p in base_tensors(model).items() if isinstance(p, nn.Parameter)}
    if not tensors or not all(_can_be_read(p) and p.numel() for p in tensors.values()):
        return None
    values = {name: (str(p.dtype), list(p.shape), _sample(p)) for name, p in sorted(tensors.items())}
    return hashlib.blake2b(json.dumps(values).encode(), digest_size=16).hexdigest()


def _can_be_read(value: Any) -> bool:
    """Return False for a weight that has no values here, or packs other tensors."""
    return isinstance(value, nn.Parameter) and not value.is_meta and not hasattr(value.data, "__tensor_flatten__")


class WeightsState:
    """The state of a reference's weights at one time: version counters and checksums of each.

    Args:
        model: a transformers model, or a `PeftModel` whose base is the reference.
        adapter: the frozen adapter that belongs to the reference; None for adapters off.
    """

    def __init__(self, model: nn.Module, adapter: str | None = None) -> None:
        self._model, self._adapter = weakref.ref(model), adapter
        self._state = self._read(model)

    def holds_for(self, model: nn.Module) -> bool:
        """Return True if `model` is the same object with the same weights, in the same dtypes."""
        return self._model() is model and self._read(model) == self._state

    def _read(self, model: nn.Module) -> dict[str, Any]:
        tensors = base_tensors(model)
        if self._adapter is not None:
            tensors |= {name: p for name, p in model.named_parameters() if f".{self._adapter}." in f"{name}."}
        weights = {name: p for name, p in tensors.items() if isinstance(p, nn.Parameter)}
        return {name: (p.dtype, p._version, _checksum(p) if _is_here(p) else None) for name, p in weights.items()}


def _sample(parameter: torch.Tensor) -> list[float]:
    values = parameter.detach().flatten()
    some = values[:: max(len(values) // _SAMPLED, 1)].to("cpu", torch.float64)
    return torch.where(some.isnan(), _NAN, some).tolist()
