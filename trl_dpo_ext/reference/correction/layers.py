"""The low-rank term beside a quantized layer: where it is kept, and how it runs.

It is a submodule of the layer, added to its output by a forward hook. PEFT's LoRA layer would compute the same, but it
renames the layer's weights, and makes the reference a model with an adapter: `disable_adapter`, the policy's own
adapters, and everything that asks whether a model is adapted would have to tell the two apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_CHILD = "correction"
_RECORD = "_reference_correction"


@dataclass(frozen=True)
class Correction:
    """What the corrections of a model were fitted on."""

    rank: int
    sequences: int
    tokens: int
    digest: str
    """Hash of the tokens that they were fitted on, 16 hexadecimal digits."""

    @property
    def fingerprint(self) -> str:
        """What distinguishes the reference from one without correction; part of the identity of stores."""
        return f"corrected rank {self.rank} on {self.digest}"


class LowRank(nn.Module):
    """x -> (scales up) (scales down) x, of a layer's inputs x, (..., in), to its outputs, (..., out).

    The factors are held in 8 bits, as in LQER: two ranks for the bytes of one in bfloat16, which remove more error than
    the rounding adds. They are buffers: nothing trains them, and a model's dtype is that of its parameters. They are in
    no state dict, so that the model is saved and hashed as the quantized one that it is; stores tell corrections apart
    by `Correction.fingerprint`.

    Args:
        down: (rank, in).
        up: (out, rank).
    """

    down: torch.Tensor
    """(rank, in) int8."""
    up: torch.Tensor
    """(out, rank) int8."""
    scales: torch.Tensor
    """(rank,) float32."""

    def __init__(self, down: torch.Tensor, up: torch.Tensor) -> None:
        super().__init__()
        rows, columns = down.abs().amax(dim=1).clamp(min=1e-30) / 127, up.abs().amax(dim=0).clamp(min=1e-30) / 127
        self.register_buffer("down", (down / rows.unsqueeze(1)).round().to(torch.int8), persistent=False)
        self.register_buffer("up", (up / columns).round().to(torch.int8), persistent=False)
        self.register_buffer("scales", (rows * columns).sqrt().float(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The correction, in the dtype of the inputs."""
        scales = self.scales.to(x.dtype)  # half of them on each side: neither product leaves the range of float16
        return (x @ (self.down.T * scales)) @ (self.up * scales).T


def _add(layer: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    return output + layer.get_submodule(_CHILD)(inputs[0]).to(output.dtype)


def attach(layer: nn.Module, term: LowRank) -> None:
    """Add a low-rank term to what a layer computes."""
    layer.add_module(_CHILD, term)
    layer.register_forward_hook(_add)


def has_term(layer: nn.Module) -> bool:
    """Whether a layer has a low-rank term."""
    return isinstance(getattr(layer, _CHILD, None), LowRank)


def quantized_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers that bitsandbytes has quantized, by name, in the order of the model."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not module.weight.is_floating_point()
    }


def terms(model: nn.Module) -> Iterator[LowRank]:
    """The low-rank terms of a model."""
    return (module for module in model.modules() if isinstance(module, LowRank))


def dequantized(layer: Any) -> torch.Tensor:
    """The weights of a quantized layer, (out, in) in float32."""
    weight = layer.weight
    if getattr(weight, "quant_state", None) is not None:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state).float()
    state = layer.state
    scales = weight.SCB if getattr(weight, "SCB", None) is not None else state.SCB
    return weight.data.float() * (scales.float() / 127).unsqueeze(1)


def record(model: nn.Module, correction: Correction) -> None:
    """Note on a model what its corrections were fitted on."""
    setattr(model, _RECORD, correction)


def correction_of(model: Any) -> Correction | None:
    """What the corrections of a model were fitted on; None for a model without."""
    return getattr(model, _RECORD, None)
