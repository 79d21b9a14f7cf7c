"""A reference that follows the policy moves alike under every engine, and resumes exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.engines import FLOAT32, JobFailed, engines, launch, prepared

TRAIN = "tests.distributed.launched:train"
SYNC: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "gradient_checkpointing": False,
    "sync_ref_model": True,
    "ref_model_sync_steps": 2,
    "max_steps": 6,
}
SAVED = {"save_strategy": "steps", "save_steps": 3}
LORA = {"lora": {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]}}
pytestmark = pytest.mark.distributed


def losses(record: Any) -> list[float]:
    return [line["loss"] for line in record.steps]


@pytest.fixture(scope="module")
def on_one_process(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Losses of a run on one process, with the same pairs in every step, by its settings."""
    folder, known = prepared(tmp_path_factory.mktemp("one") / "job"), {}

    def run(more: dict[str, Any]) -> list[float]:
        key = repr(more)
        if key not in known:
            settings = {**SYNC, **more, "per_device_train_batch_size": 4}
            known[key] = losses(launch(folder, "single_gpu", TRAIN, settings, processes=1, flags=FLOAT32))
        return known[key]

    return run


def check_moves_and_resumes(folder: Path, engine: str, more: dict[str, Any], expected: list[float]) -> None:
    prepared(folder)
    settings = {**SYNC, **SAVED, **more}
    whole = launch(folder, engine, TRAIN, {**settings, "output": "whole"}, flags=FLOAT32)
    assert losses(whole) == pytest.approx(expected, abs=2e-4)
    weights = dict(whole.weights)
    checkpoint = folder / "whole" / "checkpoint-3"
    assert (checkpoint / "synced_reference.safetensors").is_file()
    assert not (checkpoint / "ref").exists()
    again = launch(folder, engine, TRAIN, {**settings, "resume": str(checkpoint)}, flags=FLOAT32)
    assert losses(again) == losses(whole)
    assert again.weights.keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.weights.items())


@pytest.mark.parametrize("engine", engines("multi_gpu", "fsdp1", "fsdp2", "zero2", "zero3"))
def test_a_model_that_is_synchronized_resumes_exactly(tmp_path, on_one_process: Any, engine: str) -> None:
    check_moves_and_resumes(tmp_path / "job", engine, {}, on_one_process({}))


@pytest.mark.parametrize("engine", engines("multi_gpu", "zero2"))
def test_an_adapter_that_is_mixed_resumes_exactly(tmp_path, on_one_process: Any, engine: str) -> None:
    check_moves_and_resumes(tmp_path / "job", engine, LORA, on_one_process(LORA))


@pytest.mark.parametrize("engine", engines("fsdp1", "fsdp1_lora", "fsdp2", "zero3"))
def test_an_adapter_that_is_split_over_processes_is_replaced(tmp_path, on_one_process: Any, engine: str) -> None:
    more = {**LORA, "ref_model_mixup_alpha": 1.0}
    check_moves_and_resumes(tmp_path / "job", engine, more, on_one_process(more))


def test_an_adapter_that_is_split_over_processes_cannot_grow(tmp_path) -> None:
    with pytest.raises(
        JobFailed, match=r"ref_model_mixup_alpha=0.6 cannot be used with an adapter under FSDP and ZeRO"
    ):
        launch(prepared(tmp_path / "job"), "fsdp2", TRAIN, {**SYNC, **LORA}, flags=FLOAT32)
