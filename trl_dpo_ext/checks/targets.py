"""Whether the modules that an adapter is to adapt are in the model, before its weights are loaded."""

from __future__ import annotations

import copy
import difflib
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

from .. import _trl
from .configuration import named_class


def target_problems(policy: Any, config: Any, peft_config: Any) -> tuple[list[str], list[str]]:
    """Return why a new adapter does not fit a model: problems, and warnings of targets that are ignored.

    Args:
        policy: the model, or its name.
        config: its configuration; None where it could not be read.
        peft_config: of the new adapter, or None.
    """
    targets = getattr(peft_config, "target_modules", None)
    if not targets or targets == "all-linear":
        return [], []
    model = _empty(config) if isinstance(policy, str) else policy
    if not isinstance(model, nn.Module) or _trl.is_peft_model(model):
        return [], []
    missing = _trl.missing_targets(peft_config, model)
    if not missing:
        return [], []
    text = f"{type(model).__name__} has no module {' or '.join(missing)} (--lora_target_modules)"
    if isinstance(targets, str) or len(missing) == len(targets):
        return [f"{text}. {_hint(model, missing)}"], []
    return [], [f"{text}, so the adapter is put on its other targets alone. {_hint(model, missing)}"]


def _empty(config: Any) -> nn.Module | None:
    """The model without weights; None if it cannot be made so, or comes with its checkpoint."""
    kind: Any = None if config is None else named_class(config)
    if kind is None:
        return None
    try:
        with torch.device("meta"):
            return kind(copy.deepcopy(config))
    except Exception:  # whatever a model computes with its weights; then PEFT tells
        return None


def _hint(model: nn.Module, missing: list[str]) -> str:
    """Name what was probably meant, or what there is."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    linear = {
        name.split(".")[-1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    near = [close for name in missing for close in difflib.get_close_matches(name, linear, n=1)]
    if near:
        return f"Did you mean {' and '.join(dict.fromkeys(near))}?"
    return f"Choose from {', '.join(sorted(linear))}, or set all-linear."
