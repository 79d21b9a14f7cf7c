"""The command names everything that is wrong with a run at once, before a model is loaded, and is quiet when right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from trl.trainer import dpo_trainer

from tests.support import runs, tiny
from tests.support.command_line import write_data
from trl_dpo_ext import DPOExtConfig, DPOExtTrainer
from trl_dpo_ext.checks.machine import machine_problems
from trl_dpo_ext.cli import main as cli
from trl_dpo_ext.errors import InputError

from .listing import Kind

wrong_command = Kind("Several things are wrong at once")
old_arguments = Kind("Arguments of older versions, or of another place")

NO_GPU = "bf16 is on by default and needs a GPU with bfloat16, but this machine has no GPU. Set use_cpu=True"
NO_DATA, NO_MODEL = "No dataset: set --dataset_name", "No model: set --model_name_or_path"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def problems_of(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    """What a command lists; fails if it reads weights or shows a traceback."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(dpo_trainer, "create_model_from_path", None)
        capsys.readouterr()
        assert cli.main(argv) == 2
    first, *lines = capsys.readouterr().err.strip().removeprefix("error: ").splitlines()
    return [line.removeprefix("- ") for line in lines] or [first]


def assert_starts(found: list[str], expected: list[str]) -> None:
    assert len(found) == len(expected), found
    assert [line for line, start in zip(found, expected, strict=True) if not line.startswith(start)] == []


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        wrong_command.case(
            "`train` without arguments on a machine without a GPU",
            "one error: no bf16, no dataset, no model",
            "train",
            [NO_GPU, NO_DATA, NO_MODEL],
        ),
        wrong_command.case("`precompute` in the same way", "the same error", "precompute", [NO_GPU, NO_DATA, NO_MODEL]),
        wrong_command.case("`estimate` without arguments", "no model", "estimate", [NO_MODEL]),
    ],
)
def test_a_command_without_arguments_lists_what_it_needs(command, expected, capsys) -> None:
    assert_starts(problems_of(capsys, command), expected)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        wrong_command.case(
            "a recipe name with a typo, an unknown tracker, an output folder that is a file, an unknown flag",
            "one error with the nearest names",
            "train --config zephyr-7b/dpo_ful --report_to tensorbord --output_dir {}/file --learning_rat 3 --use_cpu",
            [
                "No recipe is named 'zephyr-7b/dpo_ful'. Did you mean zephyr-7b/dpo_full?",
                "Unknown option learning_rat. Did you mean learning_rate?",
                "report_to has an unknown tracker 'tensorbord'. Did you mean tensorboard?",
                "output_dir {}/file is a file. Choose another folder.",
            ],
        ),
        wrong_command.case(
            "a recipe without its folder, a folder inside a file",
            "one error with the nearest name",
            "precompute --config zephyr7b-dpo_full --output_dir {}/file/out --use_cpu",
            [
                "--config zephyr7b-dpo_full: no such file or recipe. Did you mean zephyr-7b/dpo_full?",
                "output_dir {}/file/out is below {}/file, which is a file.",
            ],
        ),
        wrong_command.case(
            "flags with values of another type, an unknown loss, a missing data file, a missing model folder",
            "one error",
            "train --use_cpu --beta much --learning_rate fast --loss_type sigmod --lr_scheduler_type cosin"
            " --dataset_name {}/no.jsonl --model_name_or_path {}/no",
            [
                "Unknown loss_type 'sigmod'. Did you mean 'sigmoid'?",
                "argument --beta: invalid float value: 'much'",
                "argument --learning_rate/--learning-rate: invalid float value: 'fast'",
                "argument --lr_scheduler_type/--lr-scheduler-type: invalid choice: 'cosin'",
                "--dataset_name {}/no.jsonl: no such file or folder.",
                "The model {}/no does not exist: no such folder (--model_name_or_path).",
            ],
        ),
        wrong_command.case(
            "a data file without the columns, messages without a chat template, a tracker that is not installed",
            "one error",
            "train --use_cpu --output_dir {}/out --dataset_name {}/columns.jsonl --model_name_or_path {}/no-template"
            " --report_to flyte",
            [
                "report_to names flyte, which is not installed. Install it, or set report_to to none.",
                "train_dataset has no column 'rejected'; it has 'prompt', 'chosen', 'worse'.",
                "train_dataset has messages, but the tokenizer has no chat template.",
            ],
        ),
        wrong_command.case(
            "`load_in_4bit` with `load_in_8bit`, and no checkpoint to resume from",
            "one error, which does not miss what could not be read",
            "train --use_cpu --load_in_4bit --load_in_8bit --resume_from_checkpoint true --output_dir {}/out"
            " --model_name_or_path {}/no --dataset_name {}/columns.jsonl",
            [
                "You can't use 8 bit and 4 bit precision at the same time",
                "No complete checkpoint in {}/out.",
                "train_dataset has no column 'rejected'",
                "The model {}/no does not exist",
            ],
        ),
        wrong_command.case(
            "flags of an adapter without `--use_peft`, `--test_split_size` above 1, unknown attention",
            "one error",
            "train --use_cpu --output_dir {}/out --lora_r 8 --lora_alpha 4 --test_split_size 1.5"
            " --model_name_or_path {}/no-template --dataset_name {}/columns.jsonl --attn_implementation flash",
            [
                "--lora_r, --lora_alpha have no effect without --use_peft: all weights would be trained.",
                "--test_split_size 1.5 holds out no rows, or all of them.",
                "attn_implementation='flash' does not exist. Choose one of eager,",
            ],
        ),
        wrong_command.case(
            "`--load_in_8bit` without `--use_peft`, LoRA's `--use_dora` without it",
            "one error",
            "train --use_cpu --output_dir {}/out --load_in_8bit --use_dora --model_name_or_path {}/no-template"
            " --dataset_name {}/columns.jsonl",
            [
                "--use_dora has no effect without --use_peft",
                "train_dataset has no column 'rejected'",
                "train_dataset has messages, but the tokenizer has no chat template.",
                "Quantized weights cannot be trained. Pass a peft_config (--use_peft)",
            ],
        ),
        wrong_command.case(
            "`estimate` with a mistyped loss and accelerate configuration",
            "one error with the nearest names",
            "estimate --loss_type sigmod --accelerate_config zero33 --gpu_memory 0",
            [
                "Unknown loss_type 'sigmod'",
                "--gpu_memory must be above 0; got 0.",
                "--accelerate_config zero33: no such file or shipped configuration. Did you mean zero3?",
                NO_MODEL,
            ],
        ),
    ],
)
def test_everything_wrong_is_one_list(argv: str, expected: list[str], tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("trl_dpo_ext._trl.reporting.find_spec", lambda name: None)  # whether flyte is installed or not
    (tmp_path / "file").touch()
    messages = [{"role": "assistant", "content": "yes"}]
    row = {"prompt": [{"role": "user", "content": "say yes"}], "chosen": messages, "worse": messages}
    (tmp_path / "columns.jsonl").write_text(json.dumps(row))
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = None
    tiny.model().save_pretrained(tmp_path / "no-template")
    tokenizer.save_pretrained(tmp_path / "no-template")
    found = problems_of(capsys, *argv.replace("{}", str(tmp_path)).split())
    assert_starts(found, [line.replace("{}", str(tmp_path)) for line in expected])
    assert len({*found}) == len(found)


@wrong_command("`push_to_hub` without a login", "error before anything is computed")
def test_a_login_is_asked_for_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    (problem,) = machine_problems(runs.config(tmp_path, push_to_hub=True))
    assert "hf auth login" in problem
    assert not machine_problems(runs.config(tmp_path, push_to_hub=True, hub_token="hf_token"))
    assert not machine_problems(runs.config(tmp_path))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_token")
    assert not machine_problems(runs.config(tmp_path, push_to_hub=True))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(InputError, match="nobody is logged in"):
        runs.trainer(tmp_path, model="no/such-model-is-loaded", push_to_hub=True)


@wrong_command("a folder in which nothing can be written", "error; nothing is left behind elsewhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    runs.trainer(tmp_path / "new/out", ref_model=tiny.model())
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    monkeypatch.setattr("trl_dpo_ext.checks.machine.tempfile.TemporaryDirectory", refuse)
    with pytest.raises(InputError, match=r"output_dir \S*/closed/out cannot be written: Permission denied"):
        runs.trainer(tmp_path / "closed/out", ref_model=tiny.model())


@wrong_command("a configuration in Python with a wrong loss, bf16 without a GPU, and `logging_steps=0`", "one error")
def test_a_configuration_lists_what_all_libraries_refuse(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        DPOExtConfig(str(tmp_path), bf16=True, loss_type="sigmod", logging_steps=0)
    assert_starts(caught.value.problems, ["Unknown loss_type 'sigmod'", "bf16=True needs a GPU", "logging strategy"])
    with pytest.raises(InputError) as caught:
        DPOExtConfig(str(tmp_path), loss_type=["dpop", "sft"], loss_weights=[1.0])
    assert_starts(caught.value.problems, ["loss_weights has 1 values for 2 losses", NO_GPU])


def test_a_refused_configuration_leaves_a_trainer_alone(tmp_path: Path) -> None:
    trainer = runs.trainer(tmp_path, ref_model=tiny.model(1))
    with pytest.raises(InputError):
        DPOExtConfig(str(tmp_path), loss_type="sigmod")
    assert trainer.accelerator.device.type == "cpu"


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        old_arguments.case(
            "`DPOExtTrainer(tokenizer=...)`",
            "error that names `processing_class`",
            DPOExtTrainer,
            {"tokenizer": None},
            "tokenizer was renamed to processing_class",
        ),
        old_arguments.case(
            "`DPOExtTrainer(beta=...)`",
            "error: an option of the configuration",
            DPOExtTrainer,
            {"beta": 0.1},
            r"beta is an option of the configuration: pass args=DPOExtConfig\(beta=\.\.\.\)",
        ),
        old_arguments.case(
            "`DPOExtTrainer(max_prompt_length=...)`",
            "error: removed, use `max_length`",
            DPOExtTrainer,
            {"max_prompt_length": 1},
            "max_prompt_length was removed",
        ),
        old_arguments.case(
            "`DPOExtTrainer(train_data=...)`",
            "error that names the nearest argument",
            DPOExtTrainer,
            {"train_data": None},
            "Did you mean train_dataset",
        ),
        old_arguments.case(
            "`DPOExtConfig(max_prompt_length=...)`",
            "error: removed, use `max_length`",
            DPOExtConfig,
            {"max_prompt_length": 1},
            "max_prompt_length was removed",
        ),
        old_arguments.case(
            "`DPOExtConfig(ref_model=...)`",
            "error: an argument of the trainer",
            DPOExtConfig,
            {"ref_model": None},
            "ref_model is an argument of DPOExtTrainer",
        ),
        old_arguments.case(
            "`DPOExtConfig(attn_implementation=...)`",
            "error: use `model_init_kwargs`",
            DPOExtConfig,
            {"attn_implementation": "sdpa"},
            "attn_implementation is a flag of the command; in Python, use model_init_kwargs",
        ),
    ],
)
def test_an_argument_of_another_time_or_place_is_explained(kind: Any, given: dict[str, Any], expected: str) -> None:
    with pytest.raises(TypeError, match=expected):
        kind("model", **given)


QUIET = """
import sys
from trl_dpo_ext.cli.main import main
flags = sys.argv[1:]
train = ["--max_steps", "2", "--logging_steps", "1", "--eval_strategy", "steps", "--dataset_test_split", "train"]
assert main(["train", *flags, *train, "--output_dir", "full"]) == 0
assert main(["train", *flags, *train, "--output_dir", "lora", "--use_peft"]) == 0
assert main(["precompute", *flags, "--output_dir", "out", "--ref_store", "store"]) == 0
for argv in (["estimate", "--model_name_or_path", "model"], ["store", "store"], ["report", "full"], ["losses"], ["recipes"]):
    assert main(argv) == 0
"""


@pytest.mark.slow
def test_a_run_without_mistakes_prints_no_warning(tmp_path: Path) -> None:
    model = tiny.model()
    model.config.bos_token_id = model.generation_config.bos_token_id = None  # as in its tokenizer
    model.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    data = write_data(tmp_path, ".jsonl")
    flags = ["--model_name_or_path", "model", "--dataset_name", data, "--use_cpu", "--bf16", "false"]
    done = subprocess.run(
        [sys.executable, "-c", QUIET, *flags, "--report_to", "none"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    bars = ("it/s", "s/it", "?it", "examples/s", "tokens/s", "ba/s")
    lines = done.stderr.replace("\r", "\n").replace("\x1b[A", "\n").splitlines()
    assert [line for line in lines if line.strip() and not any(bar in line for bar in bars)] == []
    assert not [line for line in done.stdout.splitlines() if "WARN" in line.upper()]


def test_a_deprecation_that_the_user_causes_is_shown(tmp_path: Path) -> None:
    with pytest.warns(FutureWarning, match="truncation mode is deprecated"):
        runs.config(tmp_path, truncation_mode="keep_end")
