"""Collator that adds stored reference log-probs to a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..._trl import COMPLETION_MASK
from ...errors import InputError
from ...forward.outputs import REF_TOKEN_LOGPS
from ..store.table import LogpTable, MissingSequenceError
from .sequences import TokenSequence, batch_sequences


@dataclass
class ReferenceCollator:
    """Adds stored reference log-probs to the batches of another collator.

    Sequences are looked up by their tokens, so the collator may order, batch and truncate them freely.
    """

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]
    logps: LogpTable
    own_columns: tuple[str, ...]
    """Columns with a dataset's own reference log-probs; a batch that has all of them is not changed."""

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate `examples`.

        Raises:
            InputError: the store lacks a sequence (streamed data is looked up only here).
        """
        batch = self.collator(examples)
        if all(column in batch for column in self.own_columns):
            return batch
        rows, tokens = batch["input_ids"].shape
        placed = np.zeros((rows, tokens - 1), np.float32)
        asked = [(row, sequence) for row, sequence in enumerate(batch_sequences(batch)) if sequence is not None]
        for (row, sequence), logps in zip(asked, self._logps([sequence for _, sequence in asked]), strict=True):
            placed[row, sequence.start : sequence.start + len(logps)] = logps
        # Of a partly masked completion, only the unmasked tokens count.
        return {**batch, REF_TOKEN_LOGPS: torch.from_numpy(placed) * batch[COMPLETION_MASK][:, 1:].bool().cpu()}

    def _logps(self, sequences: list[TokenSequence]) -> list[Any]:
        try:
            return self.logps.values([sequence.key for sequence in sequences])
        except MissingSequenceError as error:
            first = next(sequence for sequence in sequences if sequence.key == error.keys[0])
            raise InputError(
                f"No log-probs in {self.logps.where} for a sequence of this batch: a prompt of {len(first.prompt)} "
                f"tokens ({_start(first.prompt)}) with a completion of {len(first.completion)} "
                f"({_start(first.completion)}). Run `trl-dpo-ext precompute` with the same model, data and max_length."
            ) from error


def _start(ids: Any) -> str:
    return " ".join(map(str, ids[:8])) + (" ..." if len(ids) > 8 else "")
