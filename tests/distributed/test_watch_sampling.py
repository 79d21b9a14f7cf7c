"""Sampling on two processes of every engine: the answers of plain transformers, in a run that does not notice."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.distributed.engines import FLOAT32, Record, engines, launch, prepared

SETTINGS: dict[str, Any] = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "max_steps": 2}
WATCHED = {"watch": True, "watch_prompts": 5, "watch_max_new_tokens": 8}
SAMPLE = "tests.distributed.launched_watching:sample"
LORA = {"lora": {"r": 4}}
ENGINES = ("multi_gpu", "fsdp1", "fsdp2", "zero2", "zero3")


def each_engine(settings: dict[str, Any], *names: str) -> list[Any]:
    """Parameters for a test of these engines, or of all, with these settings."""
    of = "-".join(str(value) if isinstance(value, str) else name for name, value in settings.items())
    return [
        pytest.param(*each.values, settings, marks=each.marks, id="-".join(filter(None, (each.values[0], of))))
        for each in engines(*(names or ENGINES))
    ]


def greedy(model: Any, prompt: list[int]) -> list[int]:
    """What plain transformers answers, one prompt at a time."""
    found = model.generate(input_ids=torch.tensor([prompt]), max_new_tokens=8, do_sample=False, pad_token_id=0)
    return found[0, len(prompt) :].tolist()


def tokens(folder: Path, text: str) -> list[int]:
    return AutoTokenizer.from_pretrained(folder / "model")(text)["input_ids"]


def assert_greedy(run: Record) -> None:
    model = AutoModelForCausalLM.from_pretrained(run.folder / "model")
    start = run["sampled"][0]
    assert len(start) == 5  # uneven over two processes
    for row in start:
        assert row["completion_ids"] == greedy(model, tokens(run.folder, row["prompt"]))
    model.load_state_dict({name: tensor.float() for name, tensor in run.weights.items()}, strict=False)
    for row in run["sampled"][-1]:
        assert row["completion_ids"] == greedy(model, tokens(run.folder, row["prompt"]))


@pytest.fixture(scope="module")
def unwatched(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Record]:
    """Trains without sampling, once on each engine."""

    @functools.cache
    def train(engine: str, lora: bool = False) -> Record:
        folder = prepared(tmp_path_factory.mktemp("unwatched") / "job")
        return launch(
            folder, engine, "tests.distributed.launched:train", {**SETTINGS, **(LORA if lora else {})}, flags=FLOAT32
        )

    return train


def assert_same_weights(run: Record, unwatched: Record) -> None:
    assert run.weights.keys() == unwatched.weights.keys()
    for name, tensor in unwatched.weights.items():
        assert torch.equal(run.weights[name], tensor), name


@pytest.mark.distributed
@pytest.mark.parametrize(("engine", "settings"), [*each_engine({}), *each_engine({"ungathered": True}, "zero3")])
def test_every_engine_samples_what_plain_transformers_generates(tmp_path, unwatched, engine, settings) -> None:
    run = launch(prepared(tmp_path / "job"), engine, SAMPLE, {**SETTINGS, **WATCHED, **settings}, flags=FLOAT32)
    assert run["problem"] is None
    assert_greedy(run)
    assert run.ranks[0]["sampled"] == run.ranks[1]["sampled"]
    start, *_, last = run["metrics"]
    assert start["watch/kl_per_token"] == pytest.approx(0.0, abs=1e-6)
    assert last["watch/kl_per_token"] > 1e-5
    for row in run["sampled"][0]:
        assert row["logp"] == pytest.approx(row["ref_logp"], abs=1e-4)
    assert_same_weights(run, unwatched(engine))


@pytest.mark.distributed
@pytest.mark.parametrize("engine", engines("fsdp1", "fsdp2"))
def test_an_adapter_is_sampled_through_what_shards_it(tmp_path, unwatched, engine: str) -> None:
    run = launch(prepared(tmp_path / "job"), engine, SAMPLE, {**SETTINGS, **WATCHED, **LORA}, flags=FLOAT32)
    assert run["problem"] is None
    model = AutoModelForCausalLM.from_pretrained(run.folder / "model")
    for row in run["sampled"][0]:  # where the adapter changes nothing yet
        assert row["completion_ids"] == greedy(model, tokens(run.folder, row["prompt"]))
    assert run["metrics"][0]["watch/kl_per_token"] == pytest.approx(0.0, abs=1e-6)
    assert run["metrics"][-1]["watch/kl_per_token"] > 1e-6
    assert_same_weights(run, unwatched(engine, lora=True))


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("engine", "settings"),
    [
        *each_engine({"failing_at": "token"}),
        *each_engine({"failing_at": "layer"}, "fsdp1", "fsdp2"),
        *each_engine({"failing_at": "layer", "ungathered": True}, "zero3"),
    ],
)
def test_a_process_that_fails_switches_sampling_off_on_all_and_training_goes_on(
    tmp_path, unwatched, engine, settings
) -> None:
    failing = {**SETTINGS, **WATCHED, "failing": 1, "failing_call": 60, **settings}
    run = launch(prepared(tmp_path / "job"), engine, SAMPLE, failing, flags=FLOAT32, timeout=240)
    assert run["sampled"][0] is not None
    assert [each["sampled"][-1] for each in run.ranks] == [None, None]
    assert [len(each["told"]) for each in run.ranks] == [1, 0]
    assert "RuntimeError: no more tokens" in run["told"][0]
    assert_same_weights(run, unwatched(engine))
