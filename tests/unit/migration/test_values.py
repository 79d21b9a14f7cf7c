"""What becomes of single keys: the same value and gradient, not the same word."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from trl_dpo_ext import DPOExtConfig, InputError
from trl_dpo_ext.cli import main as cli
from trl_dpo_ext.cli.arguments import option_names
from trl_dpo_ext.migration.draft import Draft, Tool
from trl_dpo_ext.migration.read import read_configuration
from trl_dpo_ext.migration.tools import TOOLS, migrated

KNOWN = option_names()
LLAMAFACTORY = {"stage": "dpo", "finetuning_type": "full", "model_name_or_path": "m", "dataset": "d"}
AXOLOTL = {"base_model": "m", "rl": "dpo", "micro_batch_size": 2}
SWIFT = {"rlhf_type": "dpo", "model": "m", "tuner_type": "full"}
OPEN_INSTRUCT = {"model_name_or_path": "m", "mixer_list": ["d", "1.0"], "max_seq_length": 1024}
HANDBOOK = {"model_name_or_path": "m", "dataset_mixer": {"d": 1.0}, "dataset_splits": ["train_prefs", "test_prefs"]}

KEYS: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    # one number called beta, whatever the loss is
    (LLAMAFACTORY, {"pref_beta": 0.2}, {"loss_type": "sigmoid", "beta": 0.2}),
    (LLAMAFACTORY, {"pref_loss": "orpo", "pref_beta": 0.2}, {"loss_type": "orpo", "orpo_lambda": 0.2}),
    (
        LLAMAFACTORY,
        {"pref_loss": "simpo", "pref_beta": 2.0},
        {"loss_type": "simpo", "simpo_beta": 2.0, "simpo_gamma": 0.5},
    ),
    (LLAMAFACTORY, {"pref_ftx": 0.5}, {"loss_type": "dpo_nll", "dpo_nll_weight": 0.5, "beta": 0.1}),
    (LLAMAFACTORY, {"pref_loss": "ipo", "pref_ftx": 0.5}, {"loss_type": ["ipo", "sft"], "loss_weights": [1.0, 0.5]}),
    (LLAMAFACTORY, {"dpo_label_smoothing": 0.1}, {"loss_type": "cdpo", "label_smoothing": 0.1}),
    # LoRA's defaults differ from TRL's
    (
        LLAMAFACTORY,
        {"finetuning_type": "lora"},
        {"lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "lora_target_modules": ["all-linear"]},
    ),
    (LLAMAFACTORY, {"quantization_bit": 4}, {"load_in_4bit": True}),
    (LLAMAFACTORY, {"ref_model_quantization_bit": 4}, {"ref_quantization": "nf4"}),
    (LLAMAFACTORY, {"max_samples": 100}, {"datasets": [{"path": "d", "split": "train[:100]"}]}),
    (AXOLOTL, {"rl": "orpo", "orpo_alpha": 0.3}, {"loss_type": "orpo", "orpo_lambda": 0.3}),
    (AXOLOTL, {"rl": "ipo", "rl_beta": 0.3}, {"loss_type": "ipo", "beta": 0.3}),
    (AXOLOTL, {"trl": {"beta": 0.4}}, {"beta": 0.4}),
    (AXOLOTL, {"rl": "simpo", "rl_beta": 2.0, "cpo_alpha": 0.0}, {"loss_type": "simpo", "simpo_beta": 2.0}),
    (AXOLOTL, {"rl": "simpo"}, {"loss_type": ["simpo", "sft"], "loss_weights": [1.0, 1.0]}),
    (AXOLOTL, {"evals_per_epoch": 4, "num_epochs": 2, "val_set_size": 0.1}, {"eval_steps": 0.125}),
    (AXOLOTL, {"saves_per_epoch": 1, "num_epochs": 1}, {"save_strategy": "epoch"}),
    (AXOLOTL, {"bf16": "auto"}, {"bf16": True}),
    (
        AXOLOTL,
        {"datasets": [{"path": "d", "type": "chat_template.default", "field_messages": "conversation"}]},
        {"dataset_columns": {"prompt": "conversation"}, "dataset_name": "d"},
    ),
    (
        AXOLOTL,
        {"datasets": [{"path": "d", "split": "a", "type": "chatml.intel"}, {"path": "e"}]},
        {
            "dataset_columns": {"prompt": "question"},
            "datasets": [{"path": "d", "split": "a"}, {"path": "e", "split": "train"}],
        },
    ),
    (SWIFT, {"rpo_alpha": 0.1}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.1]}),
    (SWIFT, {"rlhf_type": "cpo"}, {"loss_type": "cpo", "cpo_alpha": 1.0, "beta": 0.1}),
    (SWIFT, {"rlhf_type": "simpo", "cpo_alpha": 0}, {"loss_type": "simpo", "simpo_beta": 2.0, "simpo_gamma": 1.0}),
    (SWIFT, {"tuner_type": "lora"}, {"learning_rate": 1e-4, "lora_r": 8, "lora_alpha": 32}),
    (SWIFT, {}, {"learning_rate": 1e-5}),
    (
        SWIFT,
        {"dataset": ["a/b:c#500", "d"]},
        {"datasets": [{"path": "a/b", "name": "c", "split": "train[:500]"}, {"path": "d", "split": "train"}]},
    ),
    (OPEN_INSTRUCT, {}, {"loss_type": "sigmoid_norm", "beta": 5.0, "dataset_name": "d"}),
    (OPEN_INSTRUCT, {"loss_type": "wpo", "beta": 0.1}, {"loss_type": "sigmoid", "use_weighting": True}),
    (
        OPEN_INSTRUCT,
        {"loss_type": "simpo", "beta": 10, "gamma_beta_ratio": 0.3},
        {"simpo_beta": 10, "simpo_gamma_beta_ratio": 0.3},
    ),
    (OPEN_INSTRUCT, {"mixer_list": ["d", "50"]}, {"datasets": [{"path": "d", "split": "train[:50]"}]}),
    (OPEN_INSTRUCT, {"mixer_list": ["d", "0.5"]}, {"datasets": [{"path": "d", "split": "train[:50%]"}]}),
    (OPEN_INSTRUCT, {"use_qlora": True}, {"load_in_4bit": True, "lora_r": 64, "lora_alpha": 16, "lora_dropout": 0.1}),
    (HANDBOOK, {}, {"dataset_name": "d", "dataset_train_split": "train_prefs", "dataset_test_split": "test_prefs"}),
    (HANDBOOK, {"trainer": "orpo", "beta": 0.05}, {"loss_type": "orpo", "orpo_lambda": 0.05}),
    (HANDBOOK, {"warmup_ratio": 0.1}, {"warmup_steps": 0.1}),
    (HANDBOOK, {"trainer": "cpo", "beta": 0.2}, {"loss_type": "cpo", "cpo_alpha": 1.0, "beta": 0.2}),
    (HANDBOOK, {"loss_type": "simpo"}, {"loss_type": ["simpo", "sft"], "loss_weights": [1.0, 1.0], "simpo_beta": 2.0}),
    (
        HANDBOOK,
        {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 0.5},
        {"loss_type": "simpo", "simpo_gamma": 0.5},
    ),
    (HANDBOOK, {"trainer": "simpo", "gamma_beta_ratio": 0.3}, {"loss_type": "simpo", "simpo_gamma_beta_ratio": 0.3}),
    (
        HANDBOOK,
        {"dataset_mixer": {"a": 0.5, "b": 1.0}},
        {"datasets": [{"path": "a", "split": "train_prefs[:50%]"}, {"path": "b", "split": "train_prefs"}]},
    ),
]


@pytest.mark.parametrize(("base", "added", "expected"), KEYS, ids=lambda value: str(value)[:60])
def test_a_key_becomes_what_does_the_same(base: dict, added: dict, expected: dict) -> None:
    _, draft = migrated({**base, **added}, KNOWN)
    assert {key: draft.keys.get(key) for key in expected} == expected
    losses = {key: draft.keys[key] for key in draft.keys if key in ("loss_type", "loss_weights")}
    hyper = {key: value for key, value in draft.keys.items() if key.split("_")[0] in ("simpo", "orpo", "cpo", "beta")}
    DPOExtConfig("out", bf16=False, **losses, **hyper)  # it is one that this package takes


@pytest.mark.parametrize("tool", TOOLS.values(), ids=lambda tool: tool.name)
def test_every_rule_puts_keys_that_exist(tool: Tool) -> None:
    """With a value of each kind that a rule may be given."""
    for key, rule in tool.rules.items():
        for value in (True, 0.1, 8, "auto", "epoch", {"a": "b"}, ["a"]):
            draft = Draft({key: value})
            with contextlib.suppress(ValueError, TypeError, AttributeError):  # a value of another kind
                rule(draft, key, value)
            assert set(draft.keys) <= KNOWN, (key, draft.keys)


@pytest.mark.parametrize(
    ("base", "added", "reason"),
    [
        (LLAMAFACTORY, {"pref_loss": "new"}, "pref_loss: 'new' has no counterpart"),
        (LLAMAFACTORY, {"use_unsloth": True}, "use_unsloth: Unsloth replaces the trainer"),
        (LLAMAFACTORY, {"never_heard": 1}, "never_heard: is not known as an option of LLaMA-Factory"),
        (AXOLOTL, {"special_tokens": {"pad_token": "x"}}, "special_tokens: save a tokenizer"),
        (SWIFT, {"sequence_parallel_size": 4}, "sequence_parallel_size: the launcher"),
        (OPEN_INSTRUCT, {"tokenizer_name": "other"}, "tokenizer_name: save the tokenizer other"),
        (OPEN_INSTRUCT, {"zero_stage": 1}, "zero_stage: the launcher"),
        (AXOLOTL, {"tensor_parallel_size": 2}, "tensor_parallel_size: the launcher"),
        (OPEN_INSTRUCT, {"learning_rate": "$LR"}, "learning_rate: the script computes it"),
        (HANDBOOK, {"max_prompt_length": 512}, "max_prompt_length: prompts are not cut here"),
    ],
)
def test_what_has_no_counterpart_is_left_out_with_the_reason(base: dict, added: dict, reason: str) -> None:
    _, draft = migrated({**base, **added}, KNOWN)
    (key,) = added
    assert reason in f"{key}: {draft.left_out[key]}"


@pytest.mark.parametrize(
    ("base", "added"),
    [
        (LLAMAFACTORY, {"plot_loss": True, "overwrite_output_dir": True, "use_unsloth": False}),
        (AXOLOTL, {"tensor_parallel_size": 1, "special_tokens": {}, "plugins": None}),
        (SWIFT, {"load_from_cache_file": True, "sequence_parallel_size": 1}),
        (OPEN_INSTRUCT, {"use_slow_tokenizer": True, "tokenizer_name": "m", "add_bos": False}),
    ],
)
def test_what_asks_for_nothing_is_not_mentioned(base: dict, added: dict) -> None:
    assert migrated({**base, **added}, KNOWN)[1].left_out == migrated(base, KNOWN)[1].left_out


SCRIPT = """#!/bin/bash
nproc=2
NAME="some run"
NPROC_PER_NODE=$nproc \\
swift rlhf \\
    --rlhf_type dpo \\
    --model a/b \\
    --tuner_type full \\
    --learning_rate 1e-5 \\
    --run_name "$NAME" \\
    --dataset x y \\
    --gradient_accumulation_steps $(expr 16 / $nproc) \\
    --max_length=2048 && echo --done 1
"""


def test_the_command_of_a_script_is_read(tmp_path: Path) -> None:
    file = tmp_path / "run.sh"
    file.write_text(SCRIPT)
    assert read_configuration(file) == {
        "rlhf_type": "dpo",
        "model": "a/b",
        "tuner_type": "full",
        "learning_rate": 1e-5,
        "run_name": "some run",
        "dataset": ["x", "y"],
        "gradient_accumulation_steps": 8,
        "max_length": 2048,
    }


def test_flags_in_an_array_are_read(tmp_path: Path) -> None:
    file = tmp_path / "run.sh"
    file.write_text(
        'MODEL=a/b\nCOMMON=(\n    --model_name_or_path "$MODEL"\n    --max_seq_length 1024\n)\n'
        'out=$(uv run open_instruct/dpo.py "${COMMON[@]}" --num_epochs 2 2>&1)\n'
    )
    assert read_configuration(file) == {"model_name_or_path": "a/b", "max_seq_length": 1024, "num_epochs": 2}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("run.sh", "echo hello\n", "no command with the flags of a trainer"),
        ("run.yaml", "- a\n- b\n", "must hold keys and values"),
        ("run.yaml", "a: [\n", "not valid YAML"),
        ("run.json", "{", "not valid JSON"),
        ("run.yaml", "some_key: 1\n", "No key tells which tool"),
        ("run.yaml", "rl: grpo\nbase_model: m\n", "rl: grpo"),
    ],
)
def test_what_cannot_be_translated_is_an_error(name: str, content: str, said: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / name).write_text(content)
    assert cli.main(["migrate", str(tmp_path / name)]) == 2
    assert said in capsys.readouterr().err


def test_a_missing_file_and_an_existing_output_are_errors(tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["migrate", str(tmp_path / "none.yaml")]) == 2
    assert "could not be read" in capsys.readouterr().err
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(yaml.safe_dump(AXOLOTL))
    new.write_text("mine: 1\n")
    assert cli.main(["migrate", str(old), "--output", str(new)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert new.read_text() == "mine: 1\n"
    assert cli.main(["migrate", str(old), "--output", str(new), "--overwrite"]) == 0
    assert "model_name_or_path: m" in new.read_text()


def test_what_needs_a_hand_is_said_and_ends_with_1(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "old.yaml"
    file.write_text(yaml.safe_dump({**AXOLOTL, "rl_beta": -1.0}))
    assert cli.main(["migrate", str(file)]) == 1
    assert "To do: beta must be > 0" in capsys.readouterr().err


def test_the_tool_can_be_said(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "old.yaml"
    file.write_text("model_name_or_path: m\nlearning_rate: 5e-7\nbeta: 0.2\n")
    assert cli.main(["migrate", str(file), "--from", "trl"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["learning_rate"] == 5e-7
    with pytest.raises(InputError, match="--from nobody is not known"):
        migrated({}, KNOWN, "nobody")
