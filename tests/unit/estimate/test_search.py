"""The simplest configuration that fits, and what the flags mean for the estimate."""

from __future__ import annotations

from typing import Any

import pytest
from trl import ModelConfig

from tests.support import runs, tiny
from tests.support.published_models import MODELS
from trl_dpo_ext.cli.estimate import estimate_flags
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.estimate.formulas import Quantized, Reference, Training
from trl_dpo_ext.estimate.from_args import completion_warnings, training_from_args


@pytest.fixture
def model_config(tmp_path) -> str:
    MODELS["llama-3-8b"][0]().save_pretrained(tmp_path / "llama")
    return str(tmp_path / "llama" / "config.json")


RUN = ["--model_name_or_path", "nobody/llama", "--output_dir", "out", "--report_to", "none"]


def test_the_simplest_that_fits_is_found(model_config) -> None:
    full = [*RUN, "--dtype", "bfloat16", "--per_device_train_batch_size", "1", "--ignore_pitfalls", "bf16_weights"]
    assert estimate_flags(full, gpu_memory=80, model_config=model_config).simplest.name == "zero1"
    assert estimate_flags(full, gpu_memory=40, model_config=model_config).simplest.name == "fsdp2"
    adapter = [*full, "--use_peft", "--lora_target_modules", "all-linear"]
    assert estimate_flags(adapter, gpu_memory=24, model_config=model_config).simplest.name == "single_gpu"
    nothing = estimate_flags(full, gpu_memory=1, model_config=model_config)
    assert nothing.simplest is None
    assert nothing.gpus_that_fit() is None
    assert estimate_flags(full, gpu_memory=20, model_config=model_config).gpus_that_fit() == 16


def test_a_pitfall_that_no_configuration_avoids_does_not_keep_one_from_being_the_simplest(model_config) -> None:
    adapter = [*RUN, "--use_peft", "--lora_target_modules", "all-linear", "--per_device_train_batch_size", "1"]
    found = estimate_flags(adapter, gpu_memory=80, model_config=model_config)
    assert all("float32_base" in candidate.pitfalls for candidate in found.candidates)
    assert found.simplest is not None
    assert found.simplest.name == "single_gpu"


def test_flags_say_what_is_estimated(model_config) -> None:
    def settings(*flags: str) -> Training:
        return estimate_flags([*RUN, *flags], model_config=model_config).training

    base = settings("--dtype", "bfloat16", "--max_length", "512", "--gradient_accumulation_steps", "4")
    assert (base.dtype, base.tokens, base.accumulates, base.reference) == (
        "bfloat16",
        512,
        True,
        Reference("loaded", "bfloat16"),
    )
    assert settings("--precompute_ref_log_probs", "true").reference == Reference("stored")
    assert settings("--loss_type", "simpo").reference == Reference("none")
    qlora = settings("--use_peft", "--load_in_4bit", "--bnb_4bit_quant_storage", "bfloat16", "--lora_dropout", "0")
    assert qlora.quantized == Quantized(4, False, True)
    assert (qlora.reference.kind, qlora.adapter_dropout) == ("adapter off", False)
    assert settings("--optim", "adamw_bnb_8bit").optimizer == "adamw_bnb_8bit"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "no such file"),
        ("{", "not valid JSON"),
        ("{}", "has no model_type"),
        ('{"model_type": "none"}', "none"),
    ],
)
def test_a_model_config_that_is_none_is_named(tmp_path, text: str | None, expected: str) -> None:
    file = tmp_path / "config.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=expected):
        estimate_flags(RUN, model_config=str(file))


def training(**settings: Any) -> tuple[Training, list[str]]:
    completions = settings.pop("completions", None)
    args = runs.config("out", **settings)
    mixture = args.loss_mixture()
    found = training_from_args(args, ModelConfig(), mixture, tiny.model().config, completions)
    return found, completion_warnings(args, mixture, completions)


@pytest.mark.parametrize(
    ("settings", "counted"),
    [
        ({}, 2),
        ({"completions": 7}, 7),
        ({"max_completions": 4}, 4),
        ({"max_completions": 4, "completions": 7}, 4),
        ({"max_completions": 4, "completions": 3}, 3),
        ({"loss_type": "pl", "completions": 5}, 5),
    ],
)
def test_completions_are_those_that_are_trained_on(settings, counted) -> None:
    found, warnings = training(**settings)
    assert found.completions == counted
    assert warnings == []


@pytest.mark.parametrize("settings", [{"loss_type": "pl"}, {"gather_lists": True}, {"list_pairs": "3"}])
def test_lists_of_unknown_length_are_said_to_be_counted_as_pairs(settings) -> None:
    found, warnings = training(**settings)
    assert found.completions == 2
    assert "Set --completions to the largest" in warnings[0]


def test_a_corrected_reference_is_read_from_the_flags() -> None:
    quantized = {"ref_quantization": "nf4", "ref_correction_rank": 40}
    assert training(**quantized)[0].reference == Reference("loaded", "float32", Quantized(4), 40)
    assert training(**quantized, precompute_ref_log_probs=True)[0].reference == Reference("stored")


def test_what_is_said_of_completions_is_among_the_warnings(model_config) -> None:
    report = estimate_flags([*RUN, "--loss_type", "pl"], model_config=model_config, completions=6)
    assert report.training.completions == 6
    assert not any("--completions" in warning for warning in report.warnings)
    unknown = estimate_flags([*RUN, "--loss_type", "pl"], model_config=model_config)
    assert any("Set --completions" in warning for warning in unknown.warnings)
