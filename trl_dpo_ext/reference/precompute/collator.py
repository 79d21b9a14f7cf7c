"""Collator that adds stored reference log-probs to a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..._trl import COMPLETION_MASK
from ...errors import InputError
from ...forward.outputs import REF_TOKEN_LOGPS
from ..store.keys import unpack_keys
from ..store.table import LogpTable, MissingSequenceError
from .image_keys import ImageKeys, keys_of
from .sequences import TokenSequence, batch_sequences


@dataclass
class ReferenceCollator:
    """Adds stored reference log-probs to the batches of another collator.

    Sequences are looked up by their tokens, so the collator may order, batch and truncate them freely. Rows with images
    are looked up by what TRL's collator is given of them.
    """

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]
    logps: LogpTable
    own_columns: tuple[str, ...]
    """Columns with a dataset's own reference log-probs; a batch that has all of them is not changed."""
    images: Any = None
    """TRL's collator for images, if the rows have images."""

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate `examples`.

        Raises:
            InputError: the store lacks a sequence (streamed data is looked up only here).
        """
        keys = None if self.images is None else keys_of(examples, self.images)  # the collator changes its examples
        batch = self.collator(examples)
        if keys is not None:
            return {**batch, REF_TOKEN_LOGPS: torch.from_numpy(self._of_images(batch, keys))}
        if all(column in batch for column in self.own_columns):
            return batch
        rows, tokens = batch["input_ids"].shape
        placed = np.zeros((rows, tokens - 1), np.float32)
        asked = [(row, sequence) for row, sequence in enumerate(batch_sequences(batch)) if sequence is not None]
        for (row, sequence), logps in zip(asked, self._logps([sequence for _, sequence in asked]), strict=True):
            placed[row, sequence.start : sequence.start + len(logps)] = logps
        # Of a partly masked completion, only the unmasked tokens count.
        return {**batch, REF_TOKEN_LOGPS: torch.from_numpy(placed) * batch[COMPLETION_MASK][:, 1:].bool().cpu()}

    def _of_images(self, batch: Mapping[str, Any], keys: ImageKeys) -> np.ndarray:
        """The stored log-probs of rows with images, in the places of their scored tokens, (rows, tokens - 1)."""
        scored = batch[COMPLETION_MASK][:, 1:].bool().cpu().numpy()
        placed = np.zeros(scored.shape, np.float32)
        try:
            values = self.logps.values(unpack_keys(keys.keys.swapaxes(0, 1).reshape(-1, 2)))
        except MissingSequenceError as error:
            raise InputError(
                f"No log-probs in {self.logps.where} for {len(error.keys)} completions of this batch, whose "
                f"{len(keys.images)} rows have {keys.images.sum()} images. Run `trl-dpo-ext precompute` with the same "
                "model, data and max_length; if image files were replaced, start the run again."
            ) from error
        for row, (places, logps) in enumerate(zip(scored, values, strict=True)):
            if places.sum() != len(logps):
                raise InputError(
                    f"{self.logps.where} has {len(logps)} log-probs for a completion with {places.sum()} scored tokens "
                    f"(row {row} of this batch): the processor has made another number of tokens than in the "
                    "reference pass. Set another --ref_store."
                )
            placed[row, places] = logps
        return placed

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
