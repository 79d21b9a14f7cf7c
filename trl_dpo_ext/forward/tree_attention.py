"""Attention over a row of token trees, sequence by sequence, by the model's own attention function.

The layout travels where a finished 4-dimensional mask may stand: transformers hands it on to every layer, and a layer
that is computed again in the backward pass gets its own. No tensor of the row's width times its width is ever made.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch

from ..errors import InputError
from .trees import Block, Reach, Trees

# What may be asked of the stand-in: shape, device and dtype. Everything else would compute with it.
_HARMLESS = {
    "__get__", "__set__", "size", "dim", "numel", "__len__", "is_floating_point", "is_complex", "as_subclass",
}  # fmt: skip
_UNFOLDED_IS_CHEAPER = 2**0.5 - 1
"""Below this share of keys ahead, a causal square over all of a block's keys has fewer scores than a rectangle."""


_PLACES, _SCORES = 2**14, 2**28
"""Places of rows that attend in one call, padding included, and scores of all heads, which eager attention holds in
float32: a row of the reference pass holds many sequences, and all of them at once would not fit in memory."""


class TreeMask(torch.Tensor):
    """Stands where a finished 4-dimensional mask may stand, and carries the layout to the attention function."""

    trees: Trees
    reach: Reach

    @classmethod
    def of(cls, trees: Trees, reach: Reach, device: torch.device) -> TreeMask:
        """Make the stand-in of a layout, (1, 1, 1, 1) bool."""
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device).as_subclass(cls)
        mask.trees, mask.reach = trees, reach
        return mask

    def to(self, *_args: Any, **_keywords: Any) -> TreeMask:
        """The same object: the layout's tensors are made on the device that asks for them."""
        return self

    def detach(self) -> TreeMask:
        """The same object; reentrant checkpointing detaches what a layer is given."""
        return self

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Refuse to be computed with.

        Raises:
            InputError: an attention outside transformers' interface takes the stand-in for an ordinary mask.
        """
        if getattr(func, "__name__", "") not in _HARMLESS:
            raise InputError(
                "share_prompt and padding_free cannot be used with this model: its attention is not called through "
                f"transformers' interface, or another library has replaced it (asked for {func}). Drop both flags."
            )
        return super().__torch_function__(func, types, args, kwargs or {})


class TreeAttention:
    """An attention function of transformers that attends within the sequences of a row if its mask is a `TreeMask`.

    With any other mask, the arguments are passed on untouched.

    Args:
        name: under which transformers knows the function.
        inner: the function.
    """

    def __init__(self, name: str, inner: Any) -> None:
        self.name, self.inner = name, inner

    def __call__(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Any,
        *args: Any,
        **kw: Any,
    ) -> Any:
        """Attend; query, key and value are (rows, heads, tokens, size), the output is (rows, tokens, heads, size).

        Seam: vision towers give the mask by the name `attention_mask`.
        """
        mask = attention_mask
        if not isinstance(mask, TreeMask):
            return self.inner(module, query, key, value, mask, *args, **kw)
        trees = mask.trees
        trees.reads += 1
        if "flash" in self.name:
            return self._by_flash(trees, module, query, key, value, *args, **kw)
        if self.name == "sdpa" and varlen_takes(mask.reach, query, key, value, **kw):
            return by_varlen(trees, mask.reach, query, key, value, kw.get("scaling")), None
        attend = self._by_row if query.is_cuda else self._by_block
        return attend(trees, mask.reach, module, query, key, value, *args, **kw), None

    def _by_flash(
        self,
        trees: Trees,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *args: Any,
        **kw: Any,
    ) -> Any:
        """Seam: given all four, transformers hands them to the kernel of sequences of different lengths."""
        indices = trees.on(query.device)
        queries, keys, most_queries, most_keys = indices.cumulative
        kw |= {"cu_seq_lens_q": queries, "cu_seq_lens_k": keys, "max_length_q": most_queries, "max_length_k": most_keys}
        key, value = (each.index_select(2, indices.keys) for each in (key, value))
        return self.inner(module, query, key, value, None, *args, **kw)

    def _by_row(
        self, trees: Trees, reach: Reach, module: Any, query: Any, key: Any, value: Any, *args: Any, **kw: Any
    ) -> torch.Tensor:
        """Every sequence as a row, for the attention alone; rows of like length together."""
        groups, back = trees.on(query.device).rows(_PLACES, _SCORES // query.size(1))
        outputs = []
        for rows in groups:
            parts = (each[0][:, rows].transpose(0, 1) for each in (query, key, value))
            mask = self._mask(trees, rows.size(1), rows.size(1), reach, query)
            output, _ = self.inner(module, *parts, mask, *args, **kw)
            outputs.append(output.flatten(0, 1))
        return torch.cat(outputs).index_select(0, back)[None]

    def _by_block(
        self, trees: Trees, reach: Reach, module: Any, query: Any, key: Any, value: Any, *args: Any, **kw: Any
    ) -> torch.Tensor:
        """One call for each block."""
        outputs = []
        for block in trees.blocks:
            keys, values = (_gathered(each, block) for each in (key, value))
            unfolded = 0 < block.num_ahead < _UNFOLDED_IS_CHEAPER * block.num_own
            queries = _gathered(query, block) if unfolded else query[:, :, block.own]
            mask = self._mask(trees, queries.size(2), keys.size(2), reach, query)
            output, _ = self.inner(module, queries, keys, values, mask, *args, **kw)
            outputs.append(output[:, -block.num_own :])
        return torch.cat(outputs, dim=1)

    def _mask(self, trees: Trees, queries: int, keys: int, reach: Reach, query: torch.Tensor) -> torch.Tensor | None:
        """The mask of a block in the form that the function takes; None if it does the same without."""
        window, chunk = (size if size is not None and size < keys else None for size in reach)
        if self.name == "sdpa" and window is None and chunk is None and queries in (1, keys):
            return None  # causal, or one query that sees everything
        seen = trees.visible(queries, keys, (window, chunk), query.device)
        if self.name == "sdpa":
            return seen
        # Eager attention adds its mask to the scores; a boolean one would be taken as 0 and 1, without an error.
        lowest = torch.finfo(query.dtype).min
        return torch.zeros(seen.shape, dtype=query.dtype, device=seen.device).masked_fill(~seen, lowest)


def _gathered(tensor: torch.Tensor, block: Block) -> torch.Tensor:
    if not block.ahead:
        return tensor[:, :, block.own]
    return torch.cat([tensor[:, :, span] for span in (*block.ahead, block.own)], dim=2)


_VARLEN_DTYPES = (torch.float16, torch.bfloat16)


def varlen_takes(
    reach: Reach,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float = 0.0,
    **keywords: Any,
) -> bool:
    """Whether torch's kernel for sequences of different lengths computes the same: in half precision, on a GPU.

    The conditions are those that the kernel checks (torch's flash_api.cpp); in its backward pass, too.
    """
    if (
        dropout
        or reach[1] is not None
        or any(keywords.get(name) is not None for name in ("softcap", "s_aux", "position_bias"))
    ):
        return False
    if attention_dtype(query, key, value) not in _VARLEN_DTYPES:
        return False
    size = query.size(-1)
    if not key.size(-1) == value.size(-1) == size or size % 8 or size > 256 or query.size(1) % key.size(1):
        return False
    return torch.backends.cuda.flash_sdp_enabled() and _has_varlen(query.device)


def attention_dtype(*tensors: torch.Tensor) -> torch.dtype | None:
    """The dtype in which `sdpa` attends: under autocast its dtype, to which `sdpa` casts; None if tensors differ.

    Queries and keys may be in float32 under autocast: rotary embeddings are computed in the dtype of the weights.
    """
    device, dtypes = tensors[0].device.type, {tensor.dtype for tensor in tensors}
    if torch.is_autocast_enabled(device) and torch.float64 not in dtypes:
        return torch.get_autocast_dtype(device)
    return dtypes.pop() if len(dtypes) == 1 else None


@functools.cache
def _has_varlen(device: torch.device) -> bool:
    """Whether this torch has the kernel, for this device."""
    if device.type != "cuda":
        return False
    if torch.version.hip is not None or not torch.backends.cuda.is_flash_attention_available():
        return False  # how ROCm aligns queries and keys of different lengths is not documented
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return "window_size" in inspect.signature(varlen_attn).parameters  # from torch 2.11 on


def by_varlen(
    trees: Trees, reach: Reach, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
) -> torch.Tensor:
    """Attend by `torch.nn.attention.varlen.varlen_attn`, whose causal mask is aligned at the bottom right."""
    from torch.nn.attention import varlen

    indices, dtype = trees.on(query.device), attention_dtype(query, key, value)
    queries, keys, most_queries, most_keys = indices.cumulative
    window, _ = reach
    takes = inspect.signature(varlen.varlen_attn).parameters
    # torch 2.11 takes fewer heads of keys unasked.
    grouped: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in takes else {}
    query, key, value = (each[0].transpose(0, 1).to(dtype) for each in (query, key, value))
    output = varlen.varlen_attn(
        query.contiguous(),
        key.index_select(0, indices.keys),
        value.index_select(0, indices.keys),
        queries,
        keys,
        most_queries,
        most_keys,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        **grouped,
    )
    assert isinstance(output, torch.Tensor)
    return output[None]
