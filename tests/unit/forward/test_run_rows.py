"""Completions of prompts, packed or padded: each gets the log-probs that its sequence has alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from trl.trainer.utils import add_fused_lm_head

from tests.support import architectures
from trl_dpo_ext.forward.packing import Packed, pack, pad
from trl_dpo_ext.forward.run_rows import sequence_logps

# Ragged prompts, a prompt of one token; rows longer than the windows of the models.
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15]]
COMPLETION_LENGTHS = [[3, 1, 6, 2, 1, 4, 5], [1, 6, 2, 2, 3, 1, 1], [6, 2, 3, 1, 1, 5, 2]]


def sequences(k: int) -> list[tuple[list[int], list[int]]]:
    """Each prompt with `k` completions, some of one token."""
    tokens = iter(range(10**6))
    return [
        (prompt, [20 + next(tokens) % 40 for _ in range(length)])
        for prompt, lengths in zip(PROMPTS, COMPLETION_LENGTHS, strict=True)
        for length in lengths[:k]
    ]


def separately(model: Any, k: int) -> torch.Tensor:
    """Every completion's log-probs, each sequence run alone through the model's own forward."""
    parts = []
    for prompt, completion in sequences(k):
        ids = torch.tensor([prompt + completion])
        logps = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        parts.append(logps.gather(-1, ids[0, 1:, None]).squeeze(-1)[len(prompt) - 1 :])
    return torch.cat(parts)


def together(model: Any, causal: Any, k: int, packed: bool = True) -> torch.Tensor:
    return sequence_logps(model, causal, *rows(k, packed))


def rows(k: int, packed: bool = True) -> tuple[Packed, list[np.ndarray], list[int]]:
    fed = [np.array(prompt + completion[:-1]) for prompt, completion in sequences(k)]
    made = pack(fed, [tuple(prompt) for prompt, _ in sequences(k)]) if packed else pad(fed)
    return made, [np.array(completion) for _, completion in sequences(k)], [len(p) - 1 for p, _ in sequences(k)]


def gradients(model: Any, logps: torch.Tensor) -> list[torch.Tensor]:
    """Of a sum in which no two tokens weigh the same."""
    weights = torch.linspace(-1.0, 2.0, len(logps), dtype=logps.dtype)
    trained = [p for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    (logps * weights).sum().backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in trained]


@pytest.mark.parametrize("k", [1, 2, 3, 7])
@pytest.mark.parametrize("case", ["llama", "gemma3", "mixtral-window", "gpt2", "gpt-oss", "deepseek-v3"])
def test_completions_have_their_own_log_probs_and_gradients(case: str, k: int) -> None:
    with architectures.double_precision():
        model = architectures.build(case, torch.float64)
        expected = separately(model, k)
        before = gradients(model, expected)
        add_fused_lm_head(model)
        found = together(model, model, k)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        for ours, theirs in zip(gradients(model, found), before, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", ["llama", "gptj", "gemma2"])
def test_padded_rows_are_for_every_causal_model(case: str) -> None:
    model = architectures.build(case)
    expected = separately(model, 3)
    add_fused_lm_head(model)
    found = together(model, model, 3, packed=False)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_head_scores_completion_tokens_alone() -> None:
    model = architectures.build("llama")
    add_fused_lm_head(model)
    seen = []
    model.base_model.register_forward_hook(lambda _m, _i, output: seen.append(output.last_hidden_state.shape))
    together(model, model, 2)
    tokens = sum(len(completion) for _, completion in sequences(2))
    assert seen == [(1, tokens, 32)]
    model(input_ids=torch.ones(2, 5, dtype=torch.long))
    assert seen[1][:2] == (2, 5)  # nothing is left behind


def test_an_adapter_and_checkpointing_change_nothing() -> None:
    model = architectures.build("llama")
    add_fused_lm_head(model)
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    expected = separately(wrapped, 2)
    before = gradients(wrapped, expected)
    wrapped.enable_input_require_grads()
    wrapped.gradient_checkpointing_enable()
    wrapped.train()
    found = together(wrapped, model, 2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(gradients(wrapped, found), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
