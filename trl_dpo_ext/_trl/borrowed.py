"""A model that is lent to a trainer which trains nothing, and given back as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from .adapter_copy import gradients_kept
from .adapters import FROZEN, has_adapter_inside
from .models import is_peft_model, without_adapter


@contextlib.contextmanager
def borrowed(model: Any) -> Iterator[None]:
    """Let a trainer take a model, whose weights may be frozen; afterwards the model is as it was, on its device.

    Seam: TRL's constructor refuses nothing that has a parameter to train, adds the frozen copy of an adapter, replaces
    `forward`, and sets the pad token of both configurations.
    """
    causal = without_adapter(model)
    adapted = is_peft_model(model)
    kept = not adapted or FROZEN in model.peft_config
    forwards = [(module, vars(module).get("forward")) for module in {id(m): m for m in (model, causal)}.values()]
    configs = [config for config in (_text(causal), getattr(causal, "generation_config", None)) if config is not None]
    pads = [(config, getattr(config, "pad_token_id", None)) for config in configs]
    try:
        with gradients_kept(model):
            _require_gradients(model, adapted)
            yield
    finally:
        if not kept and FROZEN in model.peft_config:
            model.delete_adapter(FROZEN)
        for config, pad in pads:
            config.pad_token_id = pad
        for module, forward in forwards:
            vars(module).pop("forward", None)
            if forward is not None:
                module.forward = forward


def _text(causal: Any) -> Any:
    config: Any = getattr(causal, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else None


def _require_gradients(model: Any, adapted: bool) -> None:
    if has_adapter_inside(model):
        return
    active = f".{model.active_adapter}." if adapted and isinstance(model.active_adapter, str) else ""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and (active in name):
            parameter.requires_grad_(True)
