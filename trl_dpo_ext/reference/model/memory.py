"""What a reference costs: bytes of weights, and a model in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..correction.layers import correction_of, terms


def weight_bytes(model: Any) -> dict[str, int]:
    """Bytes of a model's weights on this process: `linear` layers (output layer apart), and `all` of them.

    Scales and tables of quantized weights are counted, which `get_memory_footprint` leaves out, and so are the terms
    that correct them. A weight that two layers share counts once.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    linear = {
        id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head
    }
    linear |= {id(factor) for term in terms(model) for factor in term.buffers()}
    moved = {id(m.weight): m.state.SCB for m in model.modules() if hasattr(m, "state") and hasattr(m.state, "SCB")}
    counted = {"linear": 0, "all": 0}
    for tensor in [*model.parameters(), *model.buffers()]:
        size = _tensor_bytes(tensor, moved.get(id(tensor)))
        counted["all"] += size
        counted["linear"] += size if id(tensor) in linear else 0
    return counted


def _tensor_bytes(tensor: Any, scales: Any = None) -> int:
    """Bytes of a weight; `scales` are those that an int8 layer has moved away from it in its first forward."""
    tensor = getattr(tensor, "_local_tensor", tensor)
    extra = [scales if scales is not None else getattr(tensor, "SCB", None)]
    state = getattr(tensor, "quant_state", None)
    while state is not None:
        extra += [state.absmax, state.code, state.offset]
        state = state.state2
    return sum(t.numel() * t.element_size() for t in [tensor, *extra] if isinstance(t, torch.Tensor))


def describe_weights(model: Any) -> str:
    """What a reference in memory is made of and how many bytes it takes, in a few words."""
    size = weight_bytes(model)["all"]
    config = getattr(model.config, "quantization_config", None)
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()})
    kind = f"{describe_quantization(config)} over {'/'.join(kinds)}" if config else "/".join(kinds)
    correction = correction_of(model)
    corrected = f", corrected at rank {correction.rank}" if correction else ""
    return f"{type(model).__name__} in {kind}{corrected}, {_readable(size)} of weights on this process"


def describe_quantization(config: Any) -> str:
    """A quantization in a word or two, of a configuration's `quantization_config`."""
    get = config.get if isinstance(config, Mapping) else lambda name, default=None: getattr(config, name, default)
    if get("load_in_4bit"):
        return str(get("bnb_4bit_quant_type")) + (" with quantized scales" if get("bnb_4bit_use_double_quant") else "")
    return "int8" if get("load_in_8bit") else str(getattr(get("quant_method"), "value", get("quant_method")))


def _readable(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
