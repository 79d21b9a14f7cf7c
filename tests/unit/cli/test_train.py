"""The command line: flags, YAML, data by file and folder, and wrong input without a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import get_peft_model

from tests.support import tiny
from trl_dpo_ext import list_losses
from trl_dpo_ext.cli import main as cli
from trl_dpo_ext.cli.train import TrainParser, adapter_config, build_trainer, load_preferences
from trl_dpo_ext.config import owned_hyperparameters
from trl_dpo_ext.core.transforms import F_DIVERGENCES
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.legacy_keys import LEGACY_KEYS

BASE = ["--output_dir", "out", "--use_cpu", "--bf16", "false", "--report_to", "none"]


def parse(*argv: str) -> Any:
    return TrainParser().parse([*BASE, *argv])


def config_file(folder: Path, **keys: Any) -> str:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(keys))
    return str(file)


def test_flags_yaml_and_python_say_the_same(tmp_path) -> None:
    keys = {"loss_type": ["dpop", {"sigmoid": {"beta": 1.0}}], "loss_weights": [1.0, 0.5], "dpop_lambda": 5.0}
    by_yaml = parse("--config", config_file(tmp_path, **keys))[1]
    by_flag = parse("--loss_type", "dpop", "sigmoid:beta=1.0", "--loss_weights", "1", "0.5", "--dpop_lambda", "5")[1]
    assert by_yaml.loss_mixture().describe() == by_flag.loss_mixture().describe()
    assert by_flag.loss_mixture().describe() == "1 x dpop(beta=0.1, dpop_lambda=5.0) + 0.5 x sigmoid(beta=1.0)"


def test_a_flag_wins_over_the_file(tmp_path) -> None:
    file = config_file(tmp_path, loss_type="dpop", dpop_lambda=5.0)
    assert parse(f"--config={file}", "--dpop_lambda", "7")[1].dpop_lambda == 7.0


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
        (["--config", "nowhere.yaml"], "--config nowhere.yaml is not a file, nor a recipe"),
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


def write_data(folder: Path, suffix: str) -> str:
    data, file = tiny.preferences(8), folder / f"pairs{suffix}"
    writer = {".json": data.to_json, ".jsonl": data.to_json, ".csv": data.to_csv, ".parquet": data.to_parquet}[suffix]
    writer(str(file))
    return str(file)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_a_dataset_may_be_one_file(tmp_path, suffix: str) -> None:
    script, args, _, mixture = parse("--dataset_name", write_data(tmp_path, suffix))
    train, held_out = load_preferences(script, mixture, args)
    assert train[0] == tiny.preferences(8)[0]
    assert held_out is None


def test_a_dataset_may_be_a_folder_of_split_files(tmp_path) -> None:
    tiny.preferences(8).to_json(str(tmp_path / "train.jsonl"))
    tiny.preferences(4).to_json(str(tmp_path / "test.jsonl"))
    script, args, _, mixture = parse("--dataset_name", str(tmp_path), "--eval_strategy", "epoch")
    train, held_out = load_preferences(script, mixture, args)
    assert (len(train), len(held_out)) == (8, 4)


def test_a_dataset_may_be_a_folder_that_datasets_saved(tmp_path) -> None:
    tiny.preferences(8).train_test_split(test_size=2).save_to_disk(str(tmp_path / "saved"))
    script, args, _, mixture = parse("--dataset_name", str(tmp_path / "saved"), "--eval_strategy", "epoch")
    train, held_out = load_preferences(script, mixture, args)
    assert (len(train), len(held_out)) == (6, 2)


def test_rows_are_held_out_on_request(tmp_path) -> None:
    argv = ["--dataset_name", write_data(tmp_path, ".jsonl"), "--eval_strategy", "epoch", "--test_split_size", "0.25"]
    script, args, _, mixture = parse(*argv)
    assert [len(split) for split in load_preferences(script, mixture, args)] == [6, 2]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "No dataset: give --dataset_name"),
        (["--dataset_name", "./nowhere.jsonl"], "There is no dataset file or folder ./nowhere.jsonl."),
        (["--dataset_name", "FILE", "--dataset_train_split", "training"], "no split 'training'; it has train."),
        (
            ["--dataset_name", "FILE", "--eval_strategy", "epoch"],
            "no split 'test'; it has train. Set dataset_test_split, or",
        ),
        (["--dataset_name", "TEXT"], "a dataset file must end in .json, .jsonl, .csv, .parquet."),
        (["--dataset_name", "EMPTY"], "empty.jsonl is empty."),
        (["--dataset_name", "BROKEN"], "broken.jsonl could not be loaded: "),
        (["--dataset_name", "nobody/nothing"], "The dataset nobody/nothing could not be loaded: "),
    ],
)
def test_a_dataset_that_is_not_there_is_named(tmp_path, argv: list[str], expected: str) -> None:
    (tmp_path / "pairs.txt").write_text("a")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text('{"chosen": "a"\n')
    files = {"TEXT": "pairs.txt", "EMPTY": "empty.jsonl", "BROKEN": "broken.jsonl"}
    places = {"FILE": write_data(tmp_path, ".jsonl")} | {word: str(tmp_path / file) for word, file in files.items()}
    script, args, _, mixture = parse(*(places.get(word, word) for word in argv))
    with pytest.raises(InputError) as caught:
        load_preferences(script, mixture, args)
    assert expected in str(caught.value)


def test_a_model_must_be_named(tmp_path) -> None:
    with pytest.raises(InputError, match="No model: give --model_name_or_path"):
        build_trainer(*parse("--dataset_name", write_data(tmp_path, ".jsonl")))


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
    model = parse("--use_peft", "--lora_target_modules", *given)[2]
    assert adapter_config(model).target_modules == taken
    assert any("lora" in name for name, _ in get_peft_model(tiny.model(), adapter_config(model)).named_parameters())


def test_the_command_trains_saves_and_says_what_it_does(tmp_path, capsys) -> None:
    keys = {
        "model_name_or_path": tiny.saved_model(str(tmp_path / "model")),
        "dataset_name": write_data(tmp_path, ".jsonl"),
        "output_dir": str(tmp_path / "out"),
        "loss_type": ["dpop", "sft"],
        "max_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
    }
    assert cli.main(["train", "--config", config_file(tmp_path, **keys)]) == 0
    printed = capsys.readouterr().out
    assert "Loss: 1 x dpop(beta=0.1, dpop_lambda=50.0) + 1 x sft()" in printed
    assert "Reference: LlamaForCausalLM in float32, " in printed
    assert "Batch: 2 pairs per step (2 per process x 1 accumulated x 1 processes)" in printed
    assert (tmp_path / "out/model.safetensors").is_file()
    assert cli.main(["report", str(tmp_path / "out"), "--plot", str(tmp_path / "run.png")]) == 0
    assert "training, loss" in capsys.readouterr().out
    assert (tmp_path / "run.png").stat().st_size > 1000


def test_auto_starts_a_run_and_goes_on_with_it_from_its_newest_complete_checkpoint(tmp_path, capsys) -> None:
    keys = {
        "model_name_or_path": tiny.saved_model(str(tmp_path / "model")),
        "dataset_name": write_data(tmp_path, ".jsonl"),
        "output_dir": str(tmp_path / "out"),
        "resume_from_checkpoint": "auto",
        "save_steps": 1,
        "per_device_train_batch_size": 2,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
    }
    file = config_file(tmp_path, **keys)
    assert cli.main(["train", "--config", file, "--max_steps", "2"]) == 0
    (tmp_path / "out/checkpoint-2/trainer_state.json").unlink()
    first = (tmp_path / "out/checkpoint-1").stat().st_mtime_ns
    with pytest.warns(UserWarning, match="checkpoint-2; resuming from checkpoint-1"):
        assert cli.main(["train", "--config", file, "--max_steps", "3"]) == 0
    state = json.loads((tmp_path / "out/checkpoint-3/trainer_state.json").read_text())
    assert state["global_step"] == 3
    assert (tmp_path / "out/checkpoint-1").stat().st_mtime_ns == first
    assert (tmp_path / "out/checkpoint-2/trainer_state.json").is_file()
    missing = ["--output_dir", str(tmp_path / "new"), "--resume_from_checkpoint", "true"]
    assert cli.main(["train", "--config", file, *missing]) == 2
    assert "There is no complete checkpoint in" in capsys.readouterr().err


def test_wrong_input_ends_with_status_two_and_no_traceback(capsys) -> None:
    assert cli.main(["train", *BASE, "--loss_type", "sigmod"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: Unknown loss_type 'sigmod'.")
    assert "Traceback" not in captured.err


def test_losses_lists_every_variant(capsys) -> None:
    assert cli.main(["losses"]) == 0
    table = capsys.readouterr().out
    assert [line.split()[0] for line in table.splitlines()[1:]] == [variant.name for variant in list_losses()]
    assert cli.main(["losses", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [record["name"] for record in records] == [variant.name for variant in list_losses()]


@pytest.mark.parametrize("variant", list_losses(), ids=lambda v: v.name)
def test_losses_name_prints_formula_and_hyperparameters(capsys, variant) -> None:
    assert cli.main(["losses", variant.name]) == 0
    text = capsys.readouterr().out
    assert variant.summary in text
    assert all(f"  {parameter.name}: " in text for parameter in variant.hyperparameters)


def test_losses_of_an_unknown_name_is_an_error(capsys) -> None:
    assert cli.main(["losses", "dpopp"]) == 2
    assert "Did you mean 'dpop'?" in capsys.readouterr().err


def test_listing_losses_does_not_import_trl() -> None:
    code = "import sys, trl_dpo_ext.cli.main as c; c.main(['losses']); print('trl' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.splitlines()[-1] == "False False"


def test_report_reads_what_training_left_and_names_a_folder_without_a_run(tmp_path, capsys) -> None:
    assert cli.main(["report", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
