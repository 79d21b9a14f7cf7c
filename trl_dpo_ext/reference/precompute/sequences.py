"""The sequences whose log-probs a batch asks for: read from what the collator built, so that truncation is in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..store.keys import sequence_key


@dataclass(frozen=True, slots=True)
class Sequence:
    """A prompt of at least one token, and the tokens that follow it up to the last one that is scored."""

    prompt: np.ndarray
    """(prompt tokens,) int32."""
    completion: np.ndarray
    """(completion tokens,) int32; each is scored."""
    start: int
    """Where the completion's log-probs begin in the row, in positions of log-probs (one less than those of tokens)."""

    @property
    def key(self) -> bytes:
        """What the store knows the sequence by."""
        return sequence_key(self.prompt, self.completion)


def batch_sequences(batch: Mapping[str, Any]) -> Iterator[Sequence | None]:
    """The sequence of each row of a batch in TRL's layout, (rows, tokens); None where truncation left no completion.

    Padding may stand on either side. The first token of a row is never scored, so a row without a prompt counts it as
    one. Of a completion that is masked in parts, all tokens are in the sequence; the mask is applied to its log-probs.
    """
    ids, scored = _array(batch["input_ids"]), _array(batch["completion_mask"]).astype(bool)
    attended = _array(batch["attention_mask"]).astype(bool) if "attention_mask" in batch else np.ones_like(scored)
    for row_ids, row_scored, row_attended in zip(ids, scored, attended, strict=True):
        first = int(row_attended.argmax())
        positions = np.flatnonzero(row_scored)
        positions = positions[positions > first]
        if not positions.size:
            yield None
            continue
        start, end = int(positions[0]), int(positions[-1]) + 1
        yield Sequence(row_ids[first:start], row_ids[start:end], start - 1)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().numpy().astype(np.int32, copy=False)
