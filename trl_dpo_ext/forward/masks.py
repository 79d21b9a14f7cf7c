"""Attention masks of rows with branches, in the form that each attention implementation takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .tree_rows import PADDING, SHARED_PREFIX

AttentionMask = Any
"""None, a 4-D tensor, a BlockMask, or a dict of these by layer type."""


@dataclass(frozen=True, slots=True)
class TreeMask:
    """A mask function of indices for flex_attention: which token of a row may attend to which."""

    branch: torch.Tensor
    """(rows, width): 0 on the shared prefix, 1, 2, ... on branches, -1 on padding."""
    position_ids: torch.Tensor
    """(rows, width)"""
    segment: torch.Tensor | None = None
    """(rows, width): which of several packed sequences a token belongs to; None where a row is one sequence."""
    window: int | None = None
    chunk: int | None = None

    def __call__(self, row: Any, _head: Any, query: Any, key: Any) -> torch.Tensor:
        """Return True where `query` attends to `key`, both indices into the row numbered `row`."""
        ours, theirs = self.branch[row, query], self.branch[row, key]
        seen = (key <= query) & ((theirs == SHARED_PREFIX) | (theirs == ours)) & (theirs != PADDING)
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
        """Return a boolean tensor, (rows, 1, width, width), true where a query (third) attends to a key (fourth)."""
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
    """Build the mask of rows with several branches or segments, as the backbone of a model with `config` takes it.

    Rows of one branch each need none: they are ordinary causal rows, in which padding on the right changes nothing.

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


def _reach(config: Any, kind: str) -> tuple[int | None, int | None]:
    """Return the sliding window and the chunk size of a kind of layer."""
    return (
        getattr(config, "sliding_window", None) if kind == "sliding_attention" else None,
        getattr(config, "attention_chunk_size", None) if kind == "chunked_attention" else None,
    )


def _boolean(mask: TreeMask, _dtype: torch.dtype) -> torch.Tensor:
    return mask.as_tensor()


def _additive(mask: TreeMask, dtype: torch.dtype) -> torch.Tensor:
    # Eager attention adds its mask to the scores; a boolean one would be taken as 0 and 1, without an error.
    seen = mask.as_tensor()
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def _blocks(mask: TreeMask, _dtype: torch.dtype) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    rows, width = mask.branch.shape
    return create_block_mask(mask, rows, None, width, width, device=mask.branch.device)


_FORMS: dict[str, Callable[[TreeMask, torch.dtype], Any]] = {
    "sdpa": _boolean,
    "eager": _additive,
    "flex_attention": _blocks,
}
MASKED_ATTENTION = frozenset(_FORMS)
"""Attention implementations that take a mask of any shape."""
