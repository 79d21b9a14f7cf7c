"""Attention of one layer in the forms that are compared, and what they are given."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

CUDNN, EFFICIENT, FLASH = SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION


@dataclass(frozen=True)
class Heads:
    """The shape of a model's attention."""

    queries: int
    keys: int
    size: int

    @property
    def groups(self) -> int:
        """Query heads per key head."""
        return self.queries // self.keys


HEADS = {"d64": Heads(14, 2, 64), "d128": Heads(32, 8, 128)}  # those of Qwen2.5-0.5B and Llama-3-8B


def tensors(heads: Heads, rows: int, width: int, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> list:
    """Query, key and value with gradient, (rows, heads, width, size), and a gradient of the output.

    As in transformers, they lie in memory as (rows, width, heads, size).
    """
    count = (heads.queries, heads.keys, heads.keys, heads.queries)
    made = [torch.randn(rows, width, n, heads.size, device=device, dtype=dtype).transpose(1, 2) for n in count]
    return [*(one.requires_grad_() for one in made[:3]), made[3]]


def causal_mask(width: int, device: torch.device) -> torch.Tensor:
    return torch.ones(width, width, dtype=torch.bool, device=device).tril()[None, None]


def repeated(key: torch.Tensor, groups: int) -> torch.Tensor:
    """Key or value heads, each as often as there are query heads for it, as transformers does where there is a mask."""
    rows, heads, width, size = key.shape
    return key[:, :, None].expand(rows, heads, groups, width, size).reshape(rows, heads * groups, width, size)


def masked(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """As transformers calls it with a mask."""
    groups = query.size(1) // key.size(1)
    return F.scaled_dot_product_attention(query, repeated(key, groups), repeated(value, groups), attn_mask=mask)


def causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """As transformers calls it without a mask."""
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


@contextlib.contextmanager
def forced(backend: SDPBackend | None, device: torch.device) -> Iterator[None]:
    """Inside, one backend alone may serve; on a CPU any may."""
    with contextlib.nullcontext() if backend is None or device.type == "cpu" else sdpa_kernel([backend]):
        yield


@contextlib.contextmanager
def cudnn(allowed: bool) -> Iterator[None]:
    """Inside, `sdpa` may or may not take cuDNN's attention."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(allowed)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def starts(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    """Where each segment begins in a row of all of them, and where the last ends."""
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)


def segments(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, of_query: Sequence[int], of_key: Sequence[int]
) -> torch.Tensor:
    """Causal attention within segments by torch's own variable-length kernel; (tokens, heads, size) each."""
    if query.device.type == "cpu":
        return segments_by_hand(query, key, value, of_query, of_key)
    device = query.device
    return segments_at(query, key, value, starts(of_query, device), starts(of_key, device), max(of_query), max(of_key))


def segments_at(query: Any, key: Any, value: Any, at_query: Any, at_key: Any, most_query: int, most_key: int) -> Any:
    """`segments` with places that are on the device already."""
    from torch.nn.attention.varlen import varlen_attn

    grouped = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
    return varlen_attn(query, key, value, at_query, at_key, most_query, most_key, window_size=(-1, 0), **grouped)


def segments_at_once(
    query: Any, key: Any, value: Any, at_query: Any, at_key: Any, most_query: int, most_key: int
) -> Any:
    """The same by the operator beneath, which costs the host less; it is none of torch's public functions."""
    return torch.ops.aten._flash_attention_forward(
        query, key, value, at_query, at_key, most_query, most_key, 0.0, True, False
    )[0]


def segments_by_hand(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    of_query: Sequence[int],
    of_key: Sequence[int],
    bottom_right: bool = True,
) -> torch.Tensor:
    """The same, one segment at a time through softmax of a product; the last query sees the last key, or the first
    query the first key alone."""
    groups, parts = query.size(1) // key.size(1), []
    for q, k, v in zip(query.split(list(of_query)), key.split(list(of_key)), value.split(list(of_key)), strict=True):
        k, v = (one.repeat_interleave(groups, dim=1).transpose(0, 1) for one in (k, v))
        scores = q.transpose(0, 1) @ k.transpose(1, 2) / q.size(2) ** 0.5
        here = torch.arange(q.size(0), device=q.device)[:, None] + (k.size(1) - q.size(0)) * bottom_right
        scores = scores.masked_fill(torch.arange(k.size(1), device=q.device) > here, float("-inf"))
        parts.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(parts)


@functools.cache
def compiled_flex() -> Callable[..., torch.Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def gradients(out: torch.Tensor, wanted: Sequence[torch.Tensor], given: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(out, list(wanted), given)
