"""Attention kernels that exist on GPUs alone, computed here step by step as their documentation says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import modeling_flash_attention_utils


def varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    s_aux: torch.Tensor | None = None,
    dropout_p: float = 0.0,
) -> torch.Tensor:
    """`flash_attn_varlen_func`: (tokens, heads, size) each, causal from the bottom right, windows counted from there."""
    assert causal
    assert not dropout_p
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    outputs, groups = [], q.size(1) // k.size(1)
    of_query, of_key = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
    assert (max(of_query), max(of_key)) == (max_seqlen_q, max_seqlen_k)
    for queries, keys, values in zip(q.split(of_query), k.split(of_key), v.split(of_key), strict=True):
        keys, values = (each.repeat_interleave(groups, dim=1).transpose(0, 1) for each in (keys, values))
        scores = queries.transpose(0, 1) @ keys.transpose(1, 2)
        scores = scores * (q.size(-1) ** -0.5 if softmax_scale is None else softmax_scale)
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        there = torch.arange(keys.size(1))
        here = there[keys.size(1) - queries.size(0) :, None]
        hidden = there > here
        if window_size[0] >= 0:
            hidden |= here - there > window_size[0]
        scores = scores.masked_fill(hidden, float("-inf"))
        if s_aux is not None:
            sinks = s_aux[:, None, None].expand(-1, queries.size(0), 1)
            scores = torch.cat([scores, sinks], dim=-1).softmax(-1)[..., :-1]
        else:
            scores = scores.softmax(-1)
        outputs.append((scores @ values).transpose(0, 1))
    return torch.cat(outputs)


def use_emulated_flash(monkeypatch: pytest.MonkeyPatch, model: Any) -> list[dict[str, Any]]:
    """Give a model transformers' own flash attention path, with `varlen` in the kernel's place; returns its calls."""
    calls: list[dict[str, Any]] = []

    def kernel(
        q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: Any, max_seqlen_k: Any,
        softmax_scale: Any = None, causal: Any = False, window_size: Any = (-1, -1), softcap: Any = 0.0,
        s_aux: Any = None, dropout_p: Any = 0.0,
    ) -> torch.Tensor:  # fmt: skip
        calls.append({"queries": cu_seqlens_q, "keys": cu_seqlens_k})
        sizes = (max_seqlen_q, max_seqlen_k)
        extra = {"window_size": window_size, "softcap": softcap, "s_aux": s_aux, "dropout_p": dropout_p}
        return varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, *sizes, softmax_scale=softmax_scale, causal=causal, **extra)

    monkeypatch.setattr(modeling_flash_attention_utils, "_lazy_imports", lambda *_, **__: (kernel, kernel, *[None] * 3))
    monkeypatch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)
    model.config.get_text_config()._attn_implementation = "flash_attention_2"
    return calls
