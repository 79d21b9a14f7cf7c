"""What engines get wrong without a word, each shown right on two processes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.distributed.engines import FLOAT32, JobFailed, engines, launch, prepared, start
from tests.support import tiny
from tests.support.tolerances import rounding

SHORT: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_checkpointing": False}
LORA = {"lora": {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]}}
pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("engine", engines("zero2", "zero3"))
def test_stored_reference_log_probs_keep_their_precision_under_deepspeed_in_bf16(tmp_path, engine: str) -> None:
    settings = {**SHORT, "bf16": True, "precompute_ref_log_probs": True, "beta": 1.0}
    record = launch(prepared(tmp_path / "job"), engine, "tests.distributed.launched:train", settings)
    first = record.steps[0]
    # In bf16, sums of 16 to 64 nats are multiples of 0.0625 to 0.25: cast ones leave margins of that size.
    assert abs(first["logps/rejected"]) > 16
    assert abs(first["rewards/margins"]) < 2e-3
    assert first["loss"] == pytest.approx(0.6931, abs=2e-3)


def test_fsdp2_in_bf16_computes_in_bf16_and_does_not_round_log_probs(tmp_path) -> None:
    record = launch(
        prepared(tmp_path / "job"),
        "fsdp2",
        "tests.distributed.launched:train_watching_precision",
        {**SHORT, "bf16": True},
    )
    assert (record["layer"], record["log_probs"]) == ("torch.bfloat16", "torch.float32")
    assert record["rounded"] < 0.1  # as many float32 numbers are bf16 ones by chance: one in 65536


def test_evaluation_on_two_processes_counts_every_pair_and_every_token_once(tmp_path) -> None:
    settings: dict[str, Any] = {"loss_type": ["sigmoid", "dpop", "sft", "cpo", "sampo"], "kind": "ours"}
    settings |= {"loss_weights": [1.0, 0.5, 0.5, 0.2, 0.1], "reference": "reference"}
    folder = prepared(tmp_path / "job", held_out=7)
    tiny.model(seed=3).save_pretrained(str(folder / "model"))
    tiny.model(seed=1).save_pretrained(str(folder / "reference"))
    expected: dict[str, float] = {}
    for config, processes, batch, more in (
        ("single_gpu", 1, 7, {}),
        ("single_gpu", 1, 2, {}),
        ("multi_gpu", 2, 2, {}),
        ("multi_gpu", 2, 3, {"share_prompt": True}),
        ("multi_gpu", 2, 8, {}),  # one process has no pair
        ("fsdp2", 2, 4, {}),
    ):
        run = {**settings, **more, "per_device_eval_batch_size": batch}
        target = "tests.distributed.launched:evaluate_and_predict"
        record = launch(folder, config, target, run, processes=processes, flags=FLOAT32)
        # The last two are about the step of training.
        timed = ("runtime", "per_second", "preparation_time", "num_tokens", "epoch")
        metrics = {k: v for k, v in record["metrics"].items() if not any(word in k for word in timed)}
        if not expected:
            expected = metrics
            assert expected["eval_loss"] != pytest.approx(0.6931 * 1.5, abs=1e-2)
            assert 0 < expected["eval_mean_token_accuracy"] < 1
            assert len(expected) == 2 * (1 + 4 + 4 + 2 + 5)
        assert metrics == pytest.approx(expected, rel=1e-5, abs=rounding(0.1 * 60))
        assert record["predicted"] == 2 * 7


@pytest.mark.parametrize("held_out", [10, 15], ids=["one process has no pair", "one process is padded"])
def test_losses_that_sort_or_average_a_batch_are_evaluated_on_real_pairs_alone(tmp_path, held_out: int) -> None:
    folder = prepared(tmp_path / "job", held_out=held_out)
    tiny.model(seed=1).save_pretrained(str(folder / "reference"))
    of_batch = ["aot_unpaired:aot_global=true", "dr_dpo", "kldpo", "gamma_po", "kto_pair", "beta_dpo"]

    def evaluated(losses: list[str], processes: int, eval_batch: int, train_batch: int) -> dict[str, float]:
        settings = {"loss_type": losses, "reference": "reference", "per_device_eval_batch_size": eval_batch}
        settings["per_device_train_batch_size"] = train_batch  # of a step at learning rate 0, which moves statistics
        config = "multi_gpu" if processes > 1 else "single_gpu"
        target = "tests.distributed.launched:evaluate"
        metrics = launch(folder, config, target, settings, processes=processes, flags=FLOAT32)["metrics"]
        return {key: value for key, value in metrics.items() if key.startswith("eval_loss/")}

    two = evaluated(["aot", *of_batch], 2, 4, 4)
    one = evaluated(["aot", "sft"], 1, 4, 8)  # the same batches, one after another
    assert two.pop("eval_loss/aot") == pytest.approx(one["eval_loss/aot"], rel=1e-5)
    assert two == pytest.approx(evaluated(of_batch, 1, 8, 8), rel=1e-5)  # the same batches over both processes
    assert len(two) == len(of_batch)


@pytest.mark.parametrize("engine", engines("multi_gpu", "fsdp1", "fsdp2", "zero2", "zero3"))
def test_a_run_killed_during_a_save_resumes_from_the_checkpoint_before_it(tmp_path, engine: str) -> None:
    settings = {**SHORT, "loss_type": ["sigmoid", "bco_pair_delta"], "max_steps": 6, "logging_steps": 2}
    settings |= {"save_strategy": "steps", "save_steps": 2}
    folder = prepared(tmp_path / "job")
    whole = launch(folder, engine, "tests.distributed.launched:train", {**settings, "output": "whole"}, flags=FLOAT32)
    expected = dict(whole.weights)

    job = start(
        folder, engine, "tests.distributed.launched:train_and_stop_while_saving", {**settings, "at": 4}, flags=FLOAT32
    )
    try:
        job.wait_for("stopped")
    finally:
        job.kill()
    half = folder / "out" / "checkpoint-4"
    assert half.is_dir()
    assert not (half / "trainer_state.json").exists()

    resumed = launch(folder, engine, "tests.distributed.launched:train", {**settings, "resume": True}, flags=FLOAT32)
    assert "Incomplete checkpoints in" in resumed.printed
    assert "checkpoint-4; resuming from checkpoint-2" in resumed.printed
    assert resumed["loss_state"] == whole["loss_state"]
    assert [line["step"] for line in resumed.steps] == [2, 4, 6]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.weights.items())


def adapter_of(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    adapter = {name.replace(".default", ""): tensor for name, tensor in weights.items() if "lora_" in name}
    return {name.removeprefix("module."): tensor for name, tensor in adapter.items()}


@pytest.mark.parametrize("engine", engines("fsdp1", "fsdp1_lora", "fsdp2", "zero3"))
def test_an_adapter_is_saved_with_its_weights(tmp_path, engine: str) -> None:
    folder = prepared(tmp_path / "job")
    settings = {**SHORT, **LORA, "save": "final", "save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    record = launch(folder, engine, "tests.distributed.launched:train", settings, flags=FLOAT32)
    trained = adapter_of(record.weights)
    assert len(trained) == 6
    assert all(tensor.abs().max() > 0 for tensor in trained.values())  # B starts at zero
    for saved in ("final", "out/checkpoint-2"):
        files = load_file(folder / saved / "adapter_model.safetensors")
        assert files.keys() == trained.keys()
        assert all(torch.equal(files[name].float(), tensor.float()) for name, tensor in trained.items())
    again = launch(
        folder, engine, "tests.distributed.launched:train", {**settings, "resume": True}, flags=FLOAT32
    )  # no step is left
    assert all(torch.equal(tensor, trained[name]) for name, tensor in adapter_of(again.weights).items())
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "model"), str(folder / "final"))
    reloaded = adapter_of(loaded.state_dict())
    assert all(torch.equal(reloaded[name].float(), tensor.float()) for name, tensor in trained.items())


@pytest.mark.parametrize("engine", engines("zero3"))
def test_an_adapter_under_zero3_is_checkpointed_as_trl_means_it_to_be(tmp_path, engine: str) -> None:
    folder = prepared(tmp_path / "job")
    settings = {**SHORT, **LORA, "gradient_checkpointing": True, "precompute_ref_log_probs": True, "max_steps": 1}
    ours = launch(folder, engine, "tests.distributed.launched:train_and_tell_checkpointing", settings, flags=FLOAT32)
    assert ours["reentrant"] is True
    assert ours.steps[0]["grad_norm"] > 0
    theirs = {**settings, "kind": "trl"}  # sets it, under a name that transformers no longer reads
    assert (
        launch(folder, engine, "tests.distributed.launched:train_and_tell_checkpointing", theirs, flags=FLOAT32)[
            "reentrant"
        ]
        is False
    )


@pytest.mark.parametrize("engine", ["fsdp1", "fsdp2"])
@pytest.mark.parametrize("more", [{}, LORA], ids=["full", "lora"])
def test_sharded_state_dicts_end_in_weights_that_load(tmp_path, engine: str, more: dict) -> None:
    folder = prepared(tmp_path / "job")
    flags = [*FLOAT32, "--fsdp_state_dict_type", "SHARDED_STATE_DICT"]
    record = launch(folder, engine, "tests.distributed.launched:train", {**SHORT, **more, "save": "final"}, flags=flags)
    model = AutoModelForCausalLM.from_pretrained(folder / "model" if more else folder / "final")
    loaded = PeftModel.from_pretrained(model, str(folder / "final")) if more else model
    saved, trained = loaded.state_dict(), record.weights
    assert saved.keys() == trained.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in trained.items())
    start = tiny.model().state_dict()
    assert more or any(not torch.equal(saved[name], tensor) for name, tensor in start.items())


@pytest.mark.parametrize(
    ("config", "variables", "said"),
    [
        ("multi_gpu", {}, "2 processes were launched, but no GPU was found, so they would train independently"),
        (
            "fsdp2",
            {"ACCELERATE_USE_CPU": "true"},
            "configured for FSDP but runs as plain data parallelism over 2 processes",
        ),
        pytest.param(
            "zero2",
            {"ACCELERATE_USE_CPU": "true"},
            "configured for DeepSpeed but runs as",
            marks=engines("zero2")[0].marks,
        ),
    ],
)
def test_a_machine_without_gpus_does_not_train_something_else(
    tmp_path, config: str, variables: dict, said: str
) -> None:
    folder = prepared(tmp_path / "job")
    without = {"WITHOUT_STAND_IN": "1", **variables}
    with pytest.raises(JobFailed, match=said):
        launch(folder, config, "tests.distributed.launched:train", SHORT, variables=without, flags=FLOAT32)
    assert not list(Path(folder).glob("out/checkpoint-*"))
    shutil.rmtree(folder)
