"""Rows of token ids for the passes: one for each sequence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from datasets import Dataset

from .. import _trl

_TEXTS = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}


def token_rows(sequences: Iterable[tuple[Any, Any]]) -> Dataset:
    """Return a tokenized dataset with one row per sequence, whose sides are equal.

    Args:
        sequences: token ids of a prompt, of at least one token, and of its completion.
    """
    prompts, completions = zip(*sequences, strict=True)
    ids = [list(prompts), list(completions), list(completions)]
    texts = {name: [text] * len(prompts) for name, text in _TEXTS.items()}
    return Dataset.from_dict({**texts, **dict(zip(_trl.TOKEN_IDS, ids, strict=True))})
