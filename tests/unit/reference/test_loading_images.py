"""Quantized references of vision-language models: what stays as it is, and which class is loaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from tests.support import runs, tiny, vision_families
from trl_dpo_ext import load_reference
from trl_dpo_ext.checks.configuration import model_class
from trl_dpo_ext.reference.identity.identify import quantization_fingerprint
from trl_dpo_ext.reference.model.quantization import quantized_shapes, skipped_layers

OUTSIDE = {
    "llava": ["model.vision_tower", "model.multi_modal_projector"],
    "qwen2-vl": ["model.visual"],
    "qwen2.5-vl": ["model.visual"],
    "qwen3-vl": ["model.visual"],
    "gemma3": ["model.vision_tower"],  # its projector is a plain matrix, which is never quantized
    "idefics3": ["model.vision_model", "model.connector"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", vision_families.FAMILIES)
def test_head_and_all_outside_the_language_model_stay_as_they_are(name: str) -> None:
    policy = vision_families.model(name)
    assert skipped_layers(type(policy), policy.config, (), "ref_skip_modules") == ["lm_head", *OUTSIDE[name]]
    assert skipped_layers(type(policy), policy.config, ("q_proj",), "ref_skip_modules") == [
        "lm_head",
        *OUTSIDE[name],
        "q_proj",
    ]
    in_language = [
        tuple(module.weight.shape)
        for key, module in policy.get_decoder().named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    assert sorted(quantized_shapes(type(policy), policy.config, ())) == sorted(in_language)


@pytest.mark.parametrize("by_name", [True, False])
def test_only_the_language_model_is_quantized(tmp_path, by_name: bool) -> None:
    policy = vision_families.model("llava")
    policy.save_pretrained(tmp_path)
    reference = load_reference(str(tmp_path) if by_name else policy, quantization="nf4")
    assert type(reference) is type(policy)
    left = dict(policy.named_parameters())
    outside = [n for n, _ in reference.named_parameters() if "language_model" not in n]
    assert len(outside) > 10
    for name in outside:
        assert torch.equal(reference.get_parameter(name), left[name])
    layers = [m for n, m in reference.named_modules() if "language_model" in n and n.endswith("proj")]
    assert len(layers) == 14
    assert {type(layer).__name__ for layer in layers} == {"Linear4bit"}


def test_the_quantization_of_text_models_is_named_as_ever_and_that_of_images_names_the_tower() -> None:
    named = {}
    for kind, policy in (("text", tiny.model()), ("images", vision_families.model("qwen2.5-vl"))):
        reference: Any = load_reference(policy, quantization="nf4")
        named[kind] = quantization_fingerprint(reference.config.quantization_config)
    assert named["text"] == "nf4 float32 except lm_head"
    assert named["images"] == "nf4 float32 except lm_head,model.visual"


def test_a_checkpoint_of_images_that_names_no_class_is_loaded_with_its_tower() -> None:
    images = vision_families.FAMILIES["qwen2.5-vl"].config()
    assert images.architectures is None
    assert model_class(images) is AutoModelForImageTextToText
    assert model_class(tiny.model().config) is AutoModelForCausalLM
    images.auto_map = {"AutoModelForCausalLM": "code.Model"}  # code of its own says how it is loaded
    assert model_class(images) is AutoModelForCausalLM
    images.auto_map["AutoModelForImageTextToText"] = "code.Pictured"
    assert model_class(images) is AutoModelForImageTextToText
    images.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    assert model_class(images).__name__ == "Qwen2_5_VLForConditionalGeneration"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2.5-vl"])
def test_a_quantized_reference_scores_images_and_its_error_is_measured(tmp_path, name: str) -> None:
    run = runs.trained(
        tmp_path,
        model=vision_families.saved_model(name, str(tmp_path / "model")),
        processing_class=vision_families.FAMILIES[name].processor(),
        train_dataset=vision_families.preferences(4, mixed=True),
        max_length=None,
        max_steps=1,
        ref_quantization="nf4",
        ref_drift_num_pairs=4,
    )
    (drift,) = [line for line in run.state.log_history if "reference/drift_margin_std" in line]
    assert 0.01 < drift["reference/drift_margin_std"] < 2.0
    assert run.state.log_history[0]["loss"] > 0
