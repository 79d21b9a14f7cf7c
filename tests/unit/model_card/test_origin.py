"""The launch line on a card: the command without secrets and paths; and the names of the data."""

from __future__ import annotations

import pytest

from tests.support.command_line import config_file, parse
from trl_dpo_ext.model_card.origin import Origin, dataset_names, is_secret, launcher, public_arguments, shell_command


@pytest.mark.parametrize(
    "arguments",
    [
        ["--hub_token", "hf_abcdefghijkl"],
        ["--hub_token=hf_abcdefghijkl"],
        ["--hub-token", "hf_abcdefghijkl"],
        ["--my_api_key", "hf_abcdefghijkl"],
        ["--client_secret", "hf_abcdefghijkl"],
        ["--db_password", "hf_abcdefghijkl"],
        ["--run_name", "hf_abcdefghijkl"],
        ["--run_name", "with-hf_abcdefghijkl"],
        ["--model_init_kwargs", '{"token": "hf_abcdefghijkl", "revision": "main"}'],
        ["--model_init_kwargs", '{"inner": [{"api_key": "hf_abcdefghijkl"}]}'],
        ["--model_init_kwargs", "{token: hf_abcdefghijkl}"],
        ["--dataset_name", "https://me:hf_abcdefghijkl@host.org/pairs.jsonl"],
    ],
    ids=" ".join,
)
def test_secrets_are_hidden(arguments: list[str]) -> None:
    shown = " ".join(public_arguments(arguments))
    assert "abcdefghijkl" not in shown
    assert "***" in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["--precompute_ref_max_tokens", "4096"],
        ["--average_tokens_across_devices", "false"],
        ["--include_num_input_tokens_seen", "all"],
        ["--pad_token", "<pad>"],
        ["--loss_type", "sigmoid:beta=1.0", "dpop"],
        ["--model_name_or_path", "Qwen/Qwen2.5-0.5B"],
        ["--config", "zephyr-7b/dpo_full"],
        ["--learning_rate=5e-7"],
        ["--lora_target_modules", "q_proj", "k_proj"],
        ["--model_init_kwargs", '{"revision": "main", "n": 1}'],
    ],
    ids=" ".join,
)
def test_what_is_no_secret_and_no_path_stays(arguments: list[str]) -> None:
    assert public_arguments(arguments) == arguments


def test_a_name_is_a_secret_by_what_it_contains() -> None:
    assert is_secret("push-to-hub-token")
    assert is_secret("AWS_SECRET_ACCESS")
    assert not is_secret("max_length")


def test_paths_are_shown_by_their_last_part(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/pairs.jsonl").touch()
    given = [
        "--dataset_name",
        "data/pairs.jsonl",
        "--output_dir",
        str(tmp_path / "run"),
        f"--ref_store={tmp_path}/refs",
    ]
    given += ["--config", "../mine.yaml", "--logging_dir", "~/logs", "--deepspeed", '{"folder": "/nvme/offload"}']
    assert public_arguments(given) == [
        *["--dataset_name", "pairs.jsonl", "--output_dir", "run", "--ref_store=refs"],
        *["--config", "mine.yaml", "--logging_dir", "logs", "--deepspeed", '{"folder": "offload"}'],
    ]


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({}, "trl-dpo-ext"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "accelerate launch -m trl_dpo_ext"),
        (
            {"ACCELERATE_MIXED_PRECISION": "bf16", "WORLD_SIZE": "8", "LOCAL_RANK": "3"},
            "accelerate launch --num_processes 8 -m trl_dpo_ext",
        ),
        (
            {"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "LOCAL_RANK": "0"},
            "torchrun --nproc_per_node 8 -m trl_dpo_ext",
        ),
    ],
)
def test_the_launcher_is_told_by_the_environment(environment: dict[str, str], line: str) -> None:
    assert " ".join(launcher(environment)) == line


def test_a_command_can_be_pasted() -> None:
    assert (
        shell_command(["trl-dpo-ext", "train", "--run_name", "two words"]) == "trl-dpo-ext train --run_name 'two words'"
    )
    long = shell_command(["trl-dpo-ext", "train", "--loss_type", "a" * 60, "b" * 60, "--bf16"])
    assert long.splitlines() == ["trl-dpo-ext train \\", f"    --loss_type {'a' * 60} {'b' * 60} \\", "    --bf16"]


def test_a_shipped_recipe_is_named_and_another_file_is_shown_without_its_path(tmp_path) -> None:
    data = ["--dataset_name", "someone/pairs"]
    shipped = parse("--config", "smollm2-135m/dpo_demo", *data)
    origin = Origin.of_command(["--config", "smollm2-135m/dpo_demo", *data], shipped, {})
    assert origin.recipe == "smollm2-135m/dpo_demo"
    assert origin.command == "trl-dpo-ext train --config smollm2-135m/dpo_demo --dataset_name someone/pairs"
    file = config_file(tmp_path, loss_type="dpop")
    own = Origin.of_command(["--config", file, *data], parse("--config", file, *data), {})
    assert (own.recipe, own.command) == (
        "recipe.yaml",
        "trl-dpo-ext train --config recipe.yaml --dataset_name someone/pairs",
    )


def test_the_datasets_of_a_mixture_are_named_one_by_one(tmp_path) -> None:
    mixture = [
        {"path": "trl-lib/ultrafeedback_binarized", "split": "train"},
        {"path": "someone/pairs", "name": "english", "split": "train_prefs"},
        {"path": "json", "data_files": str(tmp_path / "mine.jsonl")},
        {"path": "json", "data_files": ["a/one.jsonl", "a/two.jsonl"]},
        {"path": str(tmp_path / "folder")},
        {"path": "someone/pairs", "name": "english", "split": "train_prefs"},
    ]
    shown = [one.markdown() for one in dataset_names(parse("--config", config_file(tmp_path, datasets=mixture)))]
    hub = "https://huggingface.co/datasets"
    assert shown == [
        f"[trl-lib/ultrafeedback_binarized]({hub}/trl-lib/ultrafeedback_binarized)",
        f"[someone/pairs]({hub}/someone/pairs) (config `english`, split `train_prefs`)",
        *("`mine.jsonl`", "`one.jsonl`", "`two.jsonl`", "`folder`"),
    ]


def test_a_dataset_is_named_by_its_flag() -> None:
    arguments = parse("--dataset_name", "someone/pairs", "--dataset_train_split", "train_prefs")
    assert [(one.name, one.details) for one in dataset_names(arguments)] == [("someone/pairs", "split `train_prefs`")]
    assert dataset_names(parse()) == ()
