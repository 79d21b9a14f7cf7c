"""The command `trl-dpo-ext score`: what it prints and writes, how it ends, and that `train` takes its file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM

from tests.support import scoring, tiny
from tests.support.command_line import config_file
from trl_dpo_ext.cli import main as cli

FLAGS = ["--use_cpu", "--bf16", "false", "--report_to", "none", "--disable_tqdm", "true"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter on it, a full model, and pairs with a subset and with reference log-probs of another."""
    folder = tmp_path_factory.mktemp("models")
    scoring.saved_models(folder)
    ours = {"subset": ["a", "b"] * 3, "ref_chosen_logps": [-1.0] * 6, "ref_rejected_logps": [-2.0] * 6}
    tiny.preferences(6, **ours).to_json(str(folder / "pairs.jsonl"))
    return folder


@pytest.fixture
def folder(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return scoring.linked(models, tmp_path)


def score(*flags: str, policy: str = "adapter", data: str = "pairs.jsonl") -> int:
    return cli.main(["score", "--model_name_or_path", policy, "--dataset_name", data, *FLAGS, *flags])


def test_it_prints_what_it_found_and_writes_every_row(folder: Path, capsys: Any) -> None:
    assert score("--output", "scored.parquet", "--html", "s.html", "--max_length", "12") == 0
    printed = capsys.readouterr()
    for expected in (
        "Policy adapter (LORA adapter on",
        "with the adapter off",
        "accuracy",
        "subset",
        "Wrote scored",
    ):
        assert expected in " ".join(printed.out.split())  # wherever its lines are broken
    written = Dataset.from_parquet("scored.parquet")
    given = load_dataset("json", data_files="pairs.jsonl", split="train")
    assert written.column_names[: len(given.column_names)] == given.column_names
    assert written["ref_chosen_logps"][:] == [-1.0] * 6  # the dataset's own are kept, and not read
    assert written["dpo_status"][:].count("cut") == 3
    found = np.array(written["dpo_policy_chosen_logps"][:]) - np.array(written["dpo_ref_chosen_logps"][:])
    np.testing.assert_allclose(0.1 * found, written["dpo_reward_chosen"][:], atol=1e-5)
    assert "<script" in Path("s.html").read_text()
    assert not Path("scored.parquet.work").exists()


def test_train_takes_the_written_file_as_it_is(folder: Path) -> None:
    assert score("--output", "scored.parquet", "--keep", "margin < 100", "--weigh", "p_chosen") == 0
    lora = ["--use_peft", "--lora_r", "2", "--lora_target_modules", "q_proj"]
    train = ["--output_dir", "out", "--max_steps", "1", "--save_strategy", "no", "--weight_column", "weight"]
    train += ["--learning_rate", "1e-3", "--dataset_name", "scored.parquet"]
    assert cli.main(["train", "--model_name_or_path", "base", *train, *lora, *FLAGS]) == 0
    log = json.loads(Path("out/trainer_state.json").read_text())["log_history"]
    assert log[0]["rewards/margins"] == 0  # against its own start, not the log-probs in the file


def test_json_on_standard_output_is_alone_there(folder: Path, capsys: Any) -> None:
    assert score("--json", "-", "--split", "train", "--beta", "0.5") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["kind"] == "trl_dpo_ext.score"
    assert data["arguments"]["beta"] == 0.5
    assert data["rows"]["scored"] == 6
    assert {each["value"] for each in data["subsets"]["values"]} == {"a", "b"}


def test_a_threshold_that_is_missed_is_an_exit_status(folder: Path, capsys: Any) -> None:
    assert score("--work_dir", "work", "--json", "s.json") == 0
    accuracy = json.loads(Path("s.json").read_text())["accuracy"]["accuracy"]
    assert score("--work_dir", "work", "--min_accuracy", str(accuracy)) == 0
    assert score("--work_dir", "work", "--min_accuracy", str(min(accuracy + 0.01, 1))) == int(accuracy < 1)
    assert accuracy == 1 or "is below --min_accuracy" in capsys.readouterr().err


def test_a_runs_configuration_is_taken_whatever_its_losses_and_adapters_are(folder: Path, capsys: Any) -> None:
    run = {
        "model_name_or_path": "base",
        "dataset_name": "pairs.jsonl",
        "dataset_test_split": "train",
        "output_dir": "out",
        "use_peft": True,
        "lora_r": 4,
        "loss_type": "simpo",
        "simpo_gamma": 1.0,
        "max_length": 20,
        "eval_strategy": "steps",
        "eval_steps": 5,
        "save_steps": 5,
        "load_best_model_at_end": True,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "push_to_hub": True,
    }
    file = config_file(folder, **run)
    flags = ["--config", file, "--model_name_or_path", "adapter", "--split", "test", "--json", "-"]
    assert cli.main(["score", *flags]) == 0
    arguments = json.loads(capsys.readouterr().out)["arguments"]
    assert arguments["max_length"] == 20
    assert arguments["reference"].endswith("with the adapter off")
    assert not Path("out").exists()


def test_without_a_gpu_it_computes_in_float32_unless_a_precision_is_asked_for(folder: Path, capsys: Any) -> None:
    plain = ["score", "--model_name_or_path", "adapter", "--dataset_name", "pairs.jsonl", "--json", "-"]
    assert cli.main(plain) == 0
    assert json.loads(capsys.readouterr().out)["arguments"]["policy_identity"]["compute_dtype"] == "float32"
    assert cli.main([*plain, "--bf16", "true"]) == 2
    assert "bf16=True needs a GPU" in capsys.readouterr().err


def test_a_second_policy_is_compared_on_the_same_rows(folder: Path, capsys: Any) -> None:
    assert score("--compare", "base", "--ref_model_name_or_path", "base", policy="policy") == 2
    assert "error: --compare base: Policy and reference are the same model" in capsys.readouterr().err
    flags = ["--ref_model_name_or_path", "base", "--compare", "adapter", "--json", "s.json", "--work_dir", "work"]
    assert score(*flags, policy="policy") == 0
    assert "second accuracy" in capsys.readouterr().out
    block = json.loads(Path("s.json").read_text())["compare"]
    assert block["n"] == 6
    assert block["policy"].startswith("adapter")


def test_what_is_wrong_with_one_of_two_policies_names_it(folder: Path, capsys: Any) -> None:
    for first, second, wrong in (
        ("policy", "absent", "--compare absent: "),
        ("absent", "policy", "--model_name_or_path absent: "),
        ("base", "policy", "--model_name_or_path base: Policy and reference are the same"),
    ):
        assert score("--compare", second, "--ref_model_name_or_path", "base", policy=first) == 2
        said = capsys.readouterr().err
        assert f"error: {wrong}" in said
        assert "policy: " not in said
    flags = ["--ref_model_name_or_path", "base", "--dataset_streaming", "true"]
    assert score("--compare", "adapter", *flags, policy="policy") == 2
    assert "error: The dataset is streamed" in capsys.readouterr().err
    shutil.copytree("policy", "broken")
    Path("broken/model.safetensors").write_bytes(b"{")
    assert score("--compare", "broken", "--ref_model_name_or_path", "base", policy="adapter") == 2
    assert "error: --compare broken: Checkpoint broken is incomplete" in capsys.readouterr().err


def test_scores_without_a_reference_name_what_they_are(folder: Path, capsys: Any) -> None:
    assert score("--reference_free", "mean", policy="policy") == 0
    assert "rewards are the mean log-prob of the policy" in capsys.readouterr().out


def test_everything_that_is_wrong_is_said_before_a_model_is_loaded(
    folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    Path("there.parquet").touch()
    flags = ["--output", "there.parquet", "--keep", "magrin > 0", "--subset_column", "topic", "--min_accuracy", "2"]
    assert score(*flags, "--max_lenght", "3", policy="policy") == 2
    said = capsys.readouterr().err
    for expected in (
        "there.parquet: the file exists",
        "magrin",
        "--subset_column topic: no such column",
        "--min_accuracy must be between 0 and 1; got 2.0",
        "max_lenght",
        "No reference",
    ):
        assert expected in said
    assert score("--html", ".", "--json", "none/a.json", "--ref_store", "there.parquet") == 2
    said = capsys.readouterr().err
    for expected in ("--html .: this is a folder", "--json none/a.json: the folder none", "there.parquet is not a dir"):
        assert expected in said
    assert score("--split", "test") == 2
    assert "no split 'test'; it has train. Set --dataset_test_split" in capsys.readouterr().err
    assert score("--relabel", "margin < 0") == 2
    assert "--relabel changes what is written: set --output" in capsys.readouterr().err
    assert cli.main(["score", "--dataset_name", "pairs.jsonl", *FLAGS]) == 2


def test_a_dry_run_counts_without_a_model(folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert score("--output", "scored.parquet") == 0
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    capsys.readouterr()
    assert score("--output", "scored.parquet", "--dry_run", "--keep", "margin > 1000") == 0
    assert "0 of 6 rows kept" in capsys.readouterr().out
