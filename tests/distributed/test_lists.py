"""Lists train the same over processes, which get different numbers of completions, as on one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.distributed.engines import FLOAT32, Record, engines, launch, prepared
from tests.support.lists import lists

SETTINGS = {
    "loss_type": ["sigmoid", "pl"],
    "gradient_checkpointing": False,
    "max_grad_norm": 0.0,
    "optim": "sgd",
    "eval_strategy": "steps",
    "eval_steps": 3,
}


def train(folder: Path, config: str, processes: int, **settings: object) -> Record:
    prepared(folder, rows=0)
    lists((4, 3, 2, 5, 2, 3, 7, 2)).to_json(str(folder / "pairs.jsonl"))
    lists((3, 5, 2, 2, 4)).to_json(str(folder / "held_out.jsonl"))
    target = "tests.distributed.launched:train"
    return launch(folder, config, target, {**SETTINGS, **settings}, processes=processes, flags=FLOAT32)


def assert_two_processes_equal_one(folder: Path, config: str, **settings: object) -> None:
    sizes = ("per_device_train_batch_size", "per_device_eval_batch_size")
    two = train(folder / "two", config, 2, **dict.fromkeys(sizes, 2), **settings)
    one = train(folder / "one", "single_gpu", 1, **dict.fromkeys(sizes, 4), **settings)
    assert len(two.logs) == len(one.logs) == 5
    for mine, theirs in zip(two.logs, one.logs, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    for name, tensor in one.weights.items():
        torch.testing.assert_close(two.weights[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.distributed
@pytest.mark.parametrize("config", engines("multi_gpu", "fsdp2", "zero2"))
def test_two_processes_equal_one_with_twice_the_batch(tmp_path, config: str) -> None:
    assert_two_processes_equal_one(tmp_path, config)


@pytest.mark.distributed
@pytest.mark.parametrize("config", engines("multi_gpu"))
def test_two_processes_draw_the_pairs_that_one_draws(tmp_path, config: str) -> None:
    assert_two_processes_equal_one(tmp_path, config, list_pairs="2")
