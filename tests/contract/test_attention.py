"""One test for each seam of `trl_dpo_ext/_trl/attention.py` and `forward/`: how transformers' models call their attention."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from accelerate.utils import send_to_device
from torch.utils.checkpoint import checkpoint
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.support import architectures, kernels, tiny
from tests.support.seams import moved

MEND = "_trl/attention.py (replace_attention)"


def seam(fact: str, mend: str) -> str:
    return moved("transformers", fact, mend)


IDS = torch.tensor([[5, 6, 7, 8]])


class Recording:
    """Stands in for an attention function, and passes on what it is given."""

    def __init__(self, name: str, inner: Any) -> None:
        self.name, self.inner, self.calls = name, inner, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.inner(*args, **kwargs)


def test_a_registered_function_is_looked_up_at_each_call() -> None:
    model, inner = tiny.model(attn_implementation="sdpa"), ALL_ATTENTION_FUNCTIONS["sdpa"]
    recording = Recording("sdpa", inner)
    ALL_ATTENTION_FUNCTIONS.register("sdpa", recording)
    try:
        model(IDS)
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is recording, seam("register(name, function) replaces it for all", MEND)
        assert recording.calls == model.config.num_hidden_layers, seam("layers look it up when they are called", MEND)
    finally:
        ALL_ATTENTION_FUNCTIONS.register("sdpa", inner)


@pytest.mark.parametrize("case", ["llama-eager", "gemma2", "gpt-oss"])
def test_eager_attention_is_a_function_of_the_module_that_defines_the_model(monkeypatch, case: str) -> None:
    model = architectures.build(case)
    module = sys.modules[type(model).__module__]
    recording = Recording("eager", module.eager_attention_forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "eager_attention_forward", recording)
    model(IDS)
    assert recording.calls == model.config.num_hidden_layers, seam("eager_attention_forward is looked up by name", MEND)


def test_a_class_tells_whether_it_looks_its_attention_up() -> None:
    mend = "_trl/attention.py (has_interface)"
    for case in ("llama", "gpt2", "gemma2", "deepseek-v3"):
        assert architectures.build(case)._can_set_attn_implementation(), seam("_can_set_attn_implementation()", mend)


def test_flash_attention_takes_sequences_of_different_lengths(monkeypatch) -> None:
    mend = "forward/tree_attention.py (_by_flash)"
    model = tiny.model()
    calls = kernels.use_emulated_flash(monkeypatch, model)
    attend = ALL_ATTENTION_FUNCTIONS["flash_attention_2"]
    query, keys = torch.randn(1, 4, 3, 8).double(), torch.randn(1, 4, 5, 8).double()
    cumulative = {"cu_seq_lens_q": torch.tensor([0, 1, 3]).int(), "cu_seq_lens_k": torch.tensor([0, 2, 5]).int()}
    layer = model.base_model.layers[0].self_attn
    output, _ = attend(
        layer, query, keys, keys, None, dropout=0.0, scaling=0.5, **cumulative, max_length_q=2, max_length_k=3
    )
    assert output.shape == (1, 3, 4, 8), seam("the output is (rows, tokens, heads, size)", mend)
    assert len(calls) == 1, seam("given all four, the kernel for different lengths is called", mend)
    torch.testing.assert_close(
        output[0, 0],
        torch.einsum(
            "hk,hkd->hd", (torch.einsum("hd,hkd->hk", query[0, :, 0], keys[0, :, :2]) * 0.5).softmax(-1), keys[0, :, :2]
        ),
        msg=seam("queries and keys are cut by their own lengths, and keys beyond are not seen", mend),
    )


class Stubborn(torch.Tensor):
    """Notes when it is moved and when it is detached."""

    asked: list[str]

    def to(self, *_args: Any, **_keywords: Any) -> Any:
        self.asked.append("to")
        return self

    def detach(self) -> Any:
        self.asked.append("detach")
        return self


def stubborn() -> Stubborn:
    made = torch.ones(1, 1, 1, 1, dtype=torch.bool).as_subclass(Stubborn)
    made.asked = []
    return made


def test_the_inputs_of_a_layer_are_moved_by_their_own_method() -> None:
    mask = stubborn()
    moved_to = send_to_device({"attention_mask": mask}, torch.device("cpu"))["attention_mask"]
    mend = "forward/tree_attention.py (TreeMask.to)"
    assert moved_to is mask, seam("accelerate's hooks move inputs by to()", mend)
    assert mask.asked == ["to"], seam("accelerate's hooks move inputs by to()", mend)


def test_reentrant_checkpointing_detaches_what_a_layer_is_given_by_position() -> None:
    mask, hidden = stubborn(), torch.ones(2, requires_grad=True)
    seen: list[Any] = []

    def layer(given: torch.Tensor, attention_mask: Any) -> torch.Tensor:
        seen.append(attention_mask)
        return given * 2

    checkpoint(layer, hidden, mask, use_reentrant=True).sum().backward()
    mend = "forward/tree_attention.py (TreeMask.detach)"
    assert mask.asked == ["detach"], seam("torch detaches what is given by position, by its method", mend)
    assert all(each is mask for each in seen), seam("a layer that is computed again gets the same object", mend)
    assert len(seen) == 2
