"""Attention kernels that exist on GPUs alone, computed here step by step as their documentation says."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import modeling_flash_attention_utils

from trl_dpo_ext.forward import tree_attention


def check_arguments(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_q: torch.Tensor, cu_k: torch.Tensor, max_q: int, max_k: int
) -> None:
    """What torch's kernel checks before it runs (mha_varlen_fwd in flash_api.cpp), and what it trusts in unchecked.

    Double precision stands in for half precision, so that results can be compared to the last digits.
    """
    assert q.dtype in (torch.float16, torch.bfloat16, torch.float64), f"only half precision, not {q.dtype}"
    assert q.dtype == k.dtype == v.dtype, "one dtype"
    for each in (q, k, v):
        assert each.dim() == 3, "(tokens, heads, size)"
        assert each.stride(-1) == 1, "contiguous last dimension"
    assert q.size(2) == k.size(2) == v.size(2), "one head size"
    assert q.size(2) <= 256
    assert q.size(2) % 8 == 0
    assert k.shape == v.shape
    assert q.size(1) % k.size(1) == 0, "heads of queries are a multiple of heads of keys"
    for cumulative, tokens, most in ((cu_q, q, max_q), (cu_k, k, max_k)):
        assert cumulative.dtype == torch.int32
        assert cumulative.dim() == 1
        assert cumulative.is_contiguous()
        assert cumulative.device == q.device
        assert type(most) is int, "a tensor would have to be read from the device"
        lengths = cumulative.diff()
        assert cumulative[0] == 0
        assert cumulative[-1] == tokens.size(0)
        assert (lengths > 0).all()
        assert lengths.max() == most
    assert len(cu_q) == len(cu_k) > 1


def check_gradient(grad: torch.Tensor, output: torch.Tensor) -> None:
    """What the kernel's backward pass checks of the gradient that it is given (mha_varlen_bwd)."""
    assert grad.dtype == output.dtype
    assert grad.stride(-1) == 1, "contiguous last dimension"
    assert not grad.requires_grad, "it has no second derivative"


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
    check_arguments(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    outputs, groups = [], q.size(1) // k.size(1)
    of_query, of_key = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
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
    output = torch.cat(outputs)
    if output.requires_grad:
        output.register_hook(lambda grad: check_gradient(grad, output.detach()))
    return output


def use_emulated_varlen(monkeypatch: pytest.MonkeyPatch, version: str = "2.14") -> list[dict[str, Any]]:
    """Have `torch.nn.attention.varlen.varlen_attn` of a version of torch on the CPU; returns its calls."""
    calls: list[dict[str, Any]] = []

    def attend(
        query: Any, key: Any, value: Any, cu_q: Any, cu_k: Any, max_q: Any, max_k: Any, scale: Any, window_size: Any
    ) -> torch.Tensor:
        assert isinstance(window_size, tuple)
        assert len(window_size) == 2
        assert window_size[1] == 0, "causal is (-1, 0), with a window (size, 0)"
        calls.append({"dtype": query.dtype, "window": window_size, "heads": (query.size(1), key.size(1))})
        sizes = (max_q, max_k)
        return varlen(query, key, value, cu_q, cu_k, *sizes, softmax_scale=scale, causal=True, window_size=window_size)

    def varlen_attn_2_11(
        query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: Any, max_k: Any, *,
        return_aux: Any = None, scale: Any = None, window_size: Any = (-1, -1),
    ) -> Any:  # fmt: skip
        return attend(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size)

    def varlen_attn(
        query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: Any, max_k: Any, *,
        return_aux: Any = None, scale: Any = None, window_size: Any = (-1, -1), enable_gqa: bool = False,
        seqused_k: Any = None, block_table: Any = None, num_splits: Any = None,
    ) -> Any:  # fmt: skip
        if not enable_gqa and query.size(1) != key.size(1):
            raise ValueError("Expect query and key/value to have the same number of heads")
        return attend(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size)

    stand_in: Any = ModuleType("torch.nn.attention.varlen")  # torch 2.8 does not have it
    stand_in.varlen_attn = varlen_attn_2_11 if version == "2.11" else varlen_attn
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    monkeypatch.setattr(torch.nn.attention, "varlen", stand_in, raising=False)
    monkeypatch.setattr(tree_attention, "_has_varlen", lambda device: True)
    dtypes = (*tree_attention._VARLEN_DTYPES, torch.float64)
    monkeypatch.setattr(tree_attention, "_VARLEN_DTYPES", dtypes)
    return calls


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
