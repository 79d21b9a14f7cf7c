"""The `train` command when an alarm ends the run: exit status, last line, and what is saved."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny
from tests.support.command_line import config_file
from tests.support.watching import lines, swapped
from trl_dpo_ext.cli import main as cli


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and data whose training split is the opposite of its test split."""
    folder = tmp_path_factory.mktemp("inputs")
    tiny.saved_model(str(folder / "model"))
    (folder / "data").mkdir()
    swapped(tiny.preferences(8)).to_json(folder / "data" / "train.jsonl")
    tiny.preferences(8).to_json(folder / "data" / "test.jsonl")
    return folder


def command(inputs: Path, out: Path, **keys: Any) -> list[str]:
    given = {
        "model_name_or_path": str(inputs / "model"),
        "dataset_name": str(inputs / "data"),
        "output_dir": str(out / "run"),
        "max_steps": 12,
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 3e-2,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        **keys,
    }
    return ["train", "--config", config_file(out, **given)]


STOPS = {"eval_strategy": "steps", "eval_steps": 2, "stop_on": "chosen_falls", "watch_prompts": 0, "save_steps": 50}


@pytest.mark.slow
def test_the_status_is_three_and_the_last_line_names_the_alarm(inputs: Path, tmp_path: Path, capsys) -> None:
    assert cli.main(command(inputs, tmp_path, **STOPS)) == 3
    *_, saved, last = capsys.readouterr().out.splitlines()
    assert saved == f"Saved to {tmp_path / 'run'}."
    assert last.startswith("Stopped at step 4 of 12 by the alarm chosen_falls: the chosen answers have become less ")
    assert [line["name"] for line in lines(tmp_path / "run", "alarms") if line["stopped"]] == ["chosen_falls"]
    # The run that goes on from there is stopped at once, unless the alarm is ignored.
    again = command(inputs, tmp_path, resume_from_checkpoint="auto", **STOPS)
    assert cli.main(again) == 3
    assert "The alarm chosen_falls stopped this run at step 4" in capsys.readouterr().err
    assert cli.main([*again, "--ignore_alarms", "chosen_falls"]) == 0
    assert "Stopped at" not in capsys.readouterr().out


def test_weights_that_are_not_finite_are_not_saved(inputs: Path, tmp_path: Path, capsys) -> None:
    assert cli.main(command(inputs, tmp_path, learning_rate=1e25, watch=True, watch_prompts=0, save_steps=50)) == 3
    *_, saved, last = capsys.readouterr().out.splitlines()
    assert saved == "Not saved: the weights are not finite."
    assert last.startswith("Stopped at step 4 of 12 by the alarm nan: the loss is not finite (learning rate ")
    assert not list((tmp_path / "run").rglob("*.safetensors"))
    assert (tmp_path / "run" / "trainer_state.json").is_file()


@pytest.mark.distributed
def test_a_launcher_reports_the_status_as_a_failure(inputs: Path, tmp_path: Path) -> None:
    argv = command(inputs, tmp_path, **STOPS)
    plain = subprocess.run([sys.executable, "-m", "trl_dpo_ext", *argv], capture_output=True, text=True)
    assert plain.returncode == 3, plain.stderr[-2000:]
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "1",
        "--num_machines",
        "1",
    ]
    launched = subprocess.run(
        [*launcher, "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "trl_dpo_ext", *argv],
        capture_output=True,
        text=True,
    )
    assert launched.returncode == 1  # accelerate's own
    assert "returned non-zero exit status 3" in launched.stderr
    assert "Stopped at step 4 of 12 by the alarm chosen_falls" in launched.stdout
