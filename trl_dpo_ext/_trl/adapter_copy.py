"""A copy of an adapter under another name: every parameter, buffer and scale, wherever PEFT keeps it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..errors import InputError


@contextlib.contextmanager
def gradients_kept(model: nn.Module) -> Iterator[None]:
    """Restore each parameter's `requires_grad`, which PEFT changes where adapters are switched or added."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, required in before:
            if parameter.requires_grad != required:
                parameter.requires_grad_(required)


def copy_adapter(model: Any, source: str, target: str, *, frozen: bool) -> None:
    """Add a copy of an adapter under another name, or fill the one that has this name.

    Args:
        model: a `PeftModel`, before anything wraps it. Which adapter is active, and which parameters require
            gradients, stays.
        source: name of the adapter to copy.
        target: name of the copy.
        frozen: whether the copy never trains.

    Raises:
        InputError: PEFT refuses a second adapter, or makes it without a parameter of the first.
    """
    purpose = f"The reference is a frozen copy of the adapter {source!r}"
    if not frozen:
        purpose = f"The adapter {source!r} has the name that TRL gives to the reference, and needs a copy"
    if target not in model.peft_config:
        try:
            with gradients_kept(model):
                model.add_adapter(target, _config_of_copy(model.peft_config[source], frozen))
        except ValueError as error:
            raise InputError(f"{purpose}, which PEFT refuses. {error} {_MERGE}") from error
    missing = _fill(model, source, target, frozen)
    if missing:
        raise InputError(
            f"{purpose}, but PEFT made it without {missing[0]} ({len(missing)} parameters are missing). {_MERGE}"
        )


_MERGE = "Merge the adapter with model.merge_and_unload() and pass a new peft_config."


def _config_of_copy(config: Any, frozen: bool) -> Any:
    """An adapter's configuration for its copy, whose initialization must not take anything off the base."""
    config = copy.deepcopy(config)
    if isinstance(getattr(config, "init_lora_weights", None), str):
        config.init_lora_weights = True
    if frozen:
        config.inference_mode = True
        if hasattr(config, "bias"):
            config.bias = "none"
    return config


def _fill(model: Any, source: str, target: str, frozen: bool) -> list[str]:
    """Copy parameters, buffers and scales of an adapter to another; returns names of what that one lacks."""
    missing = []
    with torch.no_grad():
        for name, original, copied in adapter_pairs(model, source, target):
            if copied is None or copied.shape != original.shape:
                missing.append(name)
                continue
            if copied.dtype == original.dtype:
                copied.data.copy_(original.data)
            else:  # PEFT casts new adapters to float32
                copied.data = original.data.clone()
            if frozen:
                copied.requires_grad_(False)
    for module in model.modules():
        scaling = getattr(module, "scaling", None)
        if isinstance(scaling, dict) and source in scaling and target in scaling:
            scaling[target] = scaling[source]
    return missing


def adapter_pairs(model: Any, source: str, target: str) -> Iterator[tuple[str, torch.Tensor, torch.Tensor | None]]:
    """Name, tensor, and tensor of the other adapter, for each parameter and buffer of an adapter.

    The last is None for a trained parameter that the other lacks.

    Seam: PEFT keeps an adapter's tensors under names of which one part is the adapter's name.
    """
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        parts = name.split(".")
        places = [at for at, part in enumerate(parts) if part == source]
        renamed = [".".join((*parts[:at], target, *parts[at + 1 :])) for at in places]
        found = [tensors[other] for other in renamed if other in tensors]
        if found:
            yield name, tensor, found[0]
        elif places and isinstance(tensor, nn.Parameter) and tensor.requires_grad:
            yield name, tensor, None
