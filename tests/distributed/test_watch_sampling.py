"""Sampling on two processes of every engine: the answers of plain transformers, in a run that does not notice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.distributed.engines import FLOAT32, Record, engines, launch, prepared

SETTINGS: dict[str, Any] = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "max_steps": 2}
WATCHED = {"watch": True, "watch_prompts": 5, "watch_max_new_tokens": 8}
SAMPLE = "tests.distributed.launched_watching:sample"
ENGINES = engines("multi_gpu", "fsdp1", "fsdp2", "zero2", "zero3")


def greedy(model: Any, row: dict[str, Any], prompt: list[int]) -> list[int]:
    """What plain transformers answers, one prompt at a time."""
    found = model.generate(input_ids=torch.tensor([prompt]), max_new_tokens=8, do_sample=False, pad_token_id=0)
    return found[0, len(prompt) :].tolist()


def tokens(folder: Path, text: str) -> list[int]:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder / "model")(text)["input_ids"]


def assert_greedy(run: Record) -> None:
    model = AutoModelForCausalLM.from_pretrained(run.folder / "model")
    start = run["sampled"][0]
    assert len(start) == 5  # uneven over two processes
    for row in start:
        assert row["completion_ids"] == greedy(model, row, tokens(run.folder, row["prompt"]))
    model.load_state_dict({name: tensor.float() for name, tensor in run.weights.items()}, strict=False)
    for row in run["sampled"][-1]:
        assert row["completion_ids"] == greedy(model, row, tokens(run.folder, row["prompt"]))


@pytest.mark.distributed
@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_samples_what_plain_transformers_generates(tmp_path, engine: str) -> None:
    plain = launch(prepared(tmp_path / "plain"), engine, "tests.distributed.launched:train", SETTINGS, flags=FLOAT32)
    run = launch(prepared(tmp_path / "job"), engine, SAMPLE, {**SETTINGS, **WATCHED}, flags=FLOAT32)
    assert run["problem"] is None
    assert_greedy(run)
    assert run.ranks[0]["sampled"] == run.ranks[1]["sampled"]
    start, *_, last = run["metrics"]
    assert start["watch/kl_per_token"] == pytest.approx(0.0, abs=1e-6)
    assert last["watch/kl_per_token"] > 1e-5
    assert [row["logp"] for row in run["sampled"][0]] == pytest.approx(
        [row["ref_logp"] for row in run["sampled"][0]], abs=1e-4
    )
    for name, tensor in plain.weights.items():
        assert torch.equal(run.weights[name], tensor), name


@pytest.mark.distributed
@pytest.mark.parametrize("engine", ENGINES)
def test_a_process_that_fails_switches_sampling_off_on_all_and_training_goes_on(tmp_path, engine: str) -> None:
    plain = launch(prepared(tmp_path / "plain"), engine, "tests.distributed.launched:train", SETTINGS, flags=FLOAT32)
    failing = {**SETTINGS, **WATCHED, "failing": 1, "failing_call": 40}
    run = launch(prepared(tmp_path / "job"), engine, SAMPLE, failing, flags=FLOAT32, timeout=240)
    assert run["sampled"][0] is not None
    assert [each["sampled"][-1] for each in run.ranks] == [None, None]
    assert [len(each["told"]) for each in run.ranks] == [1, 0]
    assert "RuntimeError: no more tokens" in run["told"][0]
    for name, tensor in plain.weights.items():
        assert torch.equal(run.weights[name], tensor), name
