"""The mask that flex_attention takes, made from where the nodes of a row stand: nothing of width x width is made."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .trees import Reach, Trees, on_device

BLOCK = 128
"""Queries and keys of one block: the default of flex_attention."""


def fed_width(width: int) -> int:
    """Return the width at which a row is fed to flex_attention.

    A kernel is compiled for one block, for several, and for a row that ends within a block: rows in whole blocks, at
    least two, need one.
    """
    return max(-(-width // BLOCK), 2) * BLOCK


def block_mask(trees: Trees, reach: Reach, device: torch.device) -> Any:
    """Make or find the mask of flex_attention for a row, which policy and reference are given alike.

    Args:
        trees: the row's layout.
        reach: window and chunk size of the layer.
        device: of the model.
    """
    trees.reads += 1  # an attention function that is no flex_attention cannot take this mask
    key = (reach, device)
    if key not in trees.block_masks:
        trees.block_masks[key] = _made(trees, reach, device)
    return trees.block_masks[key]


def _made(trees: Trees, reach: Reach, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import BlockMask

    partial, full = visible_blocks(trees, reach)
    parts = [trees.subtree_ends, trees.positions, *_listed(partial), *_listed(full)]
    ends, positions, *lists = on_device(np.concatenate([each.ravel() for each in parts]), device).split(
        [each.size for each in parts]
    )
    lists = [each.view(1, 1, *part.shape).int() for each, part in zip(lists, parts[2:], strict=True)]
    window, chunk = reach

    def sees(_row: Any, _head: Any, query: Any, key: Any) -> torch.Tensor:
        seen = (key <= query) & (query < ends[key])
        # Windows are measured in positions: in the row, a branch may stand between a token and its past.
        here, there = positions[query], positions[key]
        if window is not None:
            seen = seen & (here - there < window)
        if chunk is not None:
            seen = seen & (here // chunk == there // chunk)
        return seen

    sizes = (trees.width, trees.width)
    return BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=sizes)


def visible_blocks(trees: Trees, reach: Reach) -> tuple[np.ndarray, np.ndarray]:
    """Find the blocks of keys that a block of queries sees in part and in full, (blocks, blocks) bool each.

    The row is cut where nodes and blocks begin. Of two pieces, the places and positions of their ends tell whether any
    or all tokens of one see those of the other.
    """
    cuts = np.union1d(np.arange(0, trees.width, BLOCK), [start for start in trees.starts if start < trees.width])
    sizes = np.diff(cuts, append=trees.width)
    first = trees.positions[cuts]
    last = first + sizes - 1
    ends = trees.subtree_ends[cuts]
    before = (cuts[None, :] < cuts[:, None]) & (cuts[:, None] < ends[None, :])
    window, chunk = reach
    some = every = before
    if window is not None:
        some = some & (first[:, None] - last[None, :] < window)
        every = every & (last[:, None] - first[None, :] < window)
    if chunk is not None:
        some = some & (first[:, None] // chunk == last[None, :] // chunk)
        every = every & (last[:, None] // chunk == first[None, :] // chunk)
    some = some | np.eye(len(cuts), dtype=bool)  # every token sees itself
    starts = np.searchsorted(cuts, np.arange(0, trees.width, BLOCK))
    some, full = (
        combine.reduceat(combine.reduceat(seen, starts, axis=0), starts, axis=1)
        for combine, seen in ((np.logical_or, some), (np.logical_and, every))
    )
    if trees.width % BLOCK:
        full[-1] = False
    return some & ~full, full


def _listed(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number of blocks in each row, (blocks,), and their indices, those that count in front, (blocks, blocks)."""
    return blocks.sum(axis=1), np.argsort(~blocks, axis=1, kind="stable")
