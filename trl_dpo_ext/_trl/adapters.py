"""Adapters: loaded, taken out of a model, renamed, and saved where loaders look."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled
from trl.trainer import dpo_trainer

from .adapter_copy import copy_adapter
from .constructor import create_stub
from .patching import temporarily

FROZEN = "ref"
"""The name under which TRL looks for the frozen copy of an adapter."""
TRAINED = "default"
"""The name under which TRL and peft look for the adapter that trains."""
NOT_THE_FORWARD = {
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "eva_config", "inference_mode",
    "init_lora_weights", "init_weights", "loftq_config", "lora_ga_config", "lora_dropout", "peft_version", "revision",
    "runtime_config", "task_type",
}  # fmt: skip
"""Fields of an adapter's configuration about its origin and its training, not about what it computes."""


def adapter_kind(config: Any) -> str:
    """The method of a PEFT configuration, such as `LORA`."""
    return str(getattr(config.peft_type, "value", config.peft_type))


def has_adapter_inside(model: Any) -> bool:
    """Whether transformers has put an adapter into a model, which is then no `PeftModel`."""
    return not isinstance(model, PeftModel) and bool(getattr(model, "_hf_peft_config_loaded", False))


def adapters_of(model: Any) -> tuple[dict[str, Any], list[str]]:
    """The configurations of a model's adapters by name, and the names of the active ones.

    Seam: a layer with an adapter names the active ones; transformers' method refuses some versions of peft.
    """
    if isinstance(model, PeftModel):
        return model.peft_config, list(model.active_adapters)
    layers = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    return model.peft_config, list(dict.fromkeys(name for layer in layers for name in layer.active_adapters))


def active_inside(model: Any) -> list[str]:
    """The names of the adapters that compute in a model that is no `PeftModel`, whoever has put them there.

    Seam: transformers' `add_adapter` and peft's `inject_adapter_in_model` both keep `peft_config` on the model.
    """
    if isinstance(model, PeftModel) or not hasattr(model, "peft_config"):
        return []
    return sorted(adapters_of(model)[1])


def wraps_layer(module: nn.Module) -> bool:
    """Whether an adapter has put a module around a layer of the model."""
    return isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))


def merged_adapters(model: nn.Module) -> list[str]:
    """Names of the layers into which an adapter is merged.

    Seam: PEFT's wrapper of a layer says so as `merged`.
    """
    return [name for name, module in model.named_modules() if wraps_layer(module) and getattr(module, "merged", False)]


def adapts_head(config: Any) -> bool:
    """Whether a PEFT configuration lists the head among its targets; TRL reads its weight past the adapter."""
    targets = getattr(config, "target_modules", None)
    return not isinstance(targets, str) and any(str(name).split(".")[-1] == "lm_head" for name in targets or ())


def missing_targets(config: Any, model: nn.Module) -> list[str]:
    """The targets of a PEFT configuration that are no modules of a model, as they are written.

    Seam: PEFT raises if none is there, and ignores those that are not beside others. A string is a pattern of whole
    names but for "all-linear", and a list holds names, or ends of names. Without targets, PEFT has its own.
    """
    targets = getattr(config, "target_modules", None)
    names = [name for name, _ in model.named_modules()]
    if not targets or targets == "all-linear":
        return []
    if isinstance(targets, str):
        return [] if any(map(re.compile(targets).fullmatch, names)) else [targets]
    return sorted(each for each in targets if not any(f".{name}".endswith(f".{each}") for name in names))


def are_switched_off(model: Any) -> bool:
    """Whether a model's adapters are loaded but do not compute."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    return any(layer.disable_adapters for layer in layers)


def outside_trains(model: Any) -> bool:
    """Whether weights outside the adapters of a model are trained."""
    inside = {id(tensor) for tensor in _adapter_tensors(model).values()}
    return any(parameter.requires_grad and id(parameter) not in inside for parameter in model.parameters())


@contextlib.contextmanager
def loading_policy(finish: Callable[[Any], Any]) -> Iterator[None]:
    """Pass every model that TRL's constructor loads by name through `finish`.

    Seam: policy and reference are loaded through `create_model_from_path` as found in the trainer's module.
    """
    load = dpo_trainer.create_model_from_path
    if load is create_stub:  # a model of a few kilobytes, to which no adapter fits
        yield
        return
    with temporarily(dpo_trainer, create_model_from_path=lambda *args, **kwargs: finish(load(*args, **kwargs))):
        yield


def load_adapter(base: Any, folder: str, **settings: Any) -> PeftModel:
    """Put a saved adapter on its base, to be trained further.

    Under ZeRO-3 it keeps the dtype of the base, as TRL has it for new adapters.
    """
    quantized = getattr(base, "is_loaded_in_4bit", False) or getattr(base, "is_loaded_in_8bit", False)
    cast = quantized or not is_deepspeed_zero3_enabled()
    return PeftModel.from_pretrained(base, folder, is_trainable=True, autocast_adapter_dtype=cast, **settings)


def as_peft_model(model: Any) -> PeftModel | None:
    """Turn a model with one adapter inside into the `PeftModel` of the same weights; None if it cannot be done exactly.

    The model is changed: its adapter is taken out, and put back by peft under the same names.
    """
    ((name, config),) = model.peft_config.items()
    held = _adapter_tensors(model)
    for path, module in list(model.named_modules()):
        inner, (parent, _, child) = _wrapped(module), path.rpartition(".")
        with contextlib.suppress(AttributeError):  # what was inside a wrapper is gone with it
            if inner is not None and getattr(model.get_submodule(parent), child) is module:
                setattr(model.get_submodule(parent), child, inner)
    del model.peft_config
    model._hf_peft_config_loaded = False
    config.inference_mode, config.base_model_name_or_path = False, model.name_or_path
    adapted = get_peft_model(model, config, adapter_name=name)
    wanted = _adapter_tensors(model)
    if {key: tensor.shape for key, tensor in wanted.items()} != {key: tensor.shape for key, tensor in held.items()}:
        return None
    for key, tensor in wanted.items():
        tensor.data.copy_(held[key].data)
    return adapted


def _wrapped(module: nn.Module) -> nn.Module | None:
    """The module that an adapter has wrapped; None for any other module.

    Seam: a tuner layer gives it as `get_base_layer()`, a saved module or an embedding with trained tokens as
    `original_module`.
    """
    if isinstance(module, AuxiliaryTrainingWrapper):
        inner = module.original_module
        return inner.get_base_layer() if isinstance(inner, BaseTunerLayer) else inner
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else None


def _adapter_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers that the adapters of a model have added, by name."""
    wrapped = {path: inner for path, module in model.named_modules() if (inner := _wrapped(module)) is not None}
    inside = {id(tensor) for inner in wrapped.values() for _, tensor in _tensors(inner)}
    paths = tuple(f"{path}." for path in wrapped)
    return {name: tensor for name, tensor in _tensors(model) if name.startswith(paths) and id(tensor) not in inside}


def _tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def rename_frozen_name(model: PeftModel) -> None:
    """Give the active adapter another name if it has the one that TRL gives to the frozen copy."""
    configs, active = adapters_of(model)
    if active != [FROZEN]:
        return
    name = TRAINED if TRAINED not in configs else "policy"
    copy_adapter(model, FROZEN, name, frozen=False)
    model.set_adapter(name)
    model.delete_adapter(FROZEN)


@contextlib.contextmanager
def saved_on_top(model: Any, frozen: bool) -> Iterator[None]:
    """Let a `PeftModel` save the adapter that trains at the top of a folder, and others not.

    Args:
        model: the policy, without what training has wrapped around it.
        frozen: whether to save its frozen copy too, with which a resumed run restores its reference.

    Seam: transformers saves a model by `save_pretrained(folder, ...)`; peft writes an adapter that is not called
    "default" into a folder of its name, and all adapters unless `selected_adapters` names some.
    """
    if not isinstance(model, PeftModel) or len(adapters_of(model)[1]) != 1:
        yield
        return
    save = model.save_pretrained

    def save_trained(folder: Any, *args: Any, **kwargs: Any) -> None:
        configs, (active,) = adapters_of(model)
        copies = [FROZEN] if frozen and FROZEN in configs and active != FROZEN else []
        save(folder, *args, **{**kwargs, "selected_adapters": [active, *copies]})
        if active != TRAINED and kwargs.get("is_main_process", True):
            _move_up(Path(folder) / active)

    with temporarily(model, save_pretrained=save_trained):
        yield


def _move_up(folder: Path) -> None:
    for file in folder.iterdir():
        os.replace(file, folder.parent / file.name)
    with contextlib.suppress(OSError):
        folder.rmdir()


@contextlib.contextmanager
def loaded_from_top(model: Any, checkpoint: str) -> Iterator[None]:
    """Let a `PeftModel` load the adapter at the top of a checkpoint into the one that trains.

    Seam: transformers loads adapters by `load_adapter(folder, name, ...)`. If a checkpoint has further ones in folders,
    it takes the one at the top for "default", whatever trains; older versions do not load that one at all.
    """
    files = ("adapter_model.safetensors", "adapter_model.bin")
    top = any(os.path.isfile(os.path.join(checkpoint, file)) for file in files)
    if not isinstance(model, PeftModel) or not top or len(adapters_of(model)[1]) != 1:
        yield
        return
    load, (active,), loaded = model.load_adapter, adapters_of(model)[1], []

    def load_each(folder: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        if os.path.samefile(folder, checkpoint):
            loaded.append(name)
            name, kwargs = active, {**kwargs, "is_trainable": True}
        return load(folder, name, *args, **kwargs)

    with temporarily(model, load_adapter=load_each):
        yield
        if not loaded and FROZEN in model.peft_config and os.path.isdir(os.path.join(checkpoint, FROZEN)):
            model.load_adapter(checkpoint, active)
            model.set_adapter(active)
