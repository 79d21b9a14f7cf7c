"""A callable in a model's place that feeds it fewer tokens of a batch of pairs, for the same log-probs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .. import _trl
from ..errors import InputError
from .packing import Packed, pack
from .run_rows import run_rows
from .trees import on_device

UNSCORED = -100
_NOT_TOKENS = {"use_cache", "output_router_logits"}


@dataclass(frozen=True, slots=True)
class PackedPairs:
    """A batch of pairs, packed, and the place of what TRL asks for."""

    packed: Packed
    labels: np.ndarray
    """(scored,) the tokens to predict, in the row-major order of TRL's batch."""
    scored: np.ndarray
    """(scored,) flat index at which each label is predicted."""
    targets: np.ndarray
    """(scored,) the flat index in (2 x pairs x (tokens - 1)) of each label."""
    tokens: np.ndarray
    """(2 x pairs x tokens,) flat index of each token of TRL's batch; 0 for padding."""


class PairPacker:
    """Packs batches of pairs; policy and reference are given the same one, so the last one is kept.

    Only what changes a scored log-prob has to be fed: not the padding, not the last token of a sequence (it is
    predicted), and what the answers to one prompt begin with only once.

    Args:
        share: whether sequences share what they begin with.
    """

    def __init__(self, share: bool) -> None:
        self.share = share
        self._last: tuple[Any, ...] = (None, None, None)
        self._packed: PackedPairs | None = None

    def __call__(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        with_last: bool = False,
    ) -> PackedPairs:
        """Pack a batch, (2 x pairs, tokens) each, chosen half first, padded on the right.

        Args:
            input_ids, attention_mask: as TRL's collator makes them.
            labels: as TRL gives them, not shifted, -100 where not scored; they belong to `input_ids`.
            with_last: feed the last tokens too, which a mixture of experts counts for its auxiliary loss.

        Raises:
            InputError: the batch is padded on the left.
        """
        ids, attended, had_last = self._last
        same = ids is input_ids and attended is attention_mask and had_last == with_last
        if self._packed is None or not same:
            self._packed = _pack_pairs(input_ids, attention_mask, labels, self.share, with_last)
            self._last = (input_ids, attention_mask, with_last)
        return self._packed


def _pack_pairs(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    labels: torch.Tensor,
    share: bool,
    with_last: bool,
) -> PackedPairs:
    # The only time that the host waits for the device.
    ids, attended, scored = torch.stack([input_ids, attention_mask.long(), (labels != UNSCORED).long()]).cpu().numpy()
    if (attended[:, 1:] > attended[:, :-1]).any():
        raise InputError(
            "share_prompt and padding_free need rows padded on the right, but the data_collator pads on the left. "
            "Use TRL's collator, or drop both flags."
        )
    lengths = attended.sum(axis=1)
    fed = lengths if with_last else np.maximum(lengths - 1, 0)
    prompts = np.where(scored.any(axis=1), scored.argmax(axis=1), lengths)
    # The answers of a list stand in several pairs, so a group is a prompt.
    groups = [row[:length].tobytes() for row, length in zip(ids, prompts, strict=True)] if share else None
    packed = pack([row[:length] for row, length in zip(ids, fed, strict=True)], groups)
    tokens = np.zeros(ids.shape, dtype=np.int64)
    for number, places in enumerate(packed.places):
        tokens[number, : len(places)] = places
    wanted = scored[:, 1:].astype(bool)
    return PackedPairs(packed, ids[:, 1:][wanted], tokens[:, :-1][wanted], np.flatnonzero(wanted), tokens.flatten())


class PackedModel:
    """A model on a batch of pairs, called as TRL calls it and with the model's own output.

    Takes the (2 x pairs, tokens) batch, runs the backbone on one packed row, and returns the fused head's output in
    TRL's layout: every per-token field has shape (2 x pairs, tokens - 1).

    Args:
        model: the module to call: the causal model or its wrapper.
        causal: the causal model inside, with TRL's fused head.
        packer: packs the batch.
    """

    def __init__(self, model: Callable[..., Any], causal: Any, packer: PairPacker) -> None:
        self.model, self.causal, self.packer = model, causal, packer

    def __call__(
        self,
        *,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor | None = None,
        fused_lm_head: bool = False,
        **keywords: Any,
    ) -> Any:
        """Compute the fused head's output; without `fused_lm_head`, call the model itself.

        Raises:
            InputError: the batch holds more than tokens, or is padded on the left.
        """
        if not fused_lm_head or labels is None:
            return self.model(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **keywords)
        foreign = sorted(set(keywords) - _NOT_TOKENS)
        if foreign:
            raise InputError(
                f"share_prompt and padding_free support only text, but the batch has {', '.join(foreign)}. Drop both "
                "flags."
            )
        config = self.causal.config.get_text_config()
        routed = bool(keywords.get("output_router_logits") or getattr(config, "output_router_logits", False))
        batch = self.packer(input_ids, attention_mask, labels, routed)
        routing = {"output_router_logits": True, "attention_mask": attention_mask} if routed else {}
        tokens = batch.tokens if routed else None
        output = run_rows(self.model, self.causal, batch.packed, batch.labels, batch.scored, tokens, **routing)
        targets = on_device(batch.targets, input_ids.device)
        return _trl.scatter_to_batch(output, targets, labels[:, 1:].shape)
