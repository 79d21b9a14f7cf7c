"""What a backbone takes as its attention mask for a row of token trees."""

from __future__ import annotations

from typing import Any

import torch

from .block_masks import block_mask
from .tree_attention import TreeMask
from .trees import Reach, Trees

FLEX = "flex_attention"


def tree_masks(config: Any, trees: Trees, device: torch.device) -> Any:
    """Build the mask of a row of token trees, as the backbone of a model with `config` takes it.

    Args:
        config: the text model's configuration.
        trees: the row's layout.
        device: of the model.

    Returns:
        One mask, or a dict by layer type where the layers differ.
    """
    make = block_mask if config._attn_implementation == FLEX else TreeMask.of
    masks = {kind: make(trees, reach_of(config, kind), device) for kind in layer_kinds(config)}
    return masks if len(masks) > 1 else next(iter(masks.values()))


def layer_kinds(config: Any) -> list[str]:
    """Return the kinds of attention layers.

    Seam: transformers makes one mask for each of `config.layer_types`, or else by `sliding_window` and
    `attention_chunk_size`; a backbone takes ready masks, one or a dict of them by these names.
    """
    layer_types = getattr(config, "layer_types", None)
    if layer_types:
        return sorted(set(layer_types))
    if getattr(config, "sliding_window", None) is not None:
        return ["sliding_attention"]
    if getattr(config, "attention_chunk_size", None) is not None:
        return ["chunked_attention"]
    return ["full_attention"]


def reach_of(config: Any, kind: str) -> Reach:
    """Return the sliding window and the chunk size of a kind of layer."""
    return (
        getattr(config, "sliding_window", None) if kind == "sliding_attention" else None,
        getattr(config, "attention_chunk_size", None) if kind == "chunked_attention" else None,
    )
