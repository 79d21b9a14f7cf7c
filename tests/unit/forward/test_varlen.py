"""torch's kernel for sequences of different lengths is asked for what it takes, and for nothing else."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from trl.trainer.utils import add_fused_lm_head

from tests.support import architectures, kernels
from trl_dpo_ext.forward import tree_attention
from trl_dpo_ext.forward.packed_model import PackedModel, PairPacker
from trl_dpo_ext.forward.tree_attention import attention_dtype, by_varlen, varlen_takes
from trl_dpo_ext.forward.trees import Trees

from .cases import PAIRS

HAS_VARLEN = tree_attention._has_varlen
TREES = Trees([5, 3, 4, 2, 6, 1], [-1, 0, 0, -1, 3, 3])
"""Two trees of two branches each; the last block has one query."""


Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def heads(queries: int = 4, keys: int = 2, size: int = 8, dtype: torch.dtype = torch.float64) -> Heads:
    """Query, key and value of a row as layers give them: views of (1, tokens, heads, size)."""
    draw = torch.Generator().manual_seed(0)
    counts = (queries, keys, keys)
    made = [torch.randn(1, TREES.width, n, size, generator=draw, dtype=torch.float64) for n in counts]
    query, key, value = (each.to(dtype).transpose(1, 2).requires_grad_() for each in made)
    return query, key, value


def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None, scale: float) -> Any:
    """The same with the definition of what each place sees."""
    places, positions = torch.arange(TREES.width), torch.from_numpy(TREES.positions)
    seen = (places[None] <= places[:, None]) & (places[:, None] < torch.from_numpy(TREES.subtree_ends)[None])
    if window is not None:
        seen &= positions[:, None] - positions[None] < window
    groups = query.size(1) // key.size(1)
    key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    scores = (query @ key.transpose(2, 3) * scale).masked_fill(~seen, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("version", ["2.11", "2.14"])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize(("queries", "keys"), [(4, 2), (4, 4), (3, 1)])
def test_every_layout_window_and_version(
    monkeypatch, version: str, window: int | None, queries: int, keys: int
) -> None:
    calls = kernels.use_emulated_varlen(monkeypatch, version)
    inputs = heads(queries, keys)
    assert varlen_takes((window, None), *inputs)
    output = by_varlen(TREES, (window, None), *inputs, 0.3)
    expected = dense(*inputs, window, 0.3)
    torch.testing.assert_close(output, expected)
    given = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(
        torch.autograd.grad(output, inputs, given), torch.autograd.grad(expected, inputs, given), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    assert calls == [
        {"dtype": torch.float64, "window": (-1 if window is None else window - 1, 0), "heads": (queries, keys)}
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_what_it_is_for(monkeypatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(tree_attention, "_has_varlen", lambda device: True)
    assert varlen_takes((None, None), *heads(dtype=dtype))
    assert varlen_takes((7, None), *heads(size=256, dtype=dtype))
    assert varlen_takes((None, None), *heads(dtype=dtype), dropout=0.0, softcap=None, s_aux=None, scaling=0.3)


@pytest.mark.parametrize(
    ("keywords", "reach"),
    [
        ({"dropout": 0.1}, (None, None)),
        ({"softcap": 30.0}, (None, None)),
        ({"s_aux": torch.zeros(4)}, (None, None)),
        ({"position_bias": torch.zeros(1)}, (None, None)),
        ({}, (None, 8)),
    ],
    ids=["dropout", "soft-capping", "sinks", "bias", "chunks"],
)
def test_what_it_would_leave_out_is_computed_otherwise(monkeypatch, keywords: dict[str, Any], reach: Any) -> None:
    monkeypatch.setattr(tree_attention, "_has_varlen", lambda device: True)
    assert not varlen_takes(reach, *heads(dtype=torch.bfloat16), **keywords)


def test_shapes_and_dtypes_that_it_refuses_are_computed_otherwise(monkeypatch) -> None:
    monkeypatch.setattr(tree_attention, "_has_varlen", lambda device: True)
    half = torch.bfloat16
    query, key, value = heads(dtype=half)
    refused: dict[str, Heads] = {
        "float32": heads(dtype=torch.float32),
        "float64": heads(dtype=torch.float64),
        "size not a multiple of 8": heads(size=12, dtype=half),
        "size above 256": heads(size=264, dtype=half),
        "heads that do not divide": heads(3, 2, dtype=half),
        "narrower values": (query, key, value[..., :4]),
        "other dtypes": (query.float(), key, value),
        "other half": (query, key, value.half()),
    }
    assert not [name for name, inputs in refused.items() if varlen_takes((None, None), *inputs)]
    monkeypatch.setattr(tree_attention, "_VARLEN_DTYPES", (*tree_attention._VARLEN_DTYPES, torch.float64))
    layout = TREES.on(torch.device("cpu"))
    for name in ("size not a multiple of 8", "size above 256", "heads that do not divide", "other half"):
        q, k, v = (each[0].transpose(0, 1) for each in refused[name])
        with pytest.raises(AssertionError):  # the emulation is as strict
            kernels.varlen(q, k[layout.keys], v[layout.keys], *layout.cumulative, causal=True)


def test_the_user_can_turn_flash_attention_off(monkeypatch) -> None:
    monkeypatch.setattr(tree_attention, "_has_varlen", lambda device: True)
    monkeypatch.setattr(torch.backends.cuda, "flash_sdp_enabled", lambda: False)
    assert not varlen_takes((None, None), *heads(dtype=torch.bfloat16))


@pytest.mark.parametrize("missing", ["nothing", "Ampere", "CUDA", "flash", "the module", "windows"])
def test_a_device_without_the_kernel_is_known(monkeypatch, missing: str) -> None:
    kernels.use_emulated_varlen(monkeypatch)
    if missing == "the module":
        monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5) if missing == "Ampere" else (9, 0))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: missing != "flash")
    monkeypatch.setattr(torch.version, "hip", "6.4" if missing == "CUDA" else None)
    if missing == "windows":  # torch 2.10 has is_causal in their place
        monkeypatch.setattr(sys.modules["torch.nn.attention.varlen"], "varlen_attn", lambda *_, is_causal=False: None)
    ask = HAS_VARLEN.__wrapped__  # without its cache
    assert ask(torch.device("cuda", 0)) is (missing == "nothing")
    assert not ask(torch.device("cpu"))


def test_autocast_decides_in_which_dtype_sdpa_attends() -> None:
    single, half = heads(dtype=torch.float32), heads(dtype=torch.bfloat16)
    assert attention_dtype(*single) == torch.float32
    assert attention_dtype(*half) == torch.bfloat16
    assert attention_dtype(single[0], half[1]) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert attention_dtype(single[0], half[1]) == torch.bfloat16
        query, key, value = heads(2, 2, dtype=torch.float32)
        assert F.scaled_dot_product_attention(query, key, value).dtype == torch.bfloat16
        assert attention_dtype(*heads()) == torch.float64
        query, key, value = heads(2, 2)
        assert F.scaled_dot_product_attention(query, key, value).dtype == torch.float64


# Weights in float32 leave queries and keys in float32 after the rotary embedding (llama), or a norm (qwen3).
@pytest.mark.parametrize("case", ["llama", "qwen3", "gpt2", "mixtral-window"])
@pytest.mark.parametrize("reentrant", [None, True, False])
def test_under_autocast_the_kernel_gets_half_precision(monkeypatch, case: str, reentrant: bool | None) -> None:
    calls = kernels.use_emulated_varlen(monkeypatch)
    model = architectures.build(case)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    add_fused_lm_head(model)
    if reentrant is not None:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.train()
    scored = PAIRS["labels"][:, 1:] != -100
    with torch.autocast("cpu", torch.bfloat16):
        plain = model(**PAIRS, fused_lm_head=True, use_cache=False).log_probs
        calls.clear()
        found = PackedModel(model, model, PairPacker(True))(**PAIRS, fused_lm_head=True).log_probs
    layers = model.config.num_hidden_layers
    assert len(calls) == layers
    (found * torch.linspace(-1, 1, found.numel()).view(found.shape)).sum().backward()
    assert len(calls) == layers * (1 if reentrant is None else 2)
    assert {call["dtype"] for call in calls} == {torch.bfloat16}
    assert ((found - plain).abs() * scored).max() < 0.1
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_lengths_and_index_tensors_are_what_the_kernel_wants_on_every_random_layout() -> None:
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        count = int(torch.randint(1, 12, (), generator=draw))
        lengths = torch.randint(1, 9, (count,), generator=draw).tolist()
        parents = [-1]
        for node in range(1, count):  # depth first: a parent is on the path to the node before
            path = [-1, *Trees(lengths[:node], parents).path(node - 1)]
            parents.append(path[int(torch.randint(len(path), (), generator=draw))])
        trees = Trees(lengths, parents)
        layout = trees.on(torch.device("cpu"))
        queries, keys, *most = layout.cumulative
        tokens = torch.zeros(trees.width, 1, 8, dtype=torch.bfloat16)
        kernels.check_arguments(tokens, tokens[layout.keys], tokens[layout.keys], queries, keys, *most)
