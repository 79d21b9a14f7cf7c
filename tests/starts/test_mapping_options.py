"""An option that holds a mapping is read however it is given, and named where it cannot be read."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import MagicMock

import pytest
import yaml

from tests.support import runs, tiny
from tests.support.command_line import BASE, config_file, parse, write_data
from trl_dpo_ext.cli import main as cli
from trl_dpo_ext.cli.arguments import TrainParser
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.mapping_options import MAPPINGS

from .listing import Kind

mappings = Kind("Options that hold a mapping")

GIVEN: dict[str, tuple[Any, str]] = {
    "model_init_kwargs": ({"attn_implementation": "eager"}, "{'attn_implementation': 'eager'}"),
    "lr_scheduler_kwargs": ({"num_cycles": 2}, "{'num_cycles': 2}"),
    "gradient_checkpointing_kwargs": ({"use_reentrant": False}, "{'use_reentrant': False}"),
    "activation_checkpointing_kwargs": ({"use_reentrant": False}, "{'use_reentrant': False}"),
    "liger_kernel_config": ({"rope": True}, "{'rope': True}"),
    "parallelism_config": ({"cp_size": 1}, "cp_size=1"),
    "accelerator_config": ({"split_batches": True}, "split_batches=True"),
    "fsdp_config": ({"version": 2}, "{'version': 2}"),
    "deepspeed": ({"zero_optimization": {"stage": 2}}, "{'zero_optimization': {'stage': 2}}"),
    "dataset_columns": ({"prompt": "question"}, "{'prompt': 'question'}"),
    "optim_args": ({"rank": 4}, "'rank=4'"),
    "optim_target_modules": (["q_proj"], "['q_proj']"),
    "loss_type": (["sft", {"dpop": {"dpop_lambda": 5.0}}], "['sft', 'dpop:dpop_lambda=5.0']"),
}


def test_these_are_all() -> None:
    """Every option whose annotation allows a mapping is tried here."""
    import dataclasses

    from trl_dpo_ext import DPOExtConfig

    types: dict[str, str] = {}  # as written: a parser replaces those of the fields
    for each in reversed(DPOExtConfig.__mro__):
        types |= {name: str(kind) for name, kind in vars(each).get("__annotations__", {}).items()}
    names = {field.name for field in dataclasses.fields(DPOExtConfig)}
    found = {name for name in names if "dict" in types[name] or "Parallelism" in types[name]}
    assert found == set(MAPPINGS)
    assert found <= set(GIVEN)


@mappings("a mapping as JSON text on the command line, as JSON text in YAML, or as a mapping in YAML", "it is read")
@pytest.mark.parametrize("form", ["flag", "text", "yaml"])
@pytest.mark.parametrize("name", GIVEN)
def test_a_mapping_in_every_form(tmp_path, monkeypatch, name: str, form: str) -> None:
    # DeepSpeed is not installed everywhere.
    monkeypatch.setattr("accelerate.utils.DeepSpeedPlugin", lambda **_: None)
    monkeypatch.setattr("transformers.integrations.deepspeed.HfTrainerDeepSpeedConfig", MagicMock())
    value, expected = GIVEN[name]
    text = json.dumps(value)
    file = config_file(tmp_path, **{name: value if form == "yaml" else text})
    found = parse(*([f"--{name}", text] if form == "flag" else ["--config", file]))
    assert expected in repr(getattr(found.args, name))


def problems(*argv: str) -> str:
    return "\n".join(TrainParser().read([*BASE, *argv]).problems)


@mappings("a mapping that is not valid JSON", "error that names the option and shows the text")
@pytest.mark.parametrize("name", [name for name in GIVEN if name != "optim_target_modules"])
def test_text_that_is_not_valid_json(name: str) -> None:
    broken = json.dumps(GIVEN[name][0])[:-1]
    found = problems(f"--{name}", broken, "--no_such_flag", "1")
    assert f"{name} is not valid JSON" in found
    assert broken in found
    assert "no_such_flag" in found  # everything else is listed with it


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        mappings.case("a text in place of a mapping", "error", "model_init_kwargs", "eager", "got the text 'eager'"),
        mappings.case(
            "a list in place of a mapping", "error", "lr_scheduler_kwargs", [1], r"must be a mapping; got \[1"
        ),
        mappings.case(
            "a truth value in place of a mapping", "error", "fsdp_config", True, "must be a mapping; got True"
        ),
        mappings.case(
            "the name of a JSON file that does not exist",
            "error",
            "accelerator_config",
            "no.json",
            "'no.json' is neither",
        ),
        mappings.case(
            "an unknown key of `parallelism_config`", "error", "parallelism_config", {"no_such": 1}, "no_such"
        ),
    ],
)
def test_what_is_no_mapping(tmp_path, name: str, value: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        runs.config(tmp_path, **{name: value})


@mappings("a JSON file in place of a mapping that is broken, or holds a list", "error that names the file")
@pytest.mark.parametrize(("content", "said"), [("{", "is not valid JSON"), ("[1]", "must hold a JSON object")])
def test_a_file_in_place_of_a_mapping(tmp_path, content: str, said: str) -> None:
    file = tmp_path / "settings.json"
    file.write_text(content)
    with pytest.raises(InputError, match=f"fsdp_config: the file {file} {said}"):
        runs.config(tmp_path, fsdp_config=str(file))
    file.write_text('{"version": 2}')
    assert runs.config(tmp_path, fsdp_config=str(file)).fsdp_config == str(file)  # transformers reads it


def test_none_is_no_mapping() -> None:
    assert parse("--model_init_kwargs", "None", "--liger_kernel_config", "none").args.model_init_kwargs is None


def test_a_regular_expression_is_not_taken_for_json() -> None:
    assert parse("--optim_target_modules", "[qv]_proj").args.optim_target_modules == "[qv]_proj"


@mappings("several datasets on the command line, as paths or as JSON objects", "they are mixed")
def test_several_datasets_on_the_command_line() -> None:
    found = parse("--datasets", "a", '{"path": "b", "split": "test"}').data.datasets
    assert [(dataset.path, dataset.split) for dataset in found] == [("a", "train"), ("b", "test")]
    assert "is not a dataset" in problems("--datasets", '{"path": "b", "splt": "test"}')
    assert "is not a dataset" in problems("--datasets", '[{"path": "b"}]')


@mappings('`train --model_init_kwargs \'{"attn_implementation": "eager"}\'`', "the model is loaded with it")
def test_the_command_trains_with_mappings_on_the_command_line(tmp_path, monkeypatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("trl_dpo_ext.cli.train.print_run_summary", lambda trainer, *_: seen.append(trainer))
    argv = [
        *("train", "--model_name_or_path", tiny.saved_model(str(tmp_path / "model"))),
        *("--dataset_name", write_data(tmp_path, ".jsonl"), "--output_dir", str(tmp_path / "out")),
        *("--use_cpu", "--bf16", "false", "--report_to", "none", "--max_steps", "1"),
        *("--per_device_train_batch_size", "2", "--save_strategy", "no"),
        *("--model_init_kwargs", '{"attn_implementation": "eager"}', "--lr_scheduler_type", "cosine_with_restarts"),
        *("--lr_scheduler_kwargs", '{"num_cycles": 2}', "--gradient_checkpointing_kwargs", '{"use_reentrant": false}'),
        *("--accelerator_config", '{"even_batches": "false"}', "--dataset_columns", '{"prompt": "prompt"}'),
    ]
    assert cli.main(argv) == 0
    assert seen[0].model.config._attn_implementation == "eager"
    assert seen[0].ref_model.config._attn_implementation == "eager"
    assert seen[0].accelerator.even_batches is False  # as transformers reads texts in JSON


def test_yaml_of_the_recipes_needs_no_json(tmp_path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({"lr_scheduler_kwargs": {"num_cycles": "2"}}))
    assert parse("--config", str(file)).args.lr_scheduler_kwargs == {"num_cycles": "2"}  # a mapping is taken as it is
