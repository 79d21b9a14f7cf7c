"""A second model of a model's weights as they are now, in another precision or quantized."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..._trl import gather_object, with_own_forward
from ...errors import InputError
from .quantization import is_quantized


def from_memory(kind: Any, model: Any, settings: dict[str, Any]) -> Any:
    """A model of the instance's own weights, which the instance goes on to change."""
    config = copy.deepcopy(model.config)
    settings.setdefault("attn_implementation", model.config._attn_implementation)
    weights = _whole_weights(model)
    reference, report = kind.from_pretrained(
        None, config=config, state_dict=weights, output_loading_info=True, **settings
    )
    tied = set(getattr(reference, "all_tied_weights_keys", {}))
    wrong = {name: set(report[name]) - tied for name in ("missing_keys", "unexpected_keys") if set(report[name]) - tied}
    if wrong:
        raise InputError(
            f"A reference could not be made of the {kind.__name__} in memory ({wrong}). Save it with "
            "save_pretrained and name its folder in its place."
        )
    reference.config._name_or_path = model.config._name_or_path
    _unshare(reference, weights)
    return reference


def frozen_copy(model: Any) -> Any:
    """A copy of a model as it is now, frozen and in evaluation mode.

    Returns:
        The copy; None if not all weights are here on every process, or the model cannot be copied.
    """
    if not all(gather_object(_can_be_copied(model))):
        return None
    try:
        reference = with_own_forward(copy.deepcopy(model))
    except torch.OutOfMemoryError:
        raise
    except (TypeError, AttributeError, RuntimeError):  # the model holds what Python cannot copy, such as a lock
        return None
    return reference.requires_grad_(False).eval()


def _can_be_copied(model: Any) -> bool:
    """Whether all weights are here, unquantized, and nothing moves them between devices."""
    whole = not any(p.is_meta or hasattr(p, "_local_tensor") or hasattr(p, "ds_id") for p in model.parameters())
    devices = {*getattr(model, "hf_device_map", {}).values()}
    return whole and not is_quantized(model) and len(devices) <= 1


def _unshare(reference: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy what still lies in the memory of the policy, which training changes: what needed neither cast nor move."""
    policys = {tensor.untyped_storage().data_ptr() for tensor in weights.values()}
    for tensor in [*reference.parameters(), *reference.buffers()]:
        if tensor.untyped_storage().data_ptr() in policys:
            tensor.data = tensor.data.clone()


def _whole_weights(model: Any) -> dict[str, torch.Tensor]:
    """A model's weights by name, gathered where ZeRO-3 has spread them over processes, an adapter merged in.

    Raises:
        InputError: they are not all here, or an adapter cannot be merged.
    """
    problem = _weights_problem(model)
    if problem:
        raise InputError(f"A reference cannot be made of the policy's weights: {problem}")
    with _gathered(model):
        if hasattr(model, "peft_config"):
            return _copy_on_cpu(model).merge_and_unload().state_dict()
        state = model.state_dict()
        spread = any(hasattr(parameter, "ds_id") for parameter in model.parameters())
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()} if spread else state


def _copy_on_cpu(model: Any) -> Any:
    """A copy whose tensors are on the CPU: on the model's own device, it might not fit beside the model.

    Quantized tensors are copied where they are.
    """
    if is_quantized(model):
        return copy.deepcopy(model)
    copied: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        moved = tensor.detach().to("cpu", copy=True)
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        copied[id(tensor)] = torch.nn.Parameter(moved, tensor.requires_grad) if is_parameter else moved
    return copy.deepcopy(model, copied)


def _weights_problem(model: Any) -> str | None:
    by_name = "name the policy's checkpoint, or save it and name its folder, as the reference."
    parameters = list(model.parameters())
    if any(p.is_meta for p in parameters):
        return f"this process holds none (cpu_ram_efficient_loading, or offloaded); {by_name}"
    if any(hasattr(p, "_local_tensor") for p in parameters):
        return f"they are sharded already; {by_name}"
    if hasattr(model, "peft_config") and not hasattr(model, "merge_and_unload"):
        return "its adapter cannot be merged into them; leave out the flags of the reference."
    return None


@contextlib.contextmanager
def _gathered(model: Any) -> Iterator[None]:
    spread = [parameter for parameter in model.parameters() if hasattr(parameter, "ds_id")]
    if not spread:
        yield
        return
    import deepspeed  # pyright: ignore[reportMissingImports]  (an extra)

    with deepspeed.zero.GatheredParameters(spread):
        yield
