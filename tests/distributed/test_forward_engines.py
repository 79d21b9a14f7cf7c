"""Shared prompts and packed rows over two processes of every engine: the run of one process that has neither."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.distributed.engines import FLOAT32, Record, engines, launch, prepared

SETTINGS: dict[str, Any] = {"gradient_checkpointing": False, "loss_type": "dpop", "optim": "sgd", "max_grad_norm": 0.0}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Record:
    folder = prepared(tmp_path_factory.mktemp("plain") / "job")
    settings = {**SETTINGS, "per_device_train_batch_size": 4}
    return launch(folder, "single_gpu", "tests.distributed.launched:train", settings, processes=1, flags=FLOAT32)


def assert_trained_alike(split: Record, plain: Record) -> None:
    assert [line["loss"] for line in split.steps] == pytest.approx([line["loss"] for line in plain.steps], abs=2e-4)
    for name, tensor in plain.weights.items():
        torch.testing.assert_close(split.weights[name].float(), tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.distributed
@pytest.mark.parametrize("engine", engines())
def test_shared_prompts_train_as_plain_rows_do(tmp_path, plain: Record, engine: str) -> None:
    # With the comparison on the first batch, in which all processes have to take part.
    settings = {**SETTINGS, "per_device_train_batch_size": 2, "share_prompt": True}
    split = launch(prepared(tmp_path / "job"), engine, "tests.distributed.launched:train", settings, flags=FLOAT32)
    assert_trained_alike(split, plain)


@pytest.mark.distributed
@pytest.mark.parametrize("engine", engines())
def test_packed_rows_train_as_plain_rows_do(tmp_path, plain: Record, engine: str) -> None:
    # With layers that run again in the backward pass, in which each has to find the layout of its own row.
    rows = {"padding_free": True, "gradient_checkpointing": True}
    settings = {**SETTINGS, "per_device_train_batch_size": 2, **rows}
    split = launch(prepared(tmp_path / "job"), engine, "tests.distributed.launched:train", settings, flags=FLOAT32)
    assert_trained_alike(split, plain)


@pytest.mark.distributed
def test_both_flags_together_train_as_plain_rows_do(tmp_path, plain: Record) -> None:
    settings = {**SETTINGS, "per_device_train_batch_size": 2, "share_prompt": True, "padding_free": True}
    split = launch(prepared(tmp_path / "job"), "multi_gpu", "tests.distributed.launched:train", settings, flags=FLOAT32)
    assert_trained_alike(split, plain)
