"""Stored reference log-probs brought into a batch, found by what the batch holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import InputError
from ..store.store import LogpTable, MissingSequenceError
from .sequences import Sequence, batch_sequences

REF_TOKEN_LOGPS = "ref_token_logps"
"""The batch key of stored reference log-probs, (rows, tokens - 1) float32, in the positions of the policy's."""


@dataclass
class ReferenceCollator:
    """Adds stored reference log-probs to what another collator builds.

    Order, batch size and truncation are the collator's matter: a sequence is found by its tokens.
    """

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]
    logps: LogpTable
    own_columns: tuple[str, ...]
    """Columns of a dataset that brings reference log-probs itself; they are taken as they are."""

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate `examples`.

        Raises:
            InputError: no log-probs are stored for a sequence (streamed data is looked up only here).
        """
        batch = self.collator(examples)
        if all(column in batch for column in self.own_columns):
            return batch
        rows, tokens = batch["input_ids"].shape
        placed = torch.zeros(rows, tokens - 1)
        asked = [(row, sequence) for row, sequence in enumerate(batch_sequences(batch)) if sequence is not None]
        for (row, sequence), logps in zip(asked, self._logps([sequence for _, sequence in asked]), strict=True):
            placed[row, sequence.start : sequence.start + len(logps)] = torch.from_numpy(logps)
        # A completion that is masked in parts counts where the mask says so.
        return {**batch, REF_TOKEN_LOGPS: placed * batch["completion_mask"][:, 1:].bool().cpu()}

    def _logps(self, sequences: list[Sequence]) -> list[Any]:
        try:
            return self.logps.values([sequence.key for sequence in sequences])
        except MissingSequenceError as error:
            first = next(sequence for sequence in sequences if sequence.key == error.keys[0])
            raise InputError(
                f"{self.logps.where} has no reference log-probs for a sequence of this batch: a prompt of "
                f"{len(first.prompt)} tokens ({_start(first.prompt)}) with a completion of "
                f"{len(first.completion)} ({_start(first.completion)}). Fill it first: `trl-dpo-ext precompute` "
                "with the same model, data and max_length."
            ) from error


def _start(ids: Any) -> str:
    return " ".join(map(str, ids[:8])) + (" ..." if len(ids) > 8 else "")
