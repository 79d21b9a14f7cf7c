"""Under every engine, the reference is the policy's start, and a wrong one stops all processes before the first step."""

from __future__ import annotations

from typing import Any

import pytest

from tests.distributed.engines import FLOAT32, engines, launch, prepared

SHORT: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_checkpointing": False, "max_steps": 2}
pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("adapted", [False, True], ids=["changed in memory", "adapter trained further"])
@pytest.mark.parametrize("engine", engines("multi_gpu", "fsdp2", "zero2", "zero3"))
def test_the_reference_is_the_start_under_every_engine(tmp_path, engine: str, adapted: bool) -> None:
    settings = {**SHORT, "adapted": adapted}
    record = launch(prepared(tmp_path / "job"), engine, "tests.distributed.starting:start", settings, flags=FLOAT32)
    assert record["difference"] is not None
    assert record["difference"] < 1e-4
    assert record.steps[0]["loss"] == pytest.approx(0.6931, abs=1e-4)


def test_a_difference_on_one_process_stops_them_all(tmp_path) -> None:
    record = launch(
        prepared(tmp_path / "job"),
        "multi_gpu",
        "tests.distributed.starting:start_wrong_on_one",
        {**SHORT, "lora": {"r": 2, "target_modules": ["q_proj"]}},
        flags=FLOAT32,
    )
    for rank in record.ranks:
        assert "differ by 1 nats per token" in rank["stopped"]
        assert rank["steps"] == 0


PLANNED = {"multi_gpu": [0, 0], "fsdp1": [1, 0], "fsdp2": [2, 0], "zero2": [0, 2], "zero3": [0, 3]}


@pytest.mark.parametrize("engine", engines(*PLANNED))
def test_the_engine_is_known_before_a_reference_is_loaded(tmp_path, engine: str) -> None:
    target = "tests.distributed.starting:plan"
    record = launch(prepared(tmp_path / "job"), engine, target, SHORT, flags=FLOAT32)
    assert record["early"]
    assert record["planned"] == PLANNED[engine]
    # The device itself is the CPU here; what is left to the engine is said by name.
    assert record["device"] == ("device(type='cpu')" if engine == "multi_gpu" else "'cpu'")
    assert record["seen"] == ("DEEPSPEED" if engine.startswith("zero") else "MULTI_GPU")
    assert record.steps[0]["loss"] == pytest.approx(0.6931, abs=1e-4)


def test_fsdp_of_the_training_arguments_is_known_too(tmp_path) -> None:
    settings = {**SHORT, "fsdp": True, "fsdp_config": {"version": 2}}
    record = launch(prepared(tmp_path / "job"), "fsdp2", "tests.distributed.starting:plan", settings, flags=FLOAT32)
    assert record["planned"] == [2, 0]
    assert record["device"] == "'cpu'"
