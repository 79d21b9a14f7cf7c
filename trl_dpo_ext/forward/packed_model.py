"""Stands where TRL calls a model on a batch of pairs, and feeds it fewer tokens for the same log-probs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .. import _trl
from ..errors import InputError
from .layouts import Extents, Layout, LayoutKind, build_layout, measure_lengths, rows_of, shapes
from .run_rows import run_rows

_FLEX_BLOCK = 128  # widths in whole blocks, so that a compiled kernel meets few of them
_NOT_TOKENS = {"use_cache", "output_router_logits"}


class PackedModel:
    """A model on a batch of pairs, called as TRL calls it and answering as the model itself would.

    Takes the (2 x pairs, tokens) batch, runs the backbone on the cheapest of `ways`, and hands the fused head's output
    back in TRL's layout: every per-token field has shape (2 x pairs, tokens - 1).

    Args:
        model: what has to be called: the causal model or its wrapper.
        causal: the causal model inside, with TRL's fused head.
        ways: the ways that this model can be fed in.
    """

    def __init__(self, model: Callable[..., Any], causal: Any, ways: Sequence[LayoutKind]) -> None:
        self.model, self.causal, self.ways = model, causal, tuple(ways)

    def __call__(
        self,
        *,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor | None = None,
        fused_lm_head: bool = False,
        **keywords: Any,
    ) -> Any:
        """Log-probs and their kin; without `fused_lm_head`, whatever the model itself gives.

        Raises:
            InputError: the batch holds more than tokens, or is padded on the left.
        """
        if not fused_lm_head or labels is None:
            return self.model(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **keywords)
        foreign = sorted(set(keywords) - _NOT_TOKENS)
        if foreign:
            raise InputError(f"share_prompt and padding_free take text alone, and the batch has {', '.join(foreign)}.")
        routed = bool(keywords.pop("output_router_logits", False)) or self._asks_for_routing()
        keywords.pop("use_cache", None)
        layout = self._lay_out(input_ids, attention_mask, labels, with_last=routed)
        routing = {"output_router_logits": True, "attention_mask": attention_mask} if routed else {}
        output = run_rows(
            self.model,
            self.causal,
            layout.input_ids,
            layout.labels,
            layout.scored,
            layout.position_ids,
            layout.branch,
            layout.segment,
            router_tokens=layout.slots.flatten() if routed else None,
            **routing,
        )
        return _trl.scatter_to_batch(output, labels[:, 1:] != -100)

    def _asks_for_routing(self) -> bool:
        return bool(getattr(self.causal.config.get_text_config(), "output_router_logits", False))

    def _lay_out(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, with_last: bool
    ) -> Layout:
        measured = measure_lengths(input_ids, attention_mask, with_last)
        padded_left = (attention_mask[:, 1:] > attention_mask[:, :-1]).any().long()
        # The only time that the host waits for these numbers.
        *widths, left = torch.stack([*shapes(self.ways, measured), padded_left]).tolist()
        if left:
            raise InputError("share_prompt and padding_free need rows padded on the right; the collator pads left.")
        config = self.causal.config.get_text_config()
        pairs = len(measured.trunk)
        costs = [cost(config, way, pairs, width) for way, width in zip(self.ways, widths, strict=True)]
        way, width = min(zip(costs, self.ways, widths, strict=True), key=lambda option: option[0])[1:]
        return self._in_way(way, width, measured, input_ids, labels)

    def _in_way(
        self, way: LayoutKind, width: int, measured: Extents, input_ids: torch.Tensor, labels: torch.Tensor
    ) -> Layout:
        if self.causal.config.get_text_config()._attn_implementation == "flex_attention":
            width = -(-width // _FLEX_BLOCK) * _FLEX_BLOCK
        plain = not (way.share or way.pack)
        return build_layout(way, max(width, 1), measured, input_ids, labels, plain)


def cost(config: Any, way: LayoutKind, pairs: int, width: int) -> float:
    """What a backbone has to compute for a batch fed in this way, in tokens' worth of its matrix products.

    Attention to one more token costs 4 h products, and a layer's matrices 4 h^2 + 3 h i, times two; a mask that is a
    tensor makes it look at every place of the row, causality and blocks let it leave half of its own sequence out.
    """
    hidden = getattr(config, "hidden_size", 1024)
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    tokens = rows_of(way, pairs) * width
    dense = (way.share or way.pack) and config._attn_implementation in ("sdpa", "eager")
    seen = width if dense else tokens / (pairs if way.share else 2 * pairs) / 2
    return tokens * (1 + seen * 2 / (4 * hidden + 3 * inner))


def candidate_layouts(share: bool, pack: bool) -> list[LayoutKind]:
    """What these flags allow, from which each batch takes the cheapest: sharing and packing do not always pay."""
    return [
        LayoutKind(s, p) for p in ([True, False] if pack else [False]) for s in ([True, False] if share else [False])
    ]
