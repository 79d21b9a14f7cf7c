"""The `train` command: runs, saves, resumes."""

from __future__ import annotations

import json

import pytest

from tests.support import tiny
from tests.support.command_line import config_file, parse, write_data
from trl_dpo_ext.cli import main as cli
from trl_dpo_ext.cli.train import build_trainer
from trl_dpo_ext.errors import InputError


def test_a_model_must_be_named(tmp_path) -> None:
    with pytest.raises(InputError, match="No model: set --model_name_or_path"):
        build_trainer(parse("--dataset_name", write_data(tmp_path, ".jsonl")))


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


@pytest.mark.slow
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
    assert "No complete checkpoint in" in capsys.readouterr().err
