"""The launcher itself: every engine trains for real on two CPU processes, and a job that fails or lies is a failure."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.distributed.engines import FLOAT32, RECIPES, JobFailed, Record, engines, launch, prepared
from trl_dpo_ext.estimate.strategy import read_strategy


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Record:
    folder = prepared(tmp_path_factory.mktemp("alone") / "job")
    settings = {"per_device_train_batch_size": 4, "gradient_checkpointing": False, "loss_type": "dpop"}
    return launch(folder, "single_gpu", "tests.distributed.launched:train", settings, processes=1, flags=FLOAT32)


@pytest.mark.distributed
@pytest.mark.parametrize("engine", engines())
def test_two_processes_of_an_engine_train_as_one_process_does(tmp_path, alone: Record, engine: str) -> None:
    settings = {"per_device_train_batch_size": 2, "gradient_checkpointing": False, "loss_type": "dpop"}
    split = launch(prepared(tmp_path / "job"), engine, "tests.distributed.launched:train", settings, flags=FLOAT32)
    losses = [line["loss"] for line in alone.steps]
    assert len(losses) == 3
    assert [line["loss"] for line in split.steps] == pytest.approx(losses, abs=2e-4)
    assert split.weights.keys() == alone.weights.keys()
    written = read_strategy(RECIPES / f"{engine}.yaml").with_processes(2)
    assert split["estimated_as"] == dataclasses.asdict(dataclasses.replace(written, half_precision=False, on_cpu=True))
    for name, tensor in alone.weights.items():
        torch.testing.assert_close(split.weights[name].float(), tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.distributed
def test_a_job_that_fails_is_a_failure_with_its_reason(tmp_path) -> None:
    with pytest.raises(JobFailed, match="Unknown loss_type"):
        launch(
            prepared(tmp_path / "job"),
            "multi_gpu",
            "tests.distributed.launched:train",
            {"loss_type": "sigmod"},
            flags=FLOAT32,
        )


@pytest.mark.distributed
def test_another_engine_than_the_configuration_asks_for_is_a_failure(tmp_path) -> None:
    with pytest.raises(AssertionError, match=r"asked for fsdp2.*ran ddp"):
        launch(prepared(tmp_path / "job"), "fsdp2", "tests.distributed.launched:train_plain", {}, flags=FLOAT32)
