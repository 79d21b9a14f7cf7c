"""A row of token trees: what several sequences begin with stands there once, and each continues it as a branch.

    row       p p p p c c c r r | p p c c r r r | ...        one row, no padding
    block 1   q: p p p p c c c       k: the same             causal, square: a node and its first child stand together
    block 2   q: r r                 k: p p p p r r          causal from the bottom right
    rows      p p p p c c c / p p p p r r / p p c c / ...    one plain row for each sequence

An index into the keys of a block is a position in its sequence, so windows and chunks need nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Reach = tuple[int | None, int | None]
"""Window and chunk size of a layer; None where it attends to everything before a token."""


@dataclass(frozen=True, slots=True)
class Block:
    """Places in a row that attend as one: to the places before them in their sequences, and causally to themselves."""

    own: slice
    ahead: tuple[slice, ...]

    @property
    def num_own(self) -> int:
        """Number of queries."""
        return self.own.stop - self.own.start

    @property
    def num_ahead(self) -> int:
        """Number of keys before the first query."""
        return sum(each.stop - each.start for each in self.ahead)


class Trees:
    """Where the sequences of a packed row stand. Made once for a batch, read by every layer, never changed.

    Args:
        lengths: number of tokens of each node, depth first.
        parents: index of each node's parent; -1 for a root.
    """

    def __init__(self, lengths: Sequence[int], parents: Sequence[int]) -> None:
        self.lengths, self.parents = list(lengths), list(parents)
        ends = np.cumsum(self.lengths, dtype=np.int64)
        self.starts = (ends - self.lengths).tolist()
        self.width = int(ends[-1]) if len(ends) else 0
        self.reads = 0
        """How often an attention function has asked for the layout."""
        self.block_masks: dict[tuple[Reach, torch.device], Any] = {}
        """Masks that flex_attention takes; see `block_mask`."""

    @functools.cached_property
    def filled(self) -> Any:
        """Make or find the layout of the row filled up to a width with tokens that no sequence sees."""
        return functools.cache(lambda width: Trees([*self.lengths, width - self.width], [*self.parents, -1]))

    def path(self, node: int) -> list[int]:
        """The nodes from the root to `node`."""
        path: list[int] = []
        while node >= 0:
            path.append(node)
            node = self.parents[node]
        return path[::-1]

    def places(self, node: int) -> np.ndarray:
        """The places of the tokens from the root to the end of `node`, (tokens,)."""
        spans = [np.arange(self.starts[n], self.starts[n] + self.lengths[n]) for n in self.path(node)]
        return np.concatenate(spans)

    @functools.cached_property
    def positions(self) -> np.ndarray:
        """Position of each place in its sequence, (width,)."""
        offsets: list[int] = []
        for parent in self.parents:
            offsets.append(0 if parent < 0 else offsets[parent] + self.lengths[parent])
        shift = np.array(offsets, dtype=np.int64) - self.starts
        return np.arange(self.width) + np.repeat(shift, self.lengths)

    @functools.cached_property
    def subtree_ends(self) -> np.ndarray:
        """Where the subtree of each place's node ends, (width,): only places before that may attend to it."""
        ends = [start + length for start, length in zip(self.starts, self.lengths, strict=True)]
        for node in reversed(range(len(ends))):
            if self.parents[node] >= 0:
                ends[self.parents[node]] = max(ends[self.parents[node]], ends[node])
        return np.repeat(np.array(ends, dtype=np.int64), self.lengths)

    @functools.cached_property
    def blocks(self) -> list[Block]:
        """The row cut into blocks, from its start to its end."""
        cut: list[tuple[int, int, list[tuple[int, int]]]] = []
        for node, (parent, start, length) in enumerate(zip(self.parents, self.starts, self.lengths, strict=True)):
            if parent >= 0 and parent == node - 1:  # a first child continues its parent's block
                begin, _, ahead = cut[-1]
                cut[-1] = (begin, start + length, ahead)
            else:
                cut.append((start, start + length, _joined(self, self.path(parent))))
        return [
            Block(slice(start, end), tuple(slice(*each) for each in ahead)) for start, end, ahead in cut if end > start
        ]

    @functools.cached_property
    def sequences(self) -> list[np.ndarray]:
        """The places of each sequence, from its root to its leaf."""
        inner = set(self.parents)
        return [self.places(node) for node in range(len(self.parents)) if node not in inner]

    def on(self, device: torch.device) -> Indices:
        """The layout as tensors on a device."""
        return self._indices(device)

    @functools.cached_property
    def _indices(self) -> Any:
        return functools.cache(lambda device: Indices(self, device))

    @functools.cached_property
    def visible(self) -> Any:
        """Make or find the mask of a block; see `visible_keys`."""
        return functools.cache(visible_keys)


class Indices:
    """Index tensors of `Trees` on one device, each made when it is first asked for."""

    def __init__(self, trees: Trees, device: torch.device) -> None:
        self._trees, self._device = trees, device
        self._rows: dict[tuple[int, int], tuple[list[torch.Tensor], torch.Tensor]] = {}

    def _tensor(self, values: np.ndarray, dtype: type[np.integer] = np.int64) -> torch.Tensor:
        return on_device(values.astype(dtype, copy=False), self._device)

    @functools.cached_property
    def keys(self) -> torch.Tensor:
        """The place of each key of each block, block after block, (keys,)."""
        spans = [span for block in self._trees.blocks for span in (*block.ahead, block.own)]
        return self._tensor(np.concatenate([np.arange(span.start, span.stop) for span in spans]))

    @functools.cached_property
    def cumulative(self) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        """Cumulative number of queries and keys of the blocks, (blocks + 1,) int32 each, and the largest of both."""
        blocks = self._trees.blocks
        sizes = np.array([(block.num_own, block.num_ahead + block.num_own) for block in blocks])
        queries, keys = np.concatenate([np.zeros((1, 2), dtype=np.int64), sizes.cumsum(axis=0)]).T
        most = sizes.max(axis=0)
        return self._tensor(queries, np.int32), self._tensor(keys, np.int32), int(most[0]), int(most[1])

    def rows(self, most_places: int, most_scores: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The sequences as rows, the longest first, in groups.

        Args:
            most_places: rows x longest of a group is at most this, but for a group of one row.
            most_scores: the same for rows x longest x longest.

        Returns:
            For each group, the place of each token, padded on the right with place 0, (rows, longest); and for each
            place, the index into all groups' flattened rows at which it stands, (width,).
        """
        if (most_places, most_scores) not in self._rows:
            self._rows[most_places, most_scores] = self._grouped(most_places, most_scores)
        return self._rows[most_places, most_scores]

    def _grouped(self, most_places: int, most_scores: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        ordered = sorted(self._trees.sequences, key=len, reverse=True)
        groups: list[list[np.ndarray]] = []
        for places in ordered:
            longest = len(groups[-1][0]) if groups else 0
            cells = (len(groups[-1]) + 1) * longest if groups else 0
            if not groups or cells > most_places or cells * longest > most_scores:
                groups.append([])
            groups[-1].append(places)
        back, start = np.empty(self._trees.width, dtype=np.int64), 0
        padded: list[torch.Tensor] = []
        for group in groups:
            longest = len(group[0])
            rows = np.zeros((len(group), longest), dtype=np.int64)
            for row, places in zip(rows, group, strict=True):
                row[: len(places)] = places
                back[places] = start + np.arange(len(places))
                start += longest
            padded.append(self._tensor(rows))
        return padded, self._tensor(back)


def on_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy an array to a device, without waiting for the device.

    A copy from memory that is not pinned may wait until the device has done all that is queued.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda" and torch.cuda.is_available():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def visible_keys(queries: int, keys: int, reach: Reach, device: torch.device) -> torch.Tensor:
    """The causal mask of the last `queries` tokens of a sequence of `keys`, (1, 1, queries, keys) bool."""
    window, chunk = reach
    there = torch.arange(keys, device=device)
    here = there[keys - queries :, None]
    seen = there <= here
    if window is not None:
        seen &= here - there < window
    if chunk is not None:
        seen &= here // chunk == there // chunk
    return seen[None, None]


def _joined(trees: Trees, path: Sequence[int]) -> list[tuple[int, int]]:
    """The spans of nodes, those that follow one another in the row as one."""
    spans: list[tuple[int, int]] = []
    for node in path:
        start, end = trees.starts[node], trees.starts[node] + trees.lengths[node]
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], end)
        elif end > start:
            spans.append((start, end))
    return spans
