"""Whether rows are longer than the table of positions that a model has learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset
from torch import nn

from .. import _trl
from ..forward.list_rows import LIST_IDS
from . import columnar
from .batches import on_main_process, read_batches

_NAMES = ("wpe", "embed_positions", "position_embedding", "position_embeddings")
"""What transformers calls embeddings of positions."""


def position_problems(causal: Any, dataset: Any, label: str, args: Any) -> list[str]:
    """Return why rows are too long for a model, which then fails in the middle of training.

    Args:
        causal: the model; rotary and relative positions have no limit.
        dataset: tokenized pairs or lists; a stream is not read.
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
    of_lists = LIST_IDS in dataset.column_names
    prompts, *answers = (_trl.TOKEN_IDS[0], LIST_IDS) if of_lists else _trl.TOKEN_IDS
    longest, beyond = 0, 0
    for batch in read_batches(dataset, [prompts, *answers]):
        longest_answers = [_longest_answers(batch.column(name), of_lists) for name in answers]
        lengths = columnar.list_lengths(batch.column(prompts)) + np.max(longest_answers, axis=0)
        longest, beyond = max(longest, int(lengths.max())), beyond + int((lengths > limit).sum())
    if not beyond:
        return []
    what = "lists" if of_lists else "rows"
    return [
        f"The model has learned {limit} positions, and {beyond} of {len(dataset)} {what} of {label} are longer, up to "
        f"{longest} tokens. Set max_length to at most {limit}."
    ]


def _longest_answers(column: columnar.ArrowColumn, of_lists: bool) -> npt.NDArray[np.int64]:
    """The number of tokens of each row's answer, or of its longest one; (rows,)."""
    counts = columnar.list_lengths(column)
    if not of_lists:
        return counts
    return np.maximum.reduceat(columnar.list_lengths(column.flatten()), counts.cumsum() - counts)


def learned_positions(causal: Any) -> int | None:
    """Number of positions of a model that looks them up in a table; None for any other.

    Seam: OPT and others keep the first `offset` rows of the table free.
    """
    for name, module in causal.get_decoder().named_modules():  # not of the tower that reads images
        if name.rsplit(".", 1)[-1] in _NAMES and isinstance(module, nn.Embedding):
            return module.num_embeddings - int(getattr(module, "offset", 0))
    return None
