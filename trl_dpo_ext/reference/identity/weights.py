"""Hash a model's weights in memory: those of the base without adapters, or those of one adapter."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from ..._trl import NOT_THE_FORWARD, adapter_kind, merged_adapters, without_adapter, wraps_layer
from ...errors import InputError
from .hashing import chunks_of_memory, combined, hashing_threads

_WRAPPED_ATTRIBUTES = {"base_layer", "original_module", "token_adapter"}  # where wrappers keep what they wrap
_INITS_KEEPING_BASE = {"gaussian", "eva", "orthogonal", "mica"}  # other named inits subtract something from the base

# Whether an adapter starts as its base. Adapters of these kinds do so only where the flag is True, if they have one.
_INIT_FLAGS = ("init_lora_weights", "init_ia3_weights", "init_weights")
_STARTING_AT_RANDOM = {"C3A", "FOURIERFT", "POLY", "UNILORA", "VBLORA", "XLORA"}


def base_tensors(model: nn.Module) -> dict[str, Any]:
    """Return parameters and persistent buffers of the base model, under the names they have without adapters.

    Tensors that a PEFT adapter added are left out, and those it wrapped get their former name back, so that the same
    base gives the same tensors whatever adapters it has. Without adapters this is the model's `state_dict`, including
    the entries of quantized layers.
    """
    base = without_adapter(model)
    return _without_adapters(base, base.state_dict(keep_vars=True))


def _without_adapters(base: nn.Module, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors that no adapter added, under the names they have without adapters."""
    tuners = {name for name, module in base.named_modules() if wraps_layer(module)}
    originals = {name: _original_name(name, tuners) for name in tensors}
    return {original: tensors[name] for name, original in originals.items() if original is not None}


def _original_name(name: str, tuners: set[str]) -> str | None:
    """Remove the parts of a name that wrappers added; None for a tensor of an adapter."""
    path, kept = "", []
    for part in name.split("."):
        inside, path = path in tuners, f"{path}.{part}" if path else part
        if not inside:
            kept.append(part)
        elif part not in _WRAPPED_ATTRIBUTES:
            return None
    return ".".join(kept)


def adapters_alter_base(model: nn.Module) -> bool:
    """Return True if adapters have changed the base's weights: merged into it, or split off it (PiSSA, OLoRA ...)."""
    from peft import PeftModel

    configs = list(model.peft_config.values()) if isinstance(model, PeftModel) else []
    inits = {init for c in configs if isinstance(init := getattr(c, "init_lora_weights", True), str)}
    return bool(merged_adapters(model)) or bool(inits - _INITS_KEEPING_BASE)


def adapters_start_apart(model: nn.Module) -> bool:
    """Return True if a new adapter makes another model of the base before it is trained, as virtual tokens do."""
    from peft import PeftModel

    return isinstance(model, PeftModel) and any(map(_starts_apart, model.peft_config.values()))


def _starts_apart(config: Any) -> bool:
    kind = adapter_kind(config)
    zeroed = [getattr(config, name) for name in _INIT_FLAGS if hasattr(config, name)]
    if kind in _STARTING_AT_RANDOM:
        return True not in zeroed
    return config.is_prompt_learning or False in zeroed


def trained_base_weights(model: nn.Module) -> list[str]:
    """Return the names of base weights that require gradients: an adapter's reference changes with them."""
    base = without_adapter(model)
    # By parameter: `state_dict` of a part of a model under FSDP1 makes a root of each unit, and the next forward fails.
    trained = _without_adapters(base, {name: p for name, p in base.named_parameters() if p.requires_grad})
    prefix = getattr(getattr(model, "base_model", None), "prefix", None)  # of weights that PEFT adds
    return [name for name in trained if not (isinstance(prefix, str) and prefix and prefix in name)]


def shared_weights(models: Mapping[str, nn.Module]) -> list[str]:
    """Return the names of trained weights of `models["policy"]` that lie in the memory of `models["reference"]` too."""
    if "reference" not in models:
        return []
    theirs = {_address(p) for p in models["reference"].parameters()} - {0}
    return [name for name, p in models["policy"].named_parameters() if p.requires_grad and _address(p) in theirs]


def _address(parameter: torch.Tensor) -> int:
    """Where a parameter's values are in memory; 0 for one that is sharded or has none here."""
    sharded = hasattr(parameter, "_local_tensor") or hasattr(parameter, "ds_id")
    return 0 if sharded or parameter.is_meta or not parameter.numel() else parameter.data_ptr()


def weights_hash(model: nn.Module) -> str:
    """Hash names, dtypes, shapes and bytes of the base's parameters and persistent buffers.

    Sharded parameters (ZeRO-3, DTensor) are gathered one by one, so every process has to call this.

    Raises:
        InputError: weights are on the meta device.
    """
    return _tensors_hash(base_tensors(model))


def adapter_hash(model: nn.Module, adapter: str) -> str:
    """Hash the weights and the configuration of one adapter of a model; its name does not matter.

    Raises:
        InputError: the model has no such adapter.
    """
    from peft import get_peft_model_state_dict

    configs: Any = getattr(model, "peft_config", {})
    if adapter not in configs:
        adapters = ", ".join(configs) or "none"
        raise InputError(
            f"The reference's adapter {adapter!r} is not in the model; its adapters are {adapters}. Load it "
            "before the run."
        )
    tensors = get_peft_model_state_dict(
        model, state_dict=model.state_dict(keep_vars=True), adapter_name=adapter, save_embedding_layers=False
    )
    config = {k: v for k, v in configs[adapter].to_dict().items() if k not in NOT_THE_FORWARD}
    return combined(_sorted_json(config), _tensors_hash(tensors)).hex()


def _sorted_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=lambda x: sorted(map(str, x)) if isinstance(x, set) else str(x))


def _tensors_hash(tensors: Mapping[str, Any]) -> str:
    _check_present(tensors)
    with hashing_threads() as pool:
        digests = [_value_digest(pool, name, tensors[name]) for name in sorted(tensors)]
        return combined("tensors", len(digests), digests=(digest() for digest in digests)).hex()


def _check_present(tensors: Mapping[str, Any]) -> None:
    empty = [name for name, value in tensors.items() if isinstance(value, torch.Tensor) and value.is_meta]
    if empty:
        raise InputError(
            f"{len(empty)} weights of the reference are on the meta device (first: {empty[0]}), so they have no values "
            "to hash. Load the model before using it as a reference."
        )


def _value_digest(pool: ThreadPoolExecutor, name: str, value: Any) -> Callable[[], bytes]:
    """Start hashing a value and return a function that waits for its digest."""
    if not isinstance(value, torch.Tensor):  # metadata of a quantized layer
        digest = combined(name, repr(value))
        return lambda: digest
    with unsharded(value) as tensor:
        inner = _inner_tensors(tensor)
        if inner is not None:
            digests = [_value_digest(pool, f"{name}.{part}", packed) for part, packed in inner]
            return lambda: combined(name, "packed", digests=(digest() for digest in digests))
        chunks = _chunks(pool, tensor)
        header = (name, str(tensor.dtype), *tensor.shape)
        if tensor is not value or tensor.device.type != "cpu" or hasattr(value, "ds_id"):
            digest = _wait(header, chunks)  # before the copy of the next one is made
            return lambda: digest
    return lambda: _wait(header, chunks)


def _wait(header: tuple[str | int, ...], chunks: list[Future[bytes]]) -> bytes:
    return combined(*header, digests=(chunk.result() for chunk in chunks))


def _chunks(pool: ThreadPoolExecutor, tensor: torch.Tensor) -> list[Future[bytes]]:
    as_bytes = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)  # numpy knows no bfloat16 and no float8
    return chunks_of_memory(pool, as_bytes.numpy().data)


@contextmanager
def unsharded(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the tensor with all its values, gathered if ZeRO-3 or FSDP2 has sharded it."""
    if hasattr(tensor, "full_tensor"):
        yield tensor.full_tensor()  # pyright: ignore[reportAttributeAccessIssue]  (of DTensor)
        return
    with _gathered(tensor) if hasattr(tensor, "ds_id") else nullcontext():
        yield tensor


def _gathered(tensor: torch.Tensor) -> Any:
    import deepspeed  # pyright: ignore[reportMissingImports]  (an extra)

    return deepspeed.zero.GatheredParameters([tensor])  # without it, TRL hashes every model alike


def _inner_tensors(tensor: torch.Tensor) -> list[tuple[str, Any]] | None:
    """Return the tensors that a packed tensor consists of, None for a plain one."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return None
    names, context = tensor.__tensor_flatten__()  # pyright: ignore[reportAttributeAccessIssue]
    return [*((name, getattr(tensor, name)) for name in names), ("context", context)]
