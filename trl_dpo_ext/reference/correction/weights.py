"""Fit a quantized model's terms to the weights of the model that it was quantized from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ...errors import InputError
from ..identity.weights import unsharded
from .fit import fit
from .layers import Correction, quantized_layers, record
from .sequences import digest, padded


def correct(reference: Any, start: Any, rank: int, rows: Sequence[Sequence[int]]) -> None:
    """Correct the error of a quantized model.

    Args:
        reference: the quantized model, on its device.
        start: the model that it was quantized from, on any device.
        rank: of the terms.
        rows: the sequences of token ids to fit them on.

    Raises:
        InputError: `start` is another model.
    """
    if not has_layers(start, reference):
        raise InputError(
            f"The reference cannot be corrected: the layers of {type(start).__name__}, from which it should have been "
            "quantized, have other names or shapes. Leave the correction out."
        )
    inputs = padded(rows, reference.device)
    forward = partial(reference.base_model, **inputs, use_cache=False)
    fit(reference, partial(layer_weight, start), rank, forward, inputs["attention_mask"].bool())
    record(reference, Correction(rank, len(rows), sum(map(len, rows)), digest(rows)))


def layer_weight(model: Any, name: str) -> torch.Tensor:
    """The weights of a linear layer, (out, in); every process calls this where ZeRO-3 has spread them."""
    module = _layer(model, name)
    with unsharded(module.weight) as gathered:
        weight = gathered.detach().clone() if hasattr(gathered, "ds_id") else gathered.detach()
    return weight.T if type(module).__name__ == "Conv1D" else weight


def has_layers(model: Any, reference: nn.Module) -> bool:
    """Whether a model has each quantized layer of a reference, unquantized and in its shape."""
    for name, layer in quantized_layers(reference).items():
        try:
            weight = _layer(model, name).weight
        except AttributeError:
            return False
        shape = tuple(getattr(weight, "ds_shape", weight.shape))
        if not weight.is_floating_point() or sorted(shape) != sorted((layer.out_features, layer.in_features)):
            return False
    return True


def _layer(model: Any, name: str) -> Any:
    module = model
    for part in name.split("."):
        module = getattr(module, part)
        module = getattr(module, "base_layer", module)  # which an adapter has wrapped
    return module
