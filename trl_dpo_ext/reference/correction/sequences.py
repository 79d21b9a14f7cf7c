"""The sequences that a correction is fitted on: read, named by content, and run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ..._trl import COMPLETION_IDS
from ...errors import InputError

MOST_POSITIONS = 1 << 16
"""Most positions, padding included, that the one forward of a fit runs, to bound the memory of its activations."""


def of_rows(rows: Iterable[Any]) -> list[list[int]]:
    """The token ids of `correction_data`: sequences of ids, rows with `input_ids`, or tokenized preference rows.

    Raises:
        InputError: there are no rows, or one has no token ids.
    """
    found: list[list[int]] = []
    for row in rows:
        if isinstance(row, Mapping) and "input_ids" in row:
            ids, mask = row["input_ids"], row.get("attention_mask")
            kept = [True] * len(ids) if mask is None else mask
            found.append([int(token) for token, real in zip(ids, kept, strict=True) if real])
        elif isinstance(row, Mapping) and {"prompt_ids", *COMPLETION_IDS.values()} <= {*row}:
            found += [[*row["prompt_ids"], *row[side]] for side in COMPLETION_IDS.values()]
        elif isinstance(row, (Sequence, torch.Tensor)) and not isinstance(row, str):
            found.append([int(token) for token in row])
        else:
            what = f"columns {', '.join(row)}" if isinstance(row, Mapping) else repr(row)[:60]
            raise InputError(
                "correction_data must hold token ids: lists of ids, rows with input_ids, or rows of a dataset that TRL "
                f"has tokenized (prompt_ids, chosen_ids, rejected_ids). Got {what}."
            )
    found = [row for row in found if row]
    if not found:
        raise InputError("correction_data is empty. Give the sequences that a correction is to be fitted on.")
    return found


def within_memory(sequences: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """The first sequences that fit into one forward."""
    kept: list[Sequence[int]] = []
    longest = 0
    for sequence in sequences:
        longest = max(longest, len(sequence))
        if kept and longest * (len(kept) + 1) > MOST_POSITIONS:
            break
        kept.append(sequence)
    return kept


def digest(sequences: Iterable[Sequence[int]]) -> str:
    """A hash of sequences of token ids, 16 hexadecimal digits."""
    content = hashlib.blake2b(digest_size=8)
    for sequence in sequences:
        content.update(torch.tensor([len(sequence), *sequence]).numpy().tobytes())
    return content.hexdigest()


def padded(sequences: Sequence[Sequence[int]], device: Any) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` of sequences, each (rows, tokens), padded on the right."""
    ids = [torch.tensor(sequence) for sequence in sequences]
    ones = [torch.ones_like(row) for row in ids]
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(ids, batch_first=True).to(device),
        "attention_mask": pad(ones, batch_first=True).to(device),
    }
