"""On a GPU the forward pass of packed rows mixes no devices, and the host never waits for the device."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from trl.trainer.utils import add_fused_lm_head

from tests.support import architectures
from tests.support.fake_cuda import add_head, add_plain_head, autocast, fake_cuda, no_waits, without_kernels
from trl_dpo_ext.core import token_kl
from trl_dpo_ext.core.token_kl import Projection
from trl_dpo_ext.forward import packed_model, tree_attention
from trl_dpo_ext.forward.block_masks import block_mask
from trl_dpo_ext.forward.packed_model import PackedModel, PairPacker
from trl_dpo_ext.forward.packing import pack, pad
from trl_dpo_ext.forward.run_rows import sequence_logps
from trl_dpo_ext.forward.trees import Trees

from .cases import FIELDS, PAIRS

BATCH = (PAIRS["input_ids"], PAIRS["attention_mask"], PAIRS["labels"])


@pytest.fixture(autouse=True)
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    without_kernels(monkeypatch)
    monkeypatch.setattr(tree_attention, "_has_varlen", lambda device: False)


class Operators(TorchDispatchMode):
    """Names of the operators that were called, and of copies."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.names.append(func.overloadpacket.__name__)
        if self.names[-1] == "_to_copy" and (args[0].device.type, output.device.type) == ("cpu", "cuda"):
            self.names.append("copied to the device")
        return output


def run(case: str, dtype: torch.dtype, share: bool, cast: bool = False) -> tuple[Any, list[str]]:
    model = architectures.build(case, dtype)
    add_head(model, outputs=FIELDS)
    packed = packed_model._pack_pairs(*BATCH, share, False)  # reads the batch, once
    call = PackedModel(model, model, lambda *_: packed)  # type: ignore[arg-type]
    with fake_cuda() as on_gpu:
        on_gpu(model)
        inputs = on_gpu(PAIRS)
        with no_waits(), Operators() as seen, autocast(cast):
            return call(**inputs, fused_lm_head=True), seen.names


def test_the_head_in_place_of_trl_1_15s_gives_what_trls_gives() -> None:
    labels = torch.tensor([[7, 8, 9, 2]])
    outputs = []
    for add in (add_fused_lm_head, add_plain_head):
        model = architectures.build("llama-eager")  # the stand-in for `sdpa` gives no values
        add(model, outputs=FIELDS)
        with torch.no_grad():
            outputs.append(model(input_ids=torch.tensor([[5, 6, 7, 8]]), shift_labels=labels, fused_lm_head=True))
    for name, expected in outputs[0].items():
        torch.testing.assert_close(outputs[1][name], expected, rtol=1e-4, atol=1e-5)


def check(output: Any) -> None:
    for name in FIELDS:
        field = getattr(output, name)
        assert field.device.type == "cuda"
        assert field.shape == PAIRS["labels"][:, 1:].shape
    assert output.log_probs.dtype == torch.float32


@pytest.mark.parametrize("share", [True, False], ids=["share_prompt", "padding_free"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "autocast"])
def test_a_packed_row_stays_on_the_device(precision: str, share: bool) -> None:
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    check(run("llama", dtype, share, precision == "autocast")[0])


@pytest.mark.parametrize("case", ["llama-eager", "gemma2", "gemma3", "gpt2", "olmo3"])
def test_so_do_windows_soft_capping_and_eager_attention(case: str) -> None:
    check(run(case, torch.bfloat16, True)[0])


@pytest.mark.parametrize("case", ["llama", "qwen3-window", "cohere2"])
@pytest.mark.parametrize("cast", [True, False], ids=["autocast", "bfloat16"])
def test_so_does_the_kernel_for_different_lengths(monkeypatch, case: str, cast: bool) -> None:
    monkeypatch.setattr(tree_attention, "_has_varlen", lambda device: True)
    calls = stand_in(monkeypatch)
    output, names = run(case, torch.float32 if cast else torch.bfloat16, True, cast)
    check(output)
    assert "scaled_dot_product_attention" not in " ".join(names)
    assert len(calls) == architectures.build(case).config.num_hidden_layers
    assert set(calls) == {(torch.bfloat16, torch.int32, "cuda")}


def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """In the kernel's place, what records its arguments and gives an output of its shape."""
    calls: list[Any] = []

    def varlen_attn(q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int, **keywords: Any) -> Any:
        assert {q.dtype, k.dtype, v.dtype} == {q.dtype}
        assert type(max_q) is type(max_k) is int
        assert cu_q.device == cu_k.device == q.device == k.device == v.device
        calls.append((q.dtype, cu_q.dtype, q.device.type))
        return torch.empty_like(q)

    varlen_attn.__signature__ = inspect.signature(  # type: ignore[attr-defined]
        lambda *, window_size, enable_gqa: None
    )
    module: Any = ModuleType("torch.nn.attention.varlen")
    module.varlen_attn = varlen_attn
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(torch.nn.attention, "varlen", module, raising=False)
    return calls


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_so_do_rows_of_the_reference_pass(packed: bool) -> None:
    model = architectures.build("llama", torch.bfloat16)
    add_head(model)
    completions = [np.array([21, 22, 2]), np.array([23, 2])]
    fed = [np.array([5, 6, 7, *completion[:-1]]) for completion in completions]
    rows = pack(fed, [0, 0]) if packed else pad(fed)
    with fake_cuda() as on_gpu:
        on_gpu(model)
        with no_waits():
            logps = sequence_logps(model, model, rows, completions, [2, 2])
    assert logps.device.type == "cuda"
    assert logps.shape == (5,)


def test_a_row_and_what_belongs_to_it_are_one_copy() -> None:
    _, names = run("llama", torch.bfloat16, True)
    # The row with its positions and labels, where values stand in the batch, the rows of the attention, and the way back.
    assert names.count("copied to the device") == 4


def test_the_host_reads_a_batch_once_for_both_models(monkeypatch) -> None:
    reads: list[Any] = []
    kept = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor, *args: reads.append(tensor.shape) or kept(tensor, *args))
    model = architectures.build("llama")
    add_head(model)
    packer = PairPacker(True)
    with torch.no_grad():
        for _ in ("policy", "reference"):
            PackedModel(model, model, packer)(**PAIRS, fused_lm_head=True)
    assert reads == [(3, *PAIRS["input_ids"].shape)]


def test_the_divergence_of_tokens_needs_no_copy_of_the_output_layer(monkeypatch) -> None:
    monkeypatch.setattr(token_kl, "_product", lambda a, b: torch.mm(a, b).float())
    monkeypatch.setattr(token_kl, "_multiplies_to_float32", lambda device: device.type == "cuda")
    mask = torch.ones(2, 3, dtype=torch.bool)
    monkeypatch.setattr(
        torch.Tensor, "nonzero", lambda given: torch.arange(given.numel(), device=given.device)[:, None]
    )
    models = [
        Projection(torch.randn(6, 8).bfloat16(), torch.randn(1000, 8).bfloat16(), torch.randn(1000)) for _ in range(2)
    ]
    with fake_cuda() as on_gpu:
        given = [*(on_gpu(each) for each in models), on_gpu(mask)]
        with no_waits(), Operators() as seen:
            found = token_kl.token_kl(*given)
    assert (found.shape, found.dtype, found.device.type) == (mask.shape, torch.float32, "cuda")
    assert "masked_scatter" not in seen.names


@pytest.mark.parametrize("reach", [(None, None), (64, None), (None, 64)])
def test_the_mask_of_flex_attention_is_one_copy(reach: Any) -> None:
    trees = Trees([300, 20, 30], [-1, 0, 0])
    with fake_cuda(), no_waits(), Operators() as seen:
        mask = block_mask(trees, reach, torch.device("cuda:0"))
    assert mask.kv_indices.device.type == mask.q_indices.device.type == "cuda"
    assert seen.names.count("copied to the device") == 1
