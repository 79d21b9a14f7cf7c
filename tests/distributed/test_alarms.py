"""Watching on two processes: the same numbers as on one, and one decision for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.engines import FLOAT32, Record, engines, launch, prepared
from tests.support import tiny
from tests.support.watching import lines

WATCHED = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "watch": True,
    "watch_prompts": 0,
    "gradient_checkpointing": False,
    "learning_rate": 3e-2,
    "max_steps": 12,
    "train_sampling_strategy": "sequential",
}


def run(folder: Path, config: str, processes: int, **settings: Any) -> Record:
    prepared(folder, 8)
    tiny.preferences(7).select_columns(["prompt", "chosen", "rejected"]).to_json(folder / "held_out.jsonl")
    given = {**WATCHED, "per_device_train_batch_size": 4 // processes, "per_device_eval_batch_size": 2, **settings}
    return launch(folder, config, "tests.distributed.launched:train", given, processes=processes, flags=FLOAT32)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "job"
    run(folder, "single_gpu", 1, stop_on=["accuracy_saturated", "rejected_collapses"])
    return folder / "out"


@pytest.mark.distributed
@pytest.mark.parametrize("engine", engines())
def test_two_processes_see_what_one_sees_and_stop_together(tmp_path: Path, alone: Path, engine: str) -> None:
    split = run(tmp_path / "job", engine, 2, stop_on=["accuracy_saturated", "rejected_collapses"])
    out = tmp_path / "job" / "out"
    assert len(split.steps) == lines(alone, "metrics")[-1]["step"]
    for mine, theirs in zip(lines(out, "metrics"), lines(alone, "metrics"), strict=True):
        assert mine["pairs"] == 7
        assert mine == pytest.approx(theirs, rel=2e-3, abs=2e-3)
    names = ("name", "step", "fired", "stopped")
    found = [[line[name] for name in names] for line in lines(out, "alarms")]
    assert found == [[line[name] for name in names] for line in lines(alone, "alarms")]


@pytest.mark.distributed
@pytest.mark.parametrize("engine", ["multi_gpu", "fsdp2", "zero3"])
def test_what_is_not_finite_on_any_process_ends_all(tmp_path: Path, engine: str) -> None:
    split = run(tmp_path / "job", engine, 2, learning_rate=1e25, save_strategy="steps", save_steps=50)
    (line,) = lines(tmp_path / "job" / "out", "alarms")
    assert (line["name"], line["stopped"]) == ("nan", True)
    assert line["step"] < 12
    assert not list((tmp_path / "job" / "out").glob("checkpoint-*"))
    assert len(split.steps) == line["step"]
