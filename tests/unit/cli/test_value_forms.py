"""A value of the wrong type in a configuration file is an error, as the schema says, and is not taken as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from trl_dpo_ext import recipe_registry
from trl_dpo_ext.cli.arguments import TrainParser, read_for_another_machine
from trl_dpo_ext.cli.value_forms import OWN_READERS, form_of, problem_of

FILE = recipe_registry.recipes_folder() / recipe_registry.SCHEMA
SCHEMA: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
EDITOR = jsonschema.Draft7Validator(SCHEMA)
PARSER = TrainParser()
FORMS = PARSER.forms

RIGHT = """
learning_rate: 5.0e-7
learning_rate: 5e-7
beta: "0.1"
max_length: null
max_length: none
max_steps: "12"
warmup_steps: 0.1
bf16: "true"
bf16: 1
bf16: null
share_prompt: "yes"
loss_type: sigmoid
loss_type: sigmoid:beta=1.0
loss_type: trl:hinge
loss_type: [sigmoid, {dpop: {dpop_lambda: 3}}]
loss_type: {sigmoid: {beta: 1.0}}
loss_type: '[{"cdpo": {"label_smoothing": 0.2}}, "sft"]'
dpop_lambda: 5
simpo_gamma_beta_ratio: "0.5"
report_to: [wandb]
report_to: none
eval_strategy: "no"
optim: adamw_torch
fsdp: full_shard
fsdp: true
dataset_columns: {prompt: question}
dataset_columns: prompt=question
dataset_columns: [prompt=question]
datasets: [{path: a, split: train, columns: [chosen]}]
model_init_kwargs: {attn_implementation: eager}
model_init_kwargs: '{"attn_implementation": "eager"}'
lora_target_modules: all-linear
lora_target_modules: [q_proj, v_proj]
env: {WANDB_PROJECT: mine}
watch_thresholds: {kl_high: 2}
watch_thresholds: [kl_high=2]
stop_on: nan
ref_quantization: nf4
watch_kl: off
""".strip().splitlines()

WRONG = """
lerning_rate: 5.0e-7
warmup_ratio: 0.1
beta: [1]
beta: true
beta: abc
learning_rate: yes
max_length: 3.5
max_steps: 1.5
max_steps: null
per_device_train_batch_size: [8]
seed: 4.2
bf16: maybe
share_prompt: [true]
gradient_checkpointing: {}
loss_type: sigmod
loss_type: [sigmoid, 3]
loss_type: {sigmoid: {beta: 1.0}, ipo: {}}
loss_type: {sigmoid: {dpop_lambda: 1.0}}
loss_type: []
loss_weights: 1.0
loss_weights: [a]
dpop_lambda: -5
eval_strategy: no
eval_strategy: sometimes
optim: adam
truncation_mode: middle
dtype: int4
output_dir: 3
dataset_name: [a]
datasets: [a]
datasets: {path: a}
datasets: [{split: train}]
datasets: [{path: a, splitt: train}]
model_init_kwargs: abc
model_init_kwargs: [1]
lora_target_modules: [1]
env: 3
watch_thresholds: {kl_high: [2]}
dataset_columns: prompt
""".strip().splitlines()


def by_editor(text: str) -> bool:
    return EDITOR.is_valid(yaml.safe_load(text))


def by_command(text: str, folder: Path) -> tuple[str, ...]:
    """The problems that `train` finds."""
    file = folder / "recipe.yaml"
    adapter = "use_peft: true\n" if "lora" in text else ""
    losses = "loss_type: " + text.split("_")[0] + "\n" if text.startswith(("dpop_", "simpo_")) else ""
    reference = "precompute_ref_log_probs: true\n" if "ref_quantization" in text else ""
    file.write_text(f"{text}\n{adapter}{losses}{reference}", encoding="utf-8")
    return read_for_another_machine(["--config", str(file)]).problems


def test_the_schema_is_one() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert len(SCHEMA["properties"]) > 300


@pytest.mark.parametrize("recipe", recipe_registry.list_recipes(), ids=lambda recipe: recipe.name)
def test_every_recipe_fits_the_schema_that_it_names(recipe: recipe_registry.Recipe) -> None:
    text = recipe.path.read_text(encoding="utf-8")
    (named,) = [line.split("$schema=")[1] for line in text.splitlines() if "$schema=" in line]
    assert (recipe.path.parent / named).resolve() == FILE.resolve()
    assert list(EDITOR.iter_errors(yaml.safe_load(text))) == []


def test_the_copy_of_a_recipe_names_the_schema_beside_it(tmp_path: Path) -> None:
    copies = recipe_registry.copy_recipe("zephyr-7b/dpo_full", tmp_path)
    assert f"# yaml-language-server: $schema={recipe_registry.SCHEMA}\n" in copies[0].read_text()
    assert json.loads((tmp_path / recipe_registry.SCHEMA).read_text()) == SCHEMA
    recipe_registry.copy_recipe("mistral-7b/orpo_full", tmp_path)  # a second one shares the schema


@pytest.mark.parametrize("text", RIGHT)
def test_what_is_right_is_right_in_an_editor(text: str) -> None:
    assert by_editor(text)
    values = {key: value for key, value in yaml.safe_load(text).items() if key in FORMS and key not in OWN_READERS}
    assert [problem_of(key, value, FORMS[key]) for key, value in values.items()] == [None] * len(values)


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_wrong_in_an_editor(text: str) -> None:
    assert not by_editor(text)


@pytest.mark.slow
@pytest.mark.parametrize("text", RIGHT)
def test_the_command_takes_what_an_editor_takes(text: str, tmp_path: Path) -> None:
    assert by_command(text, tmp_path) == ()


@pytest.mark.slow
@pytest.mark.parametrize("text", WRONG)
def test_the_command_refuses_what_an_editor_refuses(text: str, tmp_path: Path) -> None:
    assert by_command(text, tmp_path) != ()


def test_every_value_of_a_wrong_type_is_listed_with_the_rest(tmp_path: Path) -> None:
    """Each was taken as it is: a batch of 8.5 pairs, a seed of `[1]`, a folder called 3, which ended in a traceback."""
    text = "per_device_train_batch_size: 8.5\nseed: [1]\noutput_dir: 3\neval_strategy: no\nlearning_rate: fast\n"
    assert by_command(f"{text}beta: -1", tmp_path) == (
        "per_device_train_batch_size must be a whole number; got 8.5 in the configuration file.",
        "seed must be a whole number; got [1] in the configuration file.",
        "output_dir must be text or empty; got 3 in the configuration file. Write quotes around it.",
        "eval_strategy must be one of no, steps, epoch; got False in the configuration file. YAML reads no, yes, on, "
        "and off without quotes as true or false: write quotes around it.",
        "learning_rate must be a number; got 'fast' in the configuration file.",
        "beta must be > 0 for loss_type 'sigmoid'; got -1 (strength of the KL constraint; higher values keep the policy "
        "closer to the reference).",
    )


def test_the_default_of_every_option_has_its_form() -> None:
    defaults = {name: getattr(value, "value", value) for name, value in PARSER.defaults.items() if name in FORMS}
    assert len(defaults) == len(FORMS)
    assert [problem for name in FORMS if (problem := problem_of(name, defaults[name], FORMS[name]))] == []


def test_json_schema_cannot_tell_a_whole_float_from_an_integer() -> None:
    """The one value on which editor and command differ."""
    assert by_editor("max_steps: 8.0")
    assert problem_of("max_steps", 8.0, form_of(int)) == (
        "max_steps must be a whole number; got 8.0 in the configuration file."
    )
