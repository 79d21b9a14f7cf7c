"""Verify the parts of a store: checksums, finite values, and agreement of duplicates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .keys import unpack_keys
from .parts import CorruptPartError, Part, read_logps


@dataclass(frozen=True)
class VerifyReport:
    """Result of reading a store completely.

    Attributes:
        sequences, tokens: numbers read, including duplicates.
        corrupt: reasons by name for the parts that are corrupt.
        conflicting: keys of the sequences that are stored twice with different log-probs.
        max_difference: largest difference between two log-probs of one token.
    """

    sequences: int
    tokens: int
    corrupt: dict[str, str]
    conflicting: tuple[bytes, ...]
    max_difference: float

    @property
    def problems(self) -> list[str]:
        """Describe each problem; empty for a store without problems."""
        found = [f"{name} is corrupt: {reason}" for name, reason in self.corrupt.items()]
        if self.conflicting:
            found.append(
                f"{len(self.conflicting)} sequences are stored twice with different log-probs (by up to "
                f"{self.max_difference:.2g} per token; first key: {self.conflicting[0].hex()}): they were not computed "
                "with the same numerics"
            )
        return found


def verify(parts: Sequence[Part], corrupt: Mapping[str, str]) -> VerifyReport:
    """Read every part completely: checksums, lengths, finite values, and equal values of duplicates.

    Args:
        parts: the parts in use.
        corrupt: reasons by name for the parts that were found corrupt when they were opened.
    """
    corrupt = dict(corrupt)
    duplicates = _duplicate_keys(parts)
    first_values: dict[bytes, np.ndarray] = {}
    differences: dict[bytes, float] = {}
    sequences = tokens = 0
    for part in parts:
        try:
            logps = read_logps(part)
        except (CorruptPartError, OSError) as error:
            corrupt[part.path.name] = str(error)
            continue
        if not np.isfinite(logps).all():
            corrupt[part.path.name] = "it contains log-probs that are not finite"
        sequences, tokens = sequences + part.sequences, tokens + part.tokens
        for key, values in _rows(part, logps, duplicates):
            first = first_values.setdefault(key, values)
            if not np.array_equal(first, values):
                differences[key] = _max_difference(first, values)
    return VerifyReport(sequences, tokens, corrupt, tuple(differences), max(differences.values(), default=0.0))


def _duplicate_keys(parts: Sequence[Part]) -> set[bytes]:
    packed = np.concatenate([np.empty((0, 2), np.uint64), *(part.packed_keys for part in parts)])
    unique, counts = np.unique(packed, axis=0, return_counts=True)
    return set(unpack_keys(unique[counts > 1]))


def _rows(part: Part, logps: np.ndarray, keys: set[bytes]) -> Iterable[tuple[bytes, np.ndarray]]:
    ends = np.cumsum(part.completion_tokens, dtype=np.int64)
    for row, key in enumerate(unpack_keys(part.packed_keys)) if keys else ():
        if key in keys:
            yield key, logps[ends[row] - part.completion_tokens[row] : ends[row]].copy()


def _max_difference(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first - second).max()) if len(first) == len(second) else float("inf")
