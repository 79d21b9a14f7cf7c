"""Shared prompts and packed rows on torch's variable-length kernel, as an attention function of transformers.

A prototype, to be measured beside what the package does today: no mask, three segments per pair (see `varlen.Tree`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from .attention import segments_at_once
from .varlen import Tree

NAME = "tree_varlen"
_current: list[Tree] = []


def attend(_module: Any, query: Any, key: Any, value: Any, _mask: Any, **_: Any) -> tuple[torch.Tensor, None]:
    """(1, heads, tokens, size) each; the segments are those of the batch that is being run."""
    flat = (one[0].transpose(0, 1) for one in (query, key, value))
    return _current[0].attend(*flat, by=segments_at_once)[None], None


def tree_of(inputs: dict[str, torch.Tensor]) -> Tree:
    """Of a batch of TRL's, in the order in which the package packs it. A collator would know these lengths."""
    from trl_dpo_ext.forward.layouts import measure_lengths

    found = measure_lengths(inputs["input_ids"], inputs["attention_mask"])
    lengths = torch.stack([found.shared_prefix, *found.suffixes], dim=1).tolist()
    return Tree([tuple(pair) for pair in lengths], inputs["input_ids"].device)


@contextlib.contextmanager
def running(trainer: Any, tree: Tree) -> Iterator[None]:
    """Inside, policy and reference of a trainer whose only way is to share and pack attend by segments."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    models = (trainer.model, trainer.ref_model)
    before = [each.config._attn_implementation for each in models]
    _current[:] = [tree]
    for each in models:
        each.config._attn_implementation = NAME
    try:
        yield
    finally:
        _current.clear()
        for each, attention in zip(models, before, strict=True):
            each.config._attn_implementation = attention
