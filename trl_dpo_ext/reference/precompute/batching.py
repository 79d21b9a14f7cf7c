"""Arrange missing sequences in batches: what they begin with is computed once in each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...forward.packing import Packed, beginning, pack, pad, shared_length
from .sequences import TokenSequence

MOST_KEYS = 4
"""Where sequences share what they begin with, a batch has at most this number of keys per position that it may have:
attention copies keys and values for every sequence."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences that go through the model together."""

    sequences: tuple[TokenSequence, ...]
    keys: tuple[bytes, ...]
    shared: bool
    """Whether they are one row in which common beginnings stand once; if not, each is a row, padded to the longest."""

    @property
    def size(self) -> int:
        """Number of sequences."""
        return len(self.sequences)

    def packed(self) -> Packed:
        """The rows to feed. The last token of a sequence is predicted and not fed."""
        fed = [_fed(sequence) for sequence in self.sequences]
        return pack(fed, [sequence.prompt.tobytes() for sequence in self.sequences]) if self.shared else pad(fed)

    @property
    def positions(self) -> int:
        """Number of token positions, padding included."""
        return self.tokens if self.shared else len(self.sequences) * self.longest

    @property
    def tokens(self) -> int:
        """Number of token positions without padding."""
        if not self.shared:
            return sum(map(_length, self.sequences))
        return _length(self.sequences[0]) + sum(map(_additional, self.sequences, self.sequences[1:]))

    @property
    def longest(self) -> int:
        """Token positions of the longest sequence."""
        return max(map(_length, self.sequences))

    @property
    def scored(self) -> int:
        """Number of log-probs that the batch gives."""
        return sum(len(sequence.completion) for sequence in self.sequences)

    def too_large(self, max_tokens: int) -> str:
        """Say that the batch ran out of memory, and what to set below `max_tokens`."""
        return (
            f"The reference pass ran out of memory on a batch of {self.positions} token positions. Set "
            f"--precompute_ref_max_tokens below {min(max_tokens, self.positions)} (the longest sequence needs "
            f"{self.longest} here), or lower max_length."
        )

    def halves(self) -> list[Batch]:
        """Split the batch into two; a batch of one sequence stays as it is."""
        middle = len(self.sequences) // 2
        parts = (slice(None, middle), slice(middle, None)) if middle else (slice(None),)
        return [Batch(self.sequences[part], self.keys[part], self.shared) for part in parts]


def make_batches(missing: Mapping[bytes, TokenSequence], max_tokens: int, share: bool) -> list[Batch]:
    """Make batches of at most `max_tokens` positions (or of one longer sequence), the longest sequences first.

    Args:
        missing: sequences by key.
        max_tokens: token positions per batch, padding included.
        share: whether the model can take several sequences in one row.
    """
    # Completions of a prompt beside one another, and prompts that begin alike, as those of one conversation do.
    ordered = sorted(missing.items(), key=lambda item: beginning(_fed(item[1])) if share else -_length(item[1]))
    batches: list[Batch] = []
    current: list[tuple[bytes, TokenSequence]] = []
    positions = keys = 0
    for key, sequence in ordered:
        if share:
            grown = positions + (_additional(current[-1][1], sequence) if current else _length(sequence))
        else:  # the first of a batch is its longest
            grown = (len(current) + 1) * _length(current[0][1] if current else sequence)
        keys += _length(sequence)
        if current and (grown > max_tokens or (share and keys > MOST_KEYS * max_tokens)):
            batches.append(_batch(current, share))
            current, grown, keys = [], _length(sequence), _length(sequence)
        current.append((key, sequence))
        positions = grown
    if current:
        batches.append(_batch(current, share))
    # Longest first: a batch that does not fit in memory fails at once, and the remaining time is not underestimated.
    return sorted(batches, key=lambda batch: -batch.longest)


def _batch(items: list[tuple[bytes, TokenSequence]], share: bool) -> Batch:
    keys, sequences = zip(*items, strict=True)
    return Batch(sequences, keys, share)


def _length(sequence: TokenSequence) -> int:
    return len(sequence.prompt) + len(sequence.completion) - 1


def _fed(sequence: TokenSequence) -> np.ndarray:
    return np.concatenate([sequence.prompt, sequence.completion[:-1]])


def _additional(before: TokenSequence, sequence: TokenSequence) -> int:
    """The positions that a sequence adds to a row that ends with another."""
    same_prompt = np.array_equal(before.prompt, sequence.prompt)
    return _length(sequence) - shared_length(_fed(before), _fed(sequence), same_prompt)
