"""Extract the sequences to score from a collated batch, after truncation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..._trl import COMPLETION_MASK
from ..store.keys import sequence_key


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """A prompt of at least one token, and its completion up to the last token that is scored."""

    prompt: np.ndarray
    """(prompt tokens,) int32."""
    completion: np.ndarray
    """(completion tokens,) int32; all are scored."""
    start: int
    """Index of the completion's first log-prob in its row; log-probs are shifted by one against tokens."""

    @property
    def key(self) -> bytes:
        """Return the sequence's key in the store."""
        return sequence_key(self.prompt, self.completion)


def batch_sequences(batch: Mapping[str, Any]) -> Iterator[TokenSequence | None]:
    """Yield the sequence of each row of a batch in TRL's layout, (rows, tokens); None if no completion is left.

    Padding may be on either side. The first token of a row is never scored, so in a row without a prompt it counts as
    the prompt. A partly masked completion keeps all its tokens; the mask is applied to its log-probs.
    """
    ids, scored = _array(batch["input_ids"]), _array(batch[COMPLETION_MASK]).astype(bool)
    attended = _array(batch["attention_mask"]).astype(bool) if "attention_mask" in batch else np.ones_like(scored)
    for row_ids, row_scored, row_attended in zip(ids, scored, attended, strict=True):
        first = int(row_attended.argmax())
        positions = np.flatnonzero(row_scored)
        positions = positions[positions > first]
        if not positions.size:
            yield None
            continue
        start, end = int(positions[0]), int(positions[-1]) + 1
        yield TokenSequence(row_ids[first:start], row_ids[start:end], start - 1)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().numpy().astype(np.int32, copy=False)
