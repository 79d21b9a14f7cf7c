"""What a row of branches may see, in the form that a model's attention takes; and which models cannot be told."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils.generic import is_flash_attention_requested

from .tree_rows import PADDING, TRUNK

# How far back a layer looks: everything, a sliding window, or its own chunk.
_LAYER_KINDS = ("full_attention", "sliding_attention", "chunked_attention")
_KNOWN_ATTENTION = "sdpa, flex_attention or eager"

AttentionMask = Any
"""None, a 4-D tensor, a BlockMask, or a dict of these by layer type."""


@dataclass(frozen=True, slots=True)
class TreeMask:
    """Which token may see which, by where they stand in their row; a function of indices, as flex_attention asks."""

    branch: torch.Tensor
    """(rows, width): 0 on the trunk, 1, 2, ... on branches, -1 on padding."""
    position_ids: torch.Tensor
    """(rows, width)"""
    segment: torch.Tensor | None = None
    """(rows, width): which of several packed sequences a token belongs to; None where a row is one sequence."""
    window: int | None = None
    chunk: int | None = None

    def __call__(self, row: Any, _head: Any, query: Any, key: Any) -> torch.Tensor:
        """Whether `query` sees `key`, both indices into the row numbered `row`."""
        ours, theirs = self.branch[row, query], self.branch[row, key]
        seen = (key <= query) & ((theirs == TRUNK) | (theirs == ours)) & (theirs != PADDING)
        if self.segment is not None:
            seen = seen & (self.segment[row, query] == self.segment[row, key])
        # Windows are measured in positions: in the row, the other branch may stand between a token and its past.
        here, there = self.position_ids[row, query], self.position_ids[row, key]
        if self.window is not None:
            seen = seen & (here - there < self.window)
        if self.chunk is not None:
            seen = seen & (here // self.chunk == there // self.chunk)
        return seen | (key == query)  # padding sees itself: a softmax over nothing is NaN

    def as_tensor(self) -> torch.Tensor:
        """Boolean, (rows, 1, width, width), true where a query (third) sees a key (fourth)."""
        rows, width = self.branch.shape
        index = torch.arange(width, device=self.branch.device)
        row = torch.arange(rows, device=self.branch.device)
        return self(row[:, None, None], None, index[None, :, None], index[None, None, :]).unsqueeze(1)


def attention_mask(
    config: Any,
    branch: torch.Tensor,
    position_ids: torch.Tensor,
    dtype: torch.dtype,
    segment: torch.Tensor | None = None,
) -> AttentionMask:
    """The mask of rows with several branches (or several segments), as the backbone of a model with `config` takes it.

    Rows of one branch each need none: they are ordinary causal rows, and what is on the right harms nobody.

    Args:
        config: the text model's configuration.
        branch, position_ids, segment: (rows, width); see `TreeMask`.
        dtype: of the model's activations, for eager attention.

    Returns:
        One mask, or a dict by layer type where the layers differ.
    """
    form = _FORMS.get(config._attn_implementation)
    if form is None:  # flash attention, which tells packed sequences apart by their positions
        return None
    masks = {
        kind: form(TreeMask(branch, position_ids, segment, *_reach(config, kind)), dtype)
        for kind in _layer_kinds(config)
    }
    return masks if len(masks) > 1 else next(iter(masks.values()))


def _layer_kinds(config: Any) -> list[str]:
    """The kinds of attention layers, by the rule by which transformers itself makes masks for a configuration."""
    layer_types = getattr(config, "layer_types", None)
    if layer_types:
        return sorted(set(layer_types))
    if getattr(config, "sliding_window", None) is not None:
        return ["sliding_attention"]
    if getattr(config, "attention_chunk_size", None) is not None:
        return ["chunked_attention"]
    return ["full_attention"]


def _reach(config: Any, kind: str) -> tuple[int | None, int | None]:
    """Sliding window and chunk size of a kind of layer."""
    return (
        getattr(config, "sliding_window", None) if kind == "sliding_attention" else None,
        getattr(config, "attention_chunk_size", None) if kind == "chunked_attention" else None,
    )


def _boolean(sight: TreeMask, _dtype: torch.dtype) -> torch.Tensor:
    return sight.as_tensor()


def _additive(sight: TreeMask, dtype: torch.dtype) -> torch.Tensor:
    # Eager attention adds its mask to the scores; a boolean one would be taken as 0 and 1, without an error.
    seen = sight.as_tensor()
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def _blocks(sight: TreeMask, _dtype: torch.dtype) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    rows, width = sight.branch.shape
    return create_block_mask(sight, rows, None, width, width, device=sight.branch.device)


_FORMS: dict[str, Callable[[TreeMask, torch.dtype], Any]] = {
    "sdpa": _boolean,
    "eager": _additive,
    "flex_attention": _blocks,
}


def branch_problems(model: Any, longest: int | None = None) -> list[str]:
    """Why rows with several branches cannot give this model's own log-probs; empty where they can.

    Found by asking the model and its configuration. Rows of one branch each are fine for every causal model.

    Args:
        model: a causal language model, or a PEFT model around one.
        longest: length that no sequence exceeds; None where there is no bound.

    Returns:
        Each problem in words that name what to change.
    """
    return [*_mask_problems(model), *packing_problems(model, longest)]


def packing_problems(model: Any, longest: int | None = None) -> list[str]:
    """Why several sequences in one row cannot give this model's own log-probs; see `branch_problems`."""
    causal = _causal(model)
    adapters = getattr(model, "peft_config", {})
    adapters = adapters.values() if isinstance(adapters, dict) else [adapters]
    config, name = causal.config.get_text_config(), type(causal).__name__
    problems = [
        f"{adapter.peft_type.value} puts virtual tokens in front of every row; use LoRA or another adapter of weights"
        for adapter in adapters
        if adapter.is_prompt_learning
    ]
    if causal.base_model is causal:
        problems.append(
            f"{name} names no backbone (its base_model is itself), which TRL's head needs; load its text model"
        )
        return problems
    attention = config._attn_implementation
    if attention not in _FORMS and not is_flash_attention_requested(config):
        problems.append(f"attn_implementation={attention!r} is not known; set it to {_KNOWN_ATTENTION}")
    if not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", False):
        problems.append(f"{name} attends to both sides, so one sequence would change another; use another model")
    problems += _state_problems(causal, config, name)
    problems += _position_problems(causal.base_model, config, name, longest)
    return problems


def _mask_problems(model: Any) -> list[str]:
    config = _causal(model).config.get_text_config()
    if not is_flash_attention_requested(config):
        return []
    return [
        f"attn_implementation={config._attn_implementation!r} takes no mask but the causal one; set it to "
        f"{_KNOWN_ATTENTION} (model_init_kwargs or --attn_implementation)"
    ]


def _causal(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _state_problems(causal: Any, config: Any, name: str) -> list[str]:
    """Layers that read the row in order, and so carry one branch into the next."""
    other = sorted(set(getattr(config, "layer_types", None) or []) - set(_LAYER_KINDS))
    if other:
        return [f"{name} has {', '.join(other)} layers, which carry one branch into the next; use another model"]
    if getattr(causal, "_is_stateful", False):
        return [f"{name} keeps a recurrent state, which carries one branch into the next; use another model"]
    return []


def _position_problems(backbone: Any, config: Any, name: str, longest: int | None) -> list[str]:
    """Models whose idea of a position is another than `position_ids`."""
    problems = []
    takes = inspect.signature(type(backbone).forward).parameters
    if not {"position_ids", "attention_mask"} <= set(takes):
        problems.append(f"{name} takes no position_ids, so a branch would stand at the wrong place; use another model")
    if getattr(config, "alibi", False):
        problems.append(f"{name} measures distance in the row (alibi=True); use a checkpoint without it")
    if getattr(config, "attention_types", None):
        problems.append(f"{name} has local attention that is measured in the row (attention_types); use another model")
    limit = _changing_rope_limit(config)
    if limit is not None and (longest is None or longest > limit):
        problems.append(
            f"{name}'s rotary embedding changes with the longest sequence of a batch beyond {limit} tokens, so no two "
            f"batches agree there; set max_length to at most {limit}"
        )
    return problems


def _changing_rope_limit(config: Any) -> int | None:
    """Length beyond which dynamic-NTK and long-rope depend on the batch; None for other embeddings."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # One set of parameters, or one for each layer type.
    for each in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        kind = str(each.get("rope_type", each.get("type", "")))
        if "dynamic" in kind or kind == "longrope":
            original = each.get("original_max_position_embeddings")
            return original or getattr(config, "original_max_position_embeddings", config.max_position_embeddings)
    return None
