"""Whether rows are longer than the table of positions that a model has learned."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset
from torch import nn

from .. import _trl
from . import columnar
from .batches import on_main_process, read_batches

_NAMES = ("wpe", "embed_positions", "position_embedding", "position_embeddings")
"""What transformers calls embeddings of positions."""


def position_problems(causal: Any, dataset: Any, label: str, args: Any) -> list[str]:
    """Return why rows are too long for a model, which then fails in the middle of training.

    Args:
        causal: the model; rotary and relative positions have no limit.
        dataset: tokenized; a stream is not read.
        label: what messages call it.
        args: the run's configuration.
    """
    limit = learned_positions(causal)
    if limit is None or not isinstance(dataset, Dataset) or not _trl.is_tokenized(dataset):
        return []
    if args.max_length is not None and args.max_length <= limit:
        return []
    return on_main_process(lambda: _too_long(dataset, label, limit))


def _too_long(dataset: Dataset, label: str, limit: int) -> list[str]:
    longest, beyond = 0, 0
    for batch in read_batches(dataset, _trl.TOKEN_IDS):
        prompt, *sides = (columnar.list_lengths(batch.column(name)) for name in _trl.TOKEN_IDS)
        lengths = prompt + np.maximum(*sides)
        longest, beyond = max(longest, int(lengths.max())), beyond + int((lengths > limit).sum())
    if not beyond:
        return []
    return [
        f"The model has learned {limit} positions, and {beyond} of {len(dataset)} rows of {label} are longer, up to "
        f"{longest} tokens. Set max_length to at most {limit}."
    ]


def learned_positions(causal: Any) -> int | None:
    """Number of positions of a model that looks them up in a table; None for any other.

    Seam: OPT and others keep the first `offset` rows of the table free.
    """
    for name, module in causal.get_decoder().named_modules():  # not of the tower that reads images
        if name.rsplit(".", 1)[-1] in _NAMES and isinstance(module, nn.Embedding):
            return module.num_embeddings - int(getattr(module, "offset", 0))
    return None
