"""Parameters are counted exactly, from a configuration alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import T5Config

from tests.support import tiny, vision_families, vision_language
from tests.support.published_models import MODELS, VISION_LANGUAGE
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


# Layers, width, MLP, and tokens as the processors count them: of one image of 336 x 336, 1024 x 768, 896 x 896, and 13
# tiles of 512 x 512 pixels; and patches in a token.
TOWERS = {
    "llava-1.5-7b": (24, 1024, 4096, 576, 1),
    "qwen2-vl-2b": (32, 1280, 5120, 986, 4),
    "qwen2-vl-7b": (32, 1280, 5120, 986, 4),
    "qwen2.5-vl-3b": (32, 1280, 3420, 986, 4),
    "qwen2.5-vl-7b": (32, 1280, 3420, 986, 4),
    "gemma-3-4b": (27, 1152, 4304, 256, 16),
    "smolvlm-256m": (12, 768, 3072, 832, 16),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "qwen2.5-vl-7b" else pytest.mark.slow) for name in VISION_LANGUAGE]
)
def test_a_published_vision_language_model_has_its_size_and_tower(name: str) -> None:
    config, published = VISION_LANGUAGE[name]
    size = compute_model_size(config())
    assert size.parameters == published
    tower = size.tower
    assert tower is not None
    found = (tower.layers, tower.hidden, tower.mlp, tower.image_tokens, tower.patches_per_token)
    assert found == TOWERS[name]


@pytest.mark.parametrize(("targets", "trained"), [("all-linear", True), (r".*language_model.*q_proj", False)])
def test_a_tower_is_trained_where_the_adapter_reaches_it(targets: str, trained: bool) -> None:
    adapter = LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")
    size = compute_model_size(vision_families.FAMILIES["qwen2.5-vl"].config(), adapter)
    assert size.tower_trained is trained
    assert size.trainable > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", vision_families.FAMILIES)
def test_what_is_outside_the_language_model_is_counted_in_every_family(name: str) -> None:
    model = vision_families.model(name)
    size = compute_model_size(model.config)
    outside = {n: p for n, p in model.named_parameters() if "language_model" not in n and "text_model" not in n}
    outside.pop("lm_head.weight", None)
    assert size.beside_text == sum(p.numel() for p in outside.values())
    assert size.parameters == model.num_parameters()


def test_an_encoder_decoder_model_is_refused() -> None:
    with pytest.raises(ValueError, match="T5Config"):
        compute_model_size(T5Config())
