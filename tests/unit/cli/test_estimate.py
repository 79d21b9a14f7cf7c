"""The command `estimate`: what it prints, and its errors."""

from __future__ import annotations

import pytest

from tests.support import vision_language
from tests.support.published_models import MODELS
from trl_dpo_ext.cli import main as cli


@pytest.fixture
def model_config(tmp_path) -> str:
    MODELS["llama-3-8b"][0]().save_pretrained(tmp_path / "llama")
    return str(tmp_path / "llama" / "config.json")


RUN = ["--model_name_or_path", "nobody/llama", "--output_dir", "out", "--report_to", "none"]


def test_the_command_says_what_fits_from_a_config_file_alone(model_config, capsys) -> None:
    argv = [*RUN, "--model_config", model_config, "--dtype", "bfloat16", "--per_device_train_batch_size", "1"]
    assert cli.main(["estimate", *argv, "--accelerate_config", "single_gpu", "--gpu_memory", "24"]) == 0
    printed = capsys.readouterr().out
    assert "LlamaForCausalLM, 8.03 billion parameters, all trained; 1 x sigmoid(beta=0.1)" in printed
    assert "single_gpu x 1 (chosen)" in printed
    assert "Expected loss at the first step: 0.6931" in printed
    assert "Warning: With bfloat16 weights and learning_rate=1e-06, most updates are below the resolution" in printed
    assert "(ignore_pitfalls: bf16_weights)" in printed


def test_what_fits_and_then_hardly_trains_is_not_the_simplest(model_config, capsys) -> None:
    bf16 = [*RUN, "--dtype", "bfloat16", "--per_device_train_batch_size", "1", "--learning_rate", "5e-7"]
    bf16 += ["--precompute_ref_log_probs", "true", "--model_config", model_config]
    assert cli.main(["estimate", *bf16, "--accelerate_config", "zero3"]) == 0
    printed = capsys.readouterr().out
    rows = {line.split(" x ")[0]: line for line in printed.splitlines() if " x " in line}
    assert rows["single_gpu"].endswith("yes, but bf16_weights")
    assert rows["zero3"].endswith("  yes")
    assert "Simplest that fits 80 GB: zero1 on 8 GPUs." in printed
    assert "Warning" not in printed  # of the run's own configuration there is nothing to say
    one = [*bf16, "--gpus", "1", "--accelerate_config", "single_gpu", "--ignore_pitfalls", "bf16_weights"]
    assert cli.main(["estimate", *one]) == 0
    assert "Simplest that fits 80 GB: single_gpu on 1 GPU." in capsys.readouterr().out


def test_lists_and_a_corrected_reference_are_named(model_config, capsys) -> None:
    flags = ["--ref_quantization", "nf4", "--ref_correction_rank", "40", "--per_device_train_batch_size", "3"]
    argv = [*RUN, "--model_config", model_config, *flags, "--completions", "7", "--accelerate_config", "single_gpu"]
    assert cli.main(["estimate", *argv]) == 0
    printed = capsys.readouterr().out
    assert "3 lists of up to 7 x 1024 tokens per GPU, 3 lists per step; reference: loaded, corrected at rank" in printed


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--completions", "1"], ["--completions must be 2 or more; got 1."]),
        (
            ["--gpu_memory", "0", "--gpus", "-2"],
            ["--gpu_memory must be above 0; got 0.", "--gpus must be 1 or more; got -2."],
        ),
        (["--gpu_memory", "nan"], ["--gpu_memory must be above 0; got nan."]),
        (
            ["--accelerate_config", "zeor3"],
            ["--accelerate_config zeor3: no such file or shipped configuration."],
        ),
    ],
)
def test_wrong_numbers_are_said_before_a_configuration_is_looked_for(flags, expected, capsys) -> None:
    assert cli.main(["estimate", *RUN, *flags]) == 2
    error = capsys.readouterr().err
    assert all(line in error for line in expected)
    assert "neither cached nor reachable" not in error


def test_without_the_models_config_the_error_says_how_to_give_it(capsys) -> None:
    assert cli.main(["estimate", *RUN]) == 2
    error = capsys.readouterr().err
    assert "The configuration of nobody/llama is neither cached nor reachable" in error
    assert "--model_config FILE" in error


def test_an_estimate_of_a_vision_language_model_says_what_it_counts(tmp_path, capsys) -> None:
    vision_language.model().config.save_pretrained(tmp_path / "llava")
    argv = [*RUN, "--model_config", str(tmp_path / "llava"), "--max_length", "64", "--accelerate_config", "single_gpu"]
    assert cli.main(["estimate", *argv]) == 0
    printed = capsys.readouterr().out
    assert "LlavaForConditionalGeneration, 0.00 billion parameters, all trained" in printed
    assert "(vision tower, projector), trained; images: 4 of a row's tokens, 4 patches of the vision tower" in printed
    assert "single_gpu x 1 (chosen)" in printed
    assert cli.main(["estimate", *argv, "--image_tokens", "0"]) == 0
    assert "no images (--image_tokens)" in capsys.readouterr().out
    assert cli.main(["estimate", *argv, "--image_tokens", "-1"]) == 2
    assert "--image_tokens must be 0 (text alone) or more; got -1." in capsys.readouterr().err
