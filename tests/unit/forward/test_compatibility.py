"""Models that do not give their own log-probs from rows of several sequences are refused, with what to change."""

from __future__ import annotations

from typing import Any

import pytest
from peft import PromptTuningConfig, get_peft_model

from tests.support import architectures
from trl_dpo_ext.forward.compatibility import packing_problems

LINEAR = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "head_dim": 8,
}
LOCAL = {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4}
CHUNKS = {"layer_types": ["full_attention", "chunked_attention"], "attention_chunk_size": 4, "head_dim": 8}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("Qwen3Next", LINEAR, "linear_attention layers"),
        ("Mamba", {"state_size": 4}, "linear_attention layers"),
        ("Bloom", {"n_head": 4, "n_layer": 2}, "position_ids"),
        ("Falcon", {"alibi": True}, "alibi"),
        ("GPTNeo", LOCAL, "attention_types"),
        ("Llama4", CHUNKS, "base_model"),
        ("Llama", {"rope_parameters": DYNAMIC}, "max_length to at most 16"),
    ],
)  # fmt: skip
def test_models_that_cannot_say_so_and_name_what_to_change(name: str, settings: dict, words: str) -> None:
    problems = packing_problems(architectures.construct(name, {"attn_implementation": "eager", **settings}))
    assert words in " ".join(problems)


def test_a_recurrent_state_is_refused(monkeypatch: Any) -> None:
    model = architectures.build("llama")
    monkeypatch.setattr(model, "_is_stateful", True)  # how transformers marks one
    (problem,) = packing_problems(model)
    assert "recurrent state" in problem


def test_flash_attention_knows_no_chunks() -> None:
    model = architectures.build("llama")
    for kernel in ("flash_attention_2", "flash_attention_3", "kernels-community/flash-attn3"):
        model.config._attn_implementation = kernel
        assert packing_problems(model) == []
    model.config.layer_types = ["full_attention", "chunked_attention"]
    (problem,) = packing_problems(model)
    assert "attends in chunks, which kernels-community/flash-attn3 does not know" in problem


def test_attention_outside_the_interface_is_refused(monkeypatch) -> None:
    for case in ("llama", "llama-eager", "gpt2"):
        model = architectures.build(case)
        assert packing_problems(model) == []
        with monkeypatch.context() as patches:
            patches.setattr(type(model), "_can_set_attn_implementation", lambda *_: False)
            (problem,) = packing_problems(model)
        assert "does not call its attention through transformers' interface" in problem
    upcast = architectures.construct("GPT2", {**architectures.EXACT["gpt2"][1], "reorder_and_upcast_attn": True})
    assert "interface" in " ".join(packing_problems(upcast))


def test_a_bound_on_the_length_makes_a_changing_embedding_fixed() -> None:
    model = architectures.construct("Llama", {"rope_parameters": DYNAMIC})
    assert packing_problems(model, longest=16) == []
    assert len(packing_problems(model, longest=17)) == 1


def test_virtual_tokens_are_refused() -> None:
    prompt_learning = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    (problem,) = packing_problems(get_peft_model(architectures.build("llama"), prompt_learning))
    assert "virtual tokens" in problem
