"""A callable in a model's place that feeds it fewer tokens of a batch of pairs, for the same log-probs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .. import _trl
from ..errors import InputError
from .layouts import Extents, Layout, LayoutKind, build_layout, measure_lengths, rows_of, shapes
from .run_rows import run_rows
from .tree_rows import UNSCORED

_FLEX_BLOCK = 128  # widths in whole blocks, so that a compiled kernel meets few of them
_NOT_TOKENS = {"use_cache", "output_router_logits"}


class PackedModel:
    """A model on a batch of pairs, called as TRL calls it and with the model's own output.

    Takes the (2 x pairs, tokens) batch, runs the backbone on the cheapest layout of `ways`, and returns the fused
    head's output in TRL's layout: every per-token field has shape (2 x pairs, tokens - 1).

    Args:
        model: the module to call: the causal model or its wrapper.
        causal: the causal model inside, with TRL's fused head.
        ways: the layouts to choose from.
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
            router_tokens=layout.token_index.flatten() if routed else None,
            **routing,
        )
        return _trl.scatter_to_batch(output, labels[:, 1:] != UNSCORED)

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
            raise InputError(
                "share_prompt and padding_free need rows padded on the right, but the data_collator pads on the left. "
                "Use TRL's collator, or drop both flags."
            )
        config = self.causal.config.get_text_config()
        pairs = len(measured.shared_prefix)
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
    """Estimate the work of a backbone for a batch in this layout, in the matrix products of one token.

    Attention to one more token costs 4 h products, and a layer's matrices 4 h^2 + 3 h i, times two. With a mask that is
    a tensor, attention computes every place of the row; causality and blocks save half of a token's own sequence.
    """
    hidden = getattr(config, "hidden_size", 1024)
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    tokens = rows_of(way, pairs) * width
    dense = (way.share or way.pack) and config._attn_implementation in ("sdpa", "eager")
    seen = width if dense else tokens / (pairs if way.share else 2 * pairs) / 2
    return tokens * (1 + seen * 2 / (4 * hidden + 3 * inner))


def candidate_layouts(share: bool, pack: bool) -> list[LayoutKind]:
    """List the layouts that these flags allow, the cheapest of which each batch takes: none always pays."""
    return [
        LayoutKind(s, p) for p in ([True, False] if pack else [False]) for s in ([True, False] if share else [False])
    ]
