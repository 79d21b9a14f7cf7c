"""Flags and YAML files: parsed strictly, with every problem listed."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft import get_peft_model

from tests.support import tiny
from tests.support.command_line import config_file, parse
from trl_dpo_ext.cli.arguments import TrainParser, adapter_config
from trl_dpo_ext.config import owned_hyperparameters
from trl_dpo_ext.core.transforms import F_DIVERGENCES
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.legacy_keys import LEGACY_KEYS
from trl_dpo_ext.recipe_registry import get_recipe


def test_flags_yaml_and_python_say_the_same(tmp_path) -> None:
    keys = {"loss_type": ["dpop", {"sigmoid": {"beta": 1.0}}], "loss_weights": [1.0, 0.5], "dpop_lambda": 5.0}
    by_yaml = parse("--config", config_file(tmp_path, **keys)).args
    by_flag = parse("--loss_type", "dpop", "sigmoid:beta=1.0", "--loss_weights", "1", "0.5", "--dpop_lambda", "5").args
    assert by_yaml.loss_mixture().describe() == by_flag.loss_mixture().describe()
    assert by_flag.loss_mixture().describe() == "1 x dpop(beta=0.1, dpop_lambda=5.0) + 0.5 x sigmoid(beta=1.0)"


def test_a_flag_wins_over_the_file(tmp_path) -> None:
    file = config_file(tmp_path, loss_type="dpop", dpop_lambda=5.0)
    assert parse(f"--config={file}", "--dpop_lambda", "7").args.dpop_lambda == 7.0


def test_help_groups_the_flags_by_variant_with_their_defaults() -> None:
    text = TrainParser().format_help()
    for name, (parameter, variants) in owned_hyperparameters().items():
        heading = f"loss variant {', '.join(variants)}:"
        section = text[text.index(heading) :]
        assert f"--{name}" in section
        assert f"default: {parameter.default}" in " ".join(text.split())


def test_help_names_our_losses_and_every_divergence() -> None:
    text = " ".join(TrainParser().format_help().split())
    assert "`trl-dpo-ext losses` lists them" in text
    assert ", ".join(F_DIVERGENCES) in text


@pytest.mark.parametrize("key", LEGACY_KEYS)
def test_every_old_key_is_an_error_that_says_what_it_is_called_now(tmp_path, key: str) -> None:
    with pytest.raises(InputError, match=f"{key} was (renamed|removed|replaced)") as caught:
        parse("--config", config_file(tmp_path, **{key: 1}))
    assert LEGACY_KEYS[key] in str(caught.value)


def test_old_keys_are_not_keys_of_today() -> None:
    today = {action.dest for action in TrainParser()._actions}
    assert not set(LEGACY_KEYS) & today


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--dpop_lamda", "5"], "Unknown option dpop_lamda. Did you mean dpop_lambda?"),
        (["--warmup_ratio", "0.1"], "warmup_ratio was replaced: use warmup_steps"),
        (["--warmup-ratio=0.1"], "warmup_ratio was replaced: use warmup_steps"),
        (["--dpop_l", "5"], "Unknown option dpop_l"),
        (["--beta", "much"], "argument --beta: invalid float value"),
        (
            ["--config", "nowhere.yaml"],
            "--config nowhere.yaml: no such file or recipe. Run `trl-dpo-ext recipes` to list recipes.",
        ),
        (["--config"], "argument --config: expected one argument"),
        (["stray"], "Unexpected arguments: stray."),
        (["--loss_type", "sigmod"], "Did you mean 'sigmoid'?"),
    ],
)
def test_wrong_flags_are_said_in_words(argv: list[str], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(*argv)
    assert expected in str(caught.value)


def test_what_transformers_refuses_is_said_without_a_traceback() -> None:
    with pytest.raises(InputError, match="requires the save and eval strategy to match"):
        parse("--load_best_model_at_end", "true")


def test_unknown_keys_and_flags_are_listed_together(tmp_path) -> None:
    file = config_file(tmp_path, torch_dtype="bfloat16", learning_rat=1e-6)
    with pytest.raises(InputError) as caught:
        parse("--config", file, "--rpo_alpha", "1")
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n"])
def test_a_file_that_is_no_mapping_is_named(tmp_path, text: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(InputError, match=r"recipe\.yaml"):
        parse("--config", str(tmp_path / "recipe.yaml"))


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (["q_proj"], {"q_proj"}),
        (["q_proj", "v_proj"], {"q_proj", "v_proj"}),
        (["all-linear"], "all-linear"),
        ([r".*layers\.0\..*_proj"], r".*layers\.0\..*_proj"),
    ],
)
def test_one_name_of_a_layer_is_a_name_and_one_pattern_a_pattern(given, taken) -> None:
    model = parse("--use_peft", "--lora_target_modules", *given).model
    assert adapter_config(model).target_modules == taken
    assert any("lora" in name for name, _ in get_peft_model(tiny.model(), adapter_config(model)).named_parameters())


def test_the_recipes_file_is_part_of_the_arguments(tmp_path) -> None:
    file = config_file(tmp_path, beta=0.2)
    assert parse("--config", file).recipe_file == parse(f"--config={file}").recipe_file == Path(file)
    assert parse("--config", "zephyr-7b/dpo_full").recipe_file == get_recipe("zephyr-7b/dpo_full").path
    assert parse().recipe_file is None
