"""Find out whether a model gives its own log-probs from rows of several sequences."""

from __future__ import annotations

import inspect
from typing import Any

from transformers.utils.generic import is_flash_attention_requested

from .. import _trl
from .masks import layer_kinds

# How far back a layer attends: to everything, within a sliding window, or within its own chunk.
_LAYER_KINDS = ("full_attention", "sliding_attention", "chunked_attention")
_KNOWN_ATTENTION = ("sdpa", "flex_attention", "eager")


def packing_problems(model: Any, longest: int | None = None) -> list[str]:
    """List the reasons why several sequences in one row do not give this model's own log-probs.

    The model and its configuration are asked. Rows of one sequence each are exact for every causal model.

    Args:
        model: a causal language model, or a PEFT model around one.
        longest: length that no sequence exceeds; None if there is no bound.

    Returns:
        One sentence per problem, with what to change; empty if there is none.

    Seam: transformers' models name their attention in `config._attn_implementation` and hold their backbone as
    `base_model`.
    """
    causal = _trl.without_adapter(model)
    adapters = getattr(model, "peft_config", {})
    adapters = adapters.values() if isinstance(adapters, dict) else [adapters]
    config, name = causal.config.get_text_config(), type(causal).__name__
    problems = [
        f"{_trl.adapter_kind(adapter)} prepends virtual tokens to every row; use LoRA or another adapter of weights"
        for adapter in adapters
        if adapter.is_prompt_learning
    ]
    if causal.base_model is causal:
        problems.append(
            f"{name} has no separate backbone (its base_model is itself), which TRL's head needs; load its text model"
        )
        return problems
    attention = config._attn_implementation
    flash = is_flash_attention_requested(config)
    if attention not in _KNOWN_ATTENTION and not flash:
        problems.append(f"attn_implementation={attention!r} is not supported; use {', '.join(_KNOWN_ATTENTION)}")
    elif not _trl.has_interface(causal) or getattr(config, "reorder_and_upcast_attn", False):
        problems.append(
            f"{name} does not call its attention through transformers' interface; use another model, or a transformers "
            "in which it does"
        )
    elif flash and "chunked_attention" in layer_kinds(config):
        problems.append(f"{name} attends in chunks, which {attention} does not know; use sdpa")
    if not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", False):
        problems.append(f"{name} has bidirectional attention, so one sequence would change another; use a causal model")
    problems += _state_problems(causal, config, name)
    problems += _position_problems(causal.base_model, config, name, longest)
    return problems


def _state_problems(causal: Any, config: Any, name: str) -> list[str]:
    """List the layers that read a row in order, and so carry one sequence into the next.

    Seam: transformers marks a model that has a recurrent state with `_is_stateful`, or names such layers in
    `config.layer_types`.
    """
    other = sorted(set(getattr(config, "layer_types", None) or []) - set(_LAYER_KINDS))
    if other:
        layers = ", ".join(other)
        return [f"{name} has {layers} layers, which carry state from one sequence into the next; use another model"]
    if getattr(causal, "_is_stateful", False):
        return [f"{name} has a recurrent state, which one sequence passes on to the next; use another model"]
    return []


def _position_problems(backbone: Any, config: Any, name: str, longest: int | None) -> list[str]:
    """List the parts of a model that measure positions in the row, and not by `position_ids`."""
    problems = []
    takes = inspect.signature(type(backbone).forward).parameters
    if not {"position_ids", "attention_mask"} <= set(takes):
        problems.append(f"{name} takes no position_ids, so sequences would get wrong positions; use another model")
    if getattr(config, "alibi", False):
        problems.append(f"{name} measures distances in the row (alibi=True); use a checkpoint without ALiBi")
    if getattr(config, "attention_types", None):
        problems.append(f"{name} measures its local attention in the row (attention_types); use another model")
    limit = _changing_rope_limit(config)
    if limit is not None and (longest is None or longest > limit):
        problems.append(
            f"{name}'s rotary embedding depends on the longest sequence of the batch beyond {limit} tokens; set "
            f"max_length to at most {limit}"
        )
    return problems


def _changing_rope_limit(config: Any) -> int | None:
    """Return the length beyond which dynamic-NTK and long-rope depend on the batch; None for other embeddings."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # One set of parameters, or one for each layer type.
    for each in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        kind = str(each.get("rope_type", each.get("type", "")))
        if "dynamic" in kind or kind == "longrope":
            original = each.get("original_max_position_embeddings")
            return original or getattr(config, "original_max_position_embeddings", config.max_position_embeddings)
    return None
