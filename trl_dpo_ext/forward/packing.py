"""Pack token sequences into one row in which common beginnings stand once, or into rows of one sequence each."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from .trees import Trees

LEAST_SHARED = 8
"""Sequences of different groups share what they begin with from this number of tokens on.

Sharing cuts a row into more blocks and copies keys and values for each. On a CPU this costs as much as computing one
token for each sequence, and from 4 tokens on sharing was never slower (benchmarks/results/precompute.md). The 3 to 5
tokens with which a chat template opens every conversation save too little to cut every row for. Answers to one prompt
share however short it is: K of them are K blocks anyway, with as many keys, and feed it once in place of K / 2 times.
"""


@dataclass(frozen=True, slots=True)
class Packed:
    """Sequences in the rows in which they are fed."""

    input_ids: np.ndarray
    """(rows, width) int64"""
    places: list[np.ndarray]
    """For each sequence, the flat index into (rows x width) of each of its tokens, (tokens,)."""
    trees: Trees | None
    """The layout of the one row; None for rows of one sequence each, padded on the right."""

    def filled(self, width: int) -> Packed:
        """The row filled up to a width with tokens that no sequence sees."""
        if self.trees is None or self.trees.width == width:
            return self
        ids = np.pad(self.input_ids, ((0, 0), (0, width - self.trees.width)))
        return Packed(ids, self.places, self.trees.filled(width))


def pack(sequences: Sequence[np.ndarray], groups: Sequence[Hashable] | None) -> Packed:
    """Pack sequences into one row.

    Args:
        sequences: token ids of each, (tokens,).
        groups: what each sequence belongs to, such as its prompt. Sequences of one group share what they begin with,
            however short; sequences of different groups share at least `LEAST_SHARED` tokens. None shares nothing.
    """
    order, shared = _neighbors(sequences, groups)
    lengths: list[int] = []
    parents: list[int] = []
    tokens: list[np.ndarray] = []
    leaves = [-1] * len(sequences)

    def add(some: np.ndarray, parent: int) -> int:
        if not len(some):
            return parent
        tokens.append(some)
        lengths.append(len(some))
        parents.append(parent)
        return len(lengths) - 1

    # Neighbors from `first` to `last` that begin with the same `depth` tokens, which end at the node `parent`.
    waiting = [(0, len(order), 0, -1)] if order else []
    while waiting:
        first, last, depth, parent = waiting.pop()
        sequence = sequences[order[first]]
        if last - first == 1:
            leaves[order[first]] = add(sequence[depth:], parent)
            continue
        common = min(shared[first + 1 : last])
        node = add(sequence[depth:common], parent)
        cuts = [first, *(at for at in range(first + 1, last) if shared[at] == common), last]
        waiting += [(start, end, common, node) for start, end in reversed([*itertools.pairwise(cuts)])]
    if not lengths:
        add(np.zeros(1, dtype=np.int64), -1)
    trees = Trees(lengths, parents)
    places = [trees.places(leaf) if leaf >= 0 else np.zeros(0, dtype=np.int64) for leaf in leaves]
    return Packed(np.concatenate(tokens).astype(np.int64)[None], places, trees)


def pad(sequences: Sequence[np.ndarray]) -> Packed:
    """Give each sequence a row, padded on the right with 0: ordinary causal rows, for every causal model."""
    width = max(1, *map(len, sequences))
    ids = np.zeros((len(sequences), width), dtype=np.int64)
    for row, sequence in zip(ids, sequences, strict=True):
        row[: len(sequence)] = sequence
    places = [number * width + np.arange(len(sequence)) for number, sequence in enumerate(sequences)]
    return Packed(ids, places, None)


def common_length(left: np.ndarray, right: np.ndarray) -> int:
    """Count the tokens with which two sequences begin alike."""
    shorter = min(len(left), len(right))
    different = np.flatnonzero(left[:shorter] != right[:shorter])
    return int(different[0]) if len(different) else shorter


def beginning(sequence: np.ndarray) -> bytes:
    """A key by which sequences that begin alike sort beside one another."""
    return sequence.astype(">i4").tobytes()


def shared_length(before: np.ndarray, sequence: np.ndarray, same_group: bool) -> int:
    """Count the tokens that a sequence shares in a row with the one sorted before it."""
    common = common_length(before, sequence)
    return common if same_group or common >= LEAST_SHARED else 0


def _neighbors(sequences: Sequence[np.ndarray], groups: Sequence[Hashable] | None) -> tuple[list[int], list[int]]:
    """Sort sequences; returns their order, and how many tokens each shares with the one before."""
    if groups is None:
        return list(range(len(sequences))), [0] * len(sequences)
    keys = [beginning(sequence) for sequence in sequences]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    pairs = itertools.pairwise(order)
    return order, [0, *(shared_length(sequences[a], sequences[b], groups[a] == groups[b]) for a, b in pairs)]
