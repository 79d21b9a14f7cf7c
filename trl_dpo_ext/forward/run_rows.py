"""Run a model on packed or padded rows; the LM head works only on scored positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from .. import _trl
from ..errors import InputError
from .block_masks import fed_width
from .masks import FLEX, tree_masks
from .packing import Packed
from .tree_attention import TreeAttention
from .trees import on_device


def sequence_logps(
    model: Callable[..., Any], causal: Any, packed: Packed, labels: Sequence[np.ndarray], starts: Sequence[int]
) -> torch.Tensor:
    """Compute the log-prob of every label of the packed sequences, one sequence after the other.

    Args:
        model: the module to call: the model itself, or the wrapper of DDP, FSDP, DeepSpeed or PEFT around it.
        causal: the causal model inside, with TRL's fused head.
        packed: the sequences; `packing_problems` tells which models cannot take them in one row.
        labels: for each sequence, the tokens to predict, (labels,).
        starts: for each sequence, the index of the token that predicts its first label.

    Returns:
        Shape (labels of all sequences,), float32, with a gradient if gradients are enabled.
    """
    scored = [
        places[start : start + len(wanted)] for places, wanted, start in zip(packed.places, labels, starts, strict=True)
    ]
    return run_rows(model, causal, packed, np.concatenate(labels), np.concatenate(scored)).log_probs[0]


def run_rows(
    model: Callable[..., Any],
    causal: Any,
    packed: Packed,
    labels: np.ndarray,
    scored: np.ndarray,
    router_tokens: np.ndarray | None = None,
    **keywords: Any,
) -> Any:
    """Call `model` on rows and return the fused head's output, whose per-token fields have shape (1, scored).

    Args:
        model, causal, packed: see `sequence_logps`.
        labels, scored: (scored,) the token to predict, and the flat index in (rows x width) at which it is predicted.
        router_tokens: see `_trl.override_attention_mask`.
        **keywords: for the model.

    Raises:
        InputError: the model's attention has not looked at the layout of the row.
    """
    device, config = causal.device, causal.config.get_text_config()
    packed = _as_attention_takes(causal, packed)
    trees = packed.trees
    positions = np.zeros(0, dtype=np.int64) if trees is None else trees.positions
    ids, positions, shift_labels, places, routed = _together(
        device, packed.input_ids, positions[None], labels[None], scored, router_tokens
    )
    mask, reads = None, 0
    if trees is not None:
        keywords["position_ids"] = positions
        reads, mask = trees.reads, tree_masks(config, trees, device)
    with _trl.override_attention_mask(causal, mask, places, None if router_tokens is None else routed):
        output = model(input_ids=ids, shift_labels=shift_labels, fused_lm_head=True, use_cache=False, **keywords)
    if config._attn_implementation == FLEX:
        _trl.warn_at_flex_limit()
    if trees is not None and trees.reads == reads:
        raise InputError(
            f"share_prompt and padding_free cannot be used here: no layer of {type(causal).__name__} has asked for the "
            "layout of the row, so another library has replaced its attention. Drop both flags."
        )
    return output


def _as_attention_takes(causal: Any, packed: Packed) -> Packed:
    """Prepare the model's attention for rows, and rows for its attention."""
    if causal.config.get_text_config()._attn_implementation == FLEX:
        _trl.raise_flex_limit()
        return packed if packed.trees is None else packed.filled(fed_width(packed.trees.width))
    if packed.trees is not None:
        _trl.replace_attention(causal, TreeAttention)
    return packed


def _together(device: torch.device, *arrays: np.ndarray | None) -> list[torch.Tensor]:
    """Copy integer arrays to a device, all in one copy."""
    given = [np.zeros(0, dtype=np.int64) if array is None else array for array in arrays]
    flat = on_device(np.concatenate([array.ravel() for array in given]).astype(np.int64, copy=False), device)
    parts = flat.split([array.size for array in given])
    return [part.view(array.shape) for part, array in zip(parts, given, strict=True)]
