"""Parameters are counted exactly, from a configuration alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlavaConfig, T5Config

from tests.support import tiny, vision_language
from tests.support.published_models import MODELS
from trl_dpo_ext.estimate.model_size import compute_model_size

LORA = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_published_weights(name: str) -> None:
    config, published = MODELS[name]
    assert compute_model_size(config()).parameters == published


@pytest.mark.parametrize("name", ["llama-3-8b", "qwen2.5-7b", "gpt2-large"])
def test_an_adapter_is_counted_by_peft_itself(name: str) -> None:
    # r x (in + out) of every linear layer but the output layer; all-linear leaves that one out.
    assert compute_model_size(MODELS["llama-3-8b"][0](), LORA).trainable == 41943040
    base = compute_model_size(MODELS[name][0]())
    adapted = compute_model_size(MODELS[name][0](), LORA)
    assert (adapted.parameters, adapted.linear) == (base.parameters, base.linear)
    assert 0 < adapted.trainable < base.parameters / 50


def test_the_counts_are_those_of_a_real_model() -> None:
    model = tiny.model()
    size = compute_model_size(model.config)
    linear = [m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    assert size.parameters == model.num_parameters()
    assert size.linear == sum(m.weight.numel() for m in linear)
    assert size.embedding == model.get_input_embeddings().weight.numel()
    adapted: Any = get_peft_model(model, LORA)
    assert compute_model_size(tiny.model().config, LORA).trainable == adapted.get_nb_trainable_parameters()[0]


def test_a_vision_tower_is_counted_and_told_apart() -> None:
    model = vision_language.model()
    size = compute_model_size(model.config)
    assert size.parameters == model.num_parameters()
    outside = [p.numel() for name, p in model.named_parameters() if "vision" in name or "projector" in name]
    assert size.beside_text == sum(outside) > 0
    assert (size.layers, size.hidden, size.vocabulary) == (1, 16, model.config.text_config.vocab_size)
    assert compute_model_size(tiny.model().config).beside_text == 0


def test_a_published_vision_language_model_has_its_size() -> None:
    """Of llava-hf/llava-1.5-7b-hf."""
    size = compute_model_size(LlavaConfig(text_config={"model_type": "llama", "vocab_size": 32064}))
    assert size.parameters == 7_063_427_072


def test_an_encoder_decoder_model_is_refused() -> None:
    with pytest.raises(ValueError, match="T5Config"):
        compute_model_size(T5Config())
