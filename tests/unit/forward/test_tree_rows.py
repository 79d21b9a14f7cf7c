"""Prompts with completions in one row: what the row looks like, and that it gives each sequence its own log-probs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from trl.trainer.utils import add_fused_lm_head

from tests.support import architectures
from trl_dpo_ext.forward.compatibility import branch_problems
from trl_dpo_ext.forward.masks import TreeMask
from trl_dpo_ext.forward.run_rows import row_logps
from trl_dpo_ext.forward.tree_rows import build_tree_rows, row_width

# Ragged prompts, a prompt of one token, completions of one token; rows longer than the windows of the models.
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15]]
COMPLETIONS = {
    1: [[[21, 22, 23]], [[24]], [[25, 26, 27, 28, 29, 2]]],
    2: [[[21, 22, 23], [31]], [[24], [32, 33, 34, 35, 36, 37]], [[25, 26, 27], [41, 42]]],
    3: [[[21], [31, 32, 33], [41, 42]], [[24, 25], [24, 35], [2]], [[25, 26, 27, 28, 29], [30], [31, 32, 2]]],
}


def sequences(k: int) -> list[tuple[list[int], list[int]]]:
    return [(prompt, each) for prompt, many in zip(PROMPTS, COMPLETIONS[k], strict=True) for each in many]


def separately(model: Any, k: int) -> torch.Tensor:
    """Every completion's log-probs, each sequence run alone through the model's own forward."""
    parts = []
    for prompt, completion in sequences(k):
        ids = torch.tensor([prompt + completion])
        logps = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        parts.append(logps.gather(-1, ids[0, 1:, None]).squeeze(-1)[len(prompt) - 1 :])
    return torch.cat(parts)


def gradients(model: Any, logps: torch.Tensor) -> list[torch.Tensor]:
    """Of a sum in which no two tokens weigh the same."""
    weights = torch.linspace(-1.0, 2.0, len(logps), dtype=logps.dtype)
    trained = [p for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    (logps * weights).sum().backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in trained]


def test_a_row_is_the_prefix_and_a_branch_for_each_completion() -> None:
    rows = build_tree_rows([[5, 6, 7], [8]], [[[9, 2], [10, 11, 2]], [[12, 2]]], pad_token_id=0)
    assert rows.input_ids.tolist() == [[5, 6, 7, 9, 7, 10, 11], [8, 12, 0, 0, 0, 0, 0]]
    assert rows.position_ids.tolist() == [[0, 1, 2, 3, 2, 3, 4], [0, 1, 0, 0, 0, 0, 0]]
    assert rows.branch.tolist() == [[0, 0, 1, 1, 2, 2, 2], [1, 1, -1, -1, -1, -1, -1]]
    assert rows.labels.tolist() == [[-100, -100, 9, 2, 10, 11, 2], [12, 2, -100, -100, -100, -100, -100]]
    assert row_width(3, [2, 3]) == 7
    assert rows.has_trees
    assert not build_tree_rows([[5, 6]], [[[9, 2]]], pad_token_id=0).has_trees


@pytest.mark.parametrize(("prompts", "completions"), [([[]], [[[1]]]), ([[1]], [[]])])
def test_a_row_needs_a_prompt_and_a_completion(prompts: Any, completions: Any) -> None:
    with pytest.raises(ValueError, match="at least one"):
        build_tree_rows(prompts, completions, pad_token_id=0)


def test_what_a_token_sees() -> None:
    rows = build_tree_rows([[5, 6, 7]], [[[9, 2], [10, 2]]], pad_token_id=0)
    sight = TreeMask(rows.branch, rows.position_ids).as_tensor()[0, 0].int().tolist()
    assert sight == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 1],
    ]
    windowed = TreeMask(rows.branch, rows.position_ids, window=2).as_tensor()[0, 0].int().tolist()
    assert windowed[4] == [0, 1, 0, 0, 1, 0]  # position 2 sees position 1, three places to its left


@pytest.mark.parametrize("k", sorted(COMPLETIONS))
@pytest.mark.parametrize("case", sorted(architectures.EXACT))
def test_every_architecture_gives_its_own_log_probs_and_gradients(case: str, k: int) -> None:
    with architectures.double_precision():
        model = architectures.build(case, torch.float64)
        assert branch_problems(model) == []
        expected = separately(model, k)
        before = gradients(model, expected)
        add_fused_lm_head(model)
        found = row_logps(model, model, build_tree_rows(PROMPTS, COMPLETIONS[k], pad_token_id=0))
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        for ours, theirs in zip(gradients(model, found), before, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("k", sorted(COMPLETIONS))
@pytest.mark.parametrize("case", ["llama", "gemma3", "mixtral-window", "gpt2", "gpt-oss"])
def test_the_fused_head_scores_the_same(case: str, k: int) -> None:
    model = architectures.build(case)
    expected = separately(model, k)
    before = gradients(model, expected)
    add_fused_lm_head(model)
    found = row_logps(model, model, build_tree_rows(PROMPTS, COMPLETIONS[k], pad_token_id=0))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(gradients(model, found), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * max(1.0, float(theirs.abs().max())))


def test_the_head_scores_completion_tokens_alone() -> None:
    model = architectures.build("llama")
    add_fused_lm_head(model)
    seen = []
    model.base_model.register_forward_hook(lambda _m, _i, output: seen.append(output.last_hidden_state.shape))
    rows = build_tree_rows(PROMPTS, COMPLETIONS[2], pad_token_id=0)
    row_logps(model, model, rows)
    tokens = sum(len(completion) for _, completion in sequences(2))
    assert seen == [(1, tokens, 32)]
    model(input_ids=rows.input_ids)
    assert seen[1][:2] == rows.input_ids.shape  # nothing is left behind


def test_an_adapter_and_checkpointing_change_nothing() -> None:
    model = architectures.build("llama")
    add_fused_lm_head(model)
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    rows = build_tree_rows(PROMPTS, COMPLETIONS[2], pad_token_id=0)
    expected = separately(wrapped, 2)
    before = gradients(wrapped, expected)
    wrapped.enable_input_require_grads()
    wrapped.gradient_checkpointing_enable()
    wrapped.train()
    found = row_logps(wrapped, model, rows)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(gradients(wrapped, found), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_flex_attention_takes_blocks() -> None:
    expected = separately(architectures.build("gemma3"), 3)
    model = architectures.construct(
        "Gemma3", {**architectures.EXACT["gemma3"][1], "attn_implementation": "flex_attention"}
    )
    add_fused_lm_head(model)
    with torch.no_grad():  # on a CPU its backward does not exist
        found = row_logps(model, model, build_tree_rows(PROMPTS, COMPLETIONS[3], pad_token_id=0))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


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
    problems = branch_problems(architectures.construct(name, {"attn_implementation": "eager", **settings}))
    assert words in " ".join(problems)


def test_a_recurrent_state_is_refused(monkeypatch: Any) -> None:
    model = architectures.build("llama")
    monkeypatch.setattr(model, "_is_stateful", True)  # how transformers marks one
    (problem,) = branch_problems(model)
    assert "recurrent state" in problem


def test_flash_attention_is_refused() -> None:
    model = architectures.build("llama")
    for kernel in ("flash_attention_2", "flash_attention_3", "kernels-community/flash-attn3"):
        model.config._attn_implementation = kernel
        (problem,) = branch_problems(model)
        assert kernel in problem
        assert "sdpa" in problem


def test_a_bound_on_the_length_makes_a_changing_embedding_fixed() -> None:
    model = architectures.construct("Llama", {"rope_parameters": DYNAMIC})
    assert branch_problems(model, longest=16) == []
    assert len(branch_problems(model, longest=17)) == 1


def test_virtual_tokens_are_refused() -> None:
    prompt_learning = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    (problem,) = branch_problems(get_peft_model(architectures.build("llama"), prompt_learning))
    assert "virtual tokens" in problem
