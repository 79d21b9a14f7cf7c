"""A packed row gives every architecture's own log-probs and gradients, however its attention is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from trl.trainer.utils import add_fused_lm_head

from tests.support import architectures, kernels
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.forward import packing, tree_attention
from trl_dpo_ext.forward.compatibility import packing_problems
from trl_dpo_ext.forward.packed_model import PackedModel, PairPacker
from trl_dpo_ext.forward.tree_attention import TreeAttention, TreeMask
from trl_dpo_ext.forward.trees import Trees

from .cases import FIELDS, PAIRS, batch, output_and_gradients


@pytest.fixture(autouse=True)
def share_short_beginnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "LEAST_SHARED", 2)


def with_head(case: str, dtype: torch.dtype = torch.float32) -> Any:
    model = architectures.build(case, dtype)
    add_fused_lm_head(model, outputs=FIELDS)
    return model


def packable(case: str) -> bool:
    """GPT-J calls its attention through transformers' interface from transformers 5.24 on."""
    return case != "gptj" or not packing_problems(architectures.build(case))


def check_exact(case: str, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    with architectures.double_precision():
        model = with_head(case, torch.float64)
        routed = hasattr(model.config, "num_experts")
        plain, before = output_and_gradients(model, model, routed)
        attend_by(way, model, monkeypatch)
        for share in (True, False):
            output, after = output_and_gradients(model, PackedModel(model, model, PairPacker(share)), routed)
            for name in FIELDS:
                found, expected = getattr(output, name), getattr(plain, name)
                assert found.shape == expected.shape
                torch.testing.assert_close(found.double(), expected.double(), rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(output.label_mask, PAIRS["labels"][:, 1:] != -100)
            if routed:
                torch.testing.assert_close(output.aux_loss, plain.aux_loss, rtol=1e-9, atol=1e-9)
            for ours, theirs in zip(after, before, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def attend_by(way: str, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attend as on a GPU: by rows, or by a kernel that is emulated."""
    if way == "rows":
        monkeypatch.setattr(TreeAttention, "_by_block", TreeAttention._by_row)
    elif way == "flash":
        kernels.use_emulated_flash(monkeypatch, model)
    elif way == "varlen":
        kernels.use_emulated_varlen(monkeypatch)


@pytest.mark.parametrize("case", sorted(filter(packable, architectures.EXACT)))
def test_every_architecture_answers_as_in_its_plain_forward(monkeypatch, case: str) -> None:
    check_exact(case, monkeypatch, "blocks")


# One case of every feature of attention: grouped heads, windows, soft-capping, sinks, values narrower than keys, experts.
@pytest.mark.parametrize(
    "case", ["llama", "llama-eager", "gpt2", "gemma2", "gemma3", "gpt-oss", "deepseek-v3", "mixtral-window", "olmo3"]
)
@pytest.mark.parametrize("way", ["rows", "flash", "varlen"])
def test_each_way_to_attend_is_exact(monkeypatch, way: str, case: str) -> None:
    if way == "varlen" and (architectures.build(case).config._attn_implementation != "sdpa" or case == "deepseek-v3"):
        case = "qwen3-window"  # varlen is sdpa's kernel, for values as wide as keys
    check_exact(case, monkeypatch, way)


@pytest.mark.parametrize("case", ["llama", "llama-eager", "gemma3", "gpt-oss"])
def test_rows_attend_in_groups_so_that_many_sequences_fit_in_memory(monkeypatch, case: str) -> None:
    monkeypatch.setattr(tree_attention, "_PLACES", 24)
    monkeypatch.setattr(tree_attention, "_SCORES", 4 * 200)
    rows: list[tuple[int, int]] = []
    kept = TreeAttention._mask

    def mask(self: Any, trees: Any, queries: int, *args: Any) -> Any:
        rows.append((queries, len(trees.sequences)))
        return kept(self, trees, queries, *args)

    monkeypatch.setattr(TreeAttention, "_mask", mask)
    check_exact(case, monkeypatch, "rows")
    assert len({longest for longest, _ in rows}) > 1
    assert rows[0][0] == max(longest for longest, _ in rows)


@pytest.mark.parametrize("case", ["llama", "gemma2"])
def test_the_plain_forward_stays_as_it_is_to_the_last_bit(case: str) -> None:
    model = with_head(case)
    plain, before = output_and_gradients(model, model, routed=False)
    output_and_gradients(model, PackedModel(model, model, PairPacker(True)), routed=False)
    again, after = output_and_gradients(model, model, routed=False)
    assert torch.equal(plain.log_probs, again.log_probs)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(after, before, strict=True))


@pytest.mark.parametrize("reentrant", [None, True, False])
@pytest.mark.parametrize("case", ["llama", "gpt2", "gemma3", "gemma2"])
def test_layouts_that_are_alive_at_once_keep_apart(case: str, reentrant: bool | None) -> None:
    model = with_head(case)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if reentrant is not None:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.train()
    _, shared = output_and_gradients(model, PackedModel(model, model, PairPacker(True)), routed=False)
    _, apart = output_and_gradients(model, PackedModel(model, model, PairPacker(False)), routed=False)
    model.zero_grad()
    weights = torch.linspace(-1.0, 2.0, PAIRS["labels"][:, 1:].numel()).view(PAIRS["labels"][:, 1:].shape)
    losses = [
        (PackedModel(model, model, PairPacker(share))(**PAIRS, fused_lm_head=True).log_probs * weights).sum()
        for share in (True, False)
    ]
    with torch.no_grad():
        PackedModel(model, model, PairPacker(True))(**{k: v[::2] for k, v in PAIRS.items()}, fused_lm_head=True)
    for loss in losses:  # backward of the first runs after two other forwards
        loss.backward()
    for parameter, one, other in zip(model.parameters(), shared, apart, strict=True):
        torch.testing.assert_close(parameter.grad, one + other, rtol=1e-4, atol=1e-4)


def test_an_adapter_is_switched_as_in_the_plain_forward() -> None:
    model = with_head("llama")
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    packed = PackedModel(wrapped, model, PairPacker(True))
    with torch.no_grad():
        adapted, expected = (call(**PAIRS, fused_lm_head=True).log_probs for call in (packed, wrapped))
        with wrapped.disable_adapter():
            base = packed(**PAIRS, fused_lm_head=True).log_probs
    torch.testing.assert_close(adapted, expected * (PAIRS["labels"][:, 1:] != -100), rtol=1e-4, atol=1e-5)
    assert (base - adapted).abs().max() > 0.1


def test_flex_attention_takes_blocks() -> None:
    settings = {**architectures.EXACT["gemma3"][1], "attn_implementation": "flex_attention"}
    expected, model = with_head("gemma3"), architectures.construct("Gemma3", settings)
    add_fused_lm_head(model, outputs=FIELDS)
    with torch.no_grad():  # on a CPU its backward does not exist
        found = PackedModel(model, model, PairPacker(True))(**PAIRS, fused_lm_head=True).log_probs
        plain = expected(**PAIRS, fused_lm_head=True).log_probs
    torch.testing.assert_close(found, plain * (PAIRS["labels"][:, 1:] != -100), rtol=1e-4, atol=1e-5)


def test_nothing_computes_with_the_layout_as_if_it_were_a_mask() -> None:
    mask = TreeMask.of(Trees([2], [-1]), (None, None), torch.device("cpu"))
    assert mask.to("cpu") is mask.detach() is mask
    assert (mask.dim(), mask.dtype, mask.device.type) == (4, torch.bool, "cpu")
    for compute in (
        lambda: mask + 1,
        lambda: torch.where(mask, 0.0, 1.0),
        lambda: mask[0],
        lambda: mask.expand(2, 1, 1, 1),
    ):
        with pytest.raises(InputError, match="not called through transformers' interface"):
            compute()


def test_an_attention_that_another_library_replaces_is_found(monkeypatch) -> None:
    model = with_head("llama-eager")
    module = __import__(type(model).__module__, fromlist=["x"])

    def ignores_its_mask(_module: Any, query: Any, key: Any, value: Any, _mask: Any, **_: Any) -> Any:
        return torch.zeros_like(query).transpose(1, 2), None

    # What is not ours is wrapped; what hides the interface has to be found.
    monkeypatch.setattr(tree_attention.TreeAttention, "__call__", lambda self, *args, **_: ignores_its_mask(*args))
    monkeypatch.setattr(module, "eager_attention_forward", module.eager_attention_forward)
    with pytest.raises(InputError, match="no layer of LlamaForCausalLM has asked"):
        PackedModel(model, model, PairPacker(True))(**PAIRS, fused_lm_head=True)


def test_other_inputs_and_padding_on_the_left_are_refused() -> None:
    model = with_head("llama")
    packed = PackedModel(model, model, PairPacker(True))
    with pytest.raises(InputError, match="pixel_values"):
        packed(**PAIRS, fused_lm_head=True, pixel_values=torch.zeros(1))
    with pytest.raises(InputError, match="padded on the right"):
        packed(**{name: tensor.flip(1) for name, tensor in PAIRS.items()}, fused_lm_head=True)


_ASK, _SAY = [5, 6, 7], [5, 6, 8]
"""Prompts of fewer tokens than sequences with different prompts share."""


@pytest.mark.parametrize(
    ("pairs", "width"),
    [
        # Lists, as the collator lays them out: of four answers, of five with one once more, and two lists in turn.
        ([(_ASK, [21, 2], [22, 2]), (_ASK, [23, 2], [24, 25, 2])], 3 + 1 + 1 + 1 + 2),
        ([(_ASK, [21, 2], [22, 2]), (_ASK, [23, 2], [24, 2]), (_ASK, [25, 2], [21, 2])], 3 + 5),
        ([(_ASK, [21, 2], [22, 2]), (_SAY, [21, 2], [22, 2]), (_ASK, [23, 2], [24, 2])], 3 + 4 + 3 + 2),
        # Pairs: rows with one prompt share it, and rows of which it is only the beginning do not.
        ([(_ASK, [21, 2], [22, 2]), ([*_ASK, 9], [21, 2], [22, 2])], 3 + 2 + 4 + 2),
    ],
)
def test_every_answer_to_a_prompt_shares_it_however_short(monkeypatch, pairs: Any, width: int) -> None:
    monkeypatch.undo()
    assert len(_ASK) < packing.LEAST_SHARED
    inputs = batch(*pairs)
    assert PairPacker(True)(**inputs).packed.input_ids.shape == (1, width)
    with architectures.double_precision():
        model = with_head("llama", torch.float64)
        shared, plain = (
            call(**inputs, fused_lm_head=True) for call in (PackedModel(model, model, PairPacker(True)), model)
        )
        scored = inputs["labels"][:, 1:] != -100
        torch.testing.assert_close(shared.log_probs, plain.log_probs * scored, rtol=1e-9, atol=1e-9)


def test_policy_and_reference_are_given_one_layout() -> None:
    packer = PairPacker(True)
    asked = {name: PAIRS[name] for name in ("input_ids", "attention_mask", "labels")}
    first = packer(**asked, with_last=False)
    assert packer(**asked, with_last=False) is first
    assert packer(**asked, with_last=True) is not first
    assert packer(**{k: v.clone() for k, v in asked.items()}, with_last=False) is not first
