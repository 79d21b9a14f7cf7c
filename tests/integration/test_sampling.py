"""Samples of a run that trains: what plain transformers generates, and a run that does not notice."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from tests.support import architectures, runs, tiny
from tests.support.sampling_runs import LORA, Sampling, greedy, sampled, sampler, trainer


def test_greedy_answers_are_those_of_plain_transformers(tmp_path) -> None:
    run, watched = sampled(tmp_path)
    for model, found in ((tiny.model(), watched.sampled[0]), (run.model, watched.sampled[-1])):
        assert len(found.rows) == 5
        for row in found.rows:
            assert row["completion_ids"] == greedy(model, row["prompt"])
    before, after = (each.rows for each in (watched.sampled[0], watched.sampled[-1]))
    assert [row["prompt_id"] for row in before] == [row["prompt_id"] for row in after]
    assert any(a["completion_ids"] != b["completion_ids"] for a, b in zip(before, after, strict=True))


def test_what_the_models_generation_configuration_asks_for_is_not_what_was_learned(tmp_path) -> None:
    model = tiny.model()
    model.generation_config.update(do_sample=True, temperature=9.0, repetition_penalty=30.0, max_new_tokens=2)
    run = trainer(tmp_path, model=model)
    settings = model.generation_config.to_dict()
    for row in sampler(run).sample(0).rows:
        assert row["completion_ids"] == greedy(tiny.model(), row["prompt"])
    assert model.generation_config.to_dict() == settings


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sampled": {"watch_temperature": 0.7, "watch_kl": "k3"},
    "checkpointing": {"gradient_checkpointing": True},
    "adapter": {"peft_config": LORA},
    "dropout": {"model_init_kwargs": None, "disable_dropout": False},
    "shared_prompts": {"share_prompt": True, "padding_free": True},
    "stored": {"precompute_ref_log_probs": True},
}


@pytest.mark.parametrize("name", list(SETTINGS))
def test_weights_and_logs_are_the_same_bit_for_bit(tmp_path, name: str) -> None:
    settings, found = SETTINGS[name], []
    for watching in (False, True):
        model = tiny.model(attention_dropout=0.5 if name == "dropout" else 0.0)
        stored = {"ref_store": str(tmp_path / "store")} if name == "stored" else {}
        run = trainer(tmp_path / str(watching), model=model, **settings, **stored)
        states: list[Any] = []
        if watching:
            run.add_callback(Sampling(run))
        random.seed(1)
        np.random.seed(1)
        run.train()
        states += [random.random(), np.random.rand(), torch.rand(1).item()]
        found.append((runs.weights(run), runs.logs(run), states, run.model.training, tiny.tokenizer().padding_side))
    (plain, logs, *rest), (watched, their_logs, *their_rest) = found
    assert all(torch.equal(plain[key], watched[key]) for key in plain)
    assert logs == their_logs
    assert rest == their_rest


def test_lines_are_appended_and_a_resumed_run_removes_those_of_later_steps(tmp_path) -> None:
    _, watched = sampled(tmp_path)
    file = tmp_path / "watch" / "samples.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0] * 5 + [1] * 5 + [2] * 5
    assert lines == [dict(row) for each in watched.sampled for row in each.rows]
    resumed = trainer(tmp_path)
    again = sampler(resumed)
    again.begin(1)
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [0] * 5 + [1] * 5
    again.begin(0)
    assert file.read_text() == ""


def test_text_shows_how_an_answer_ends(tmp_path) -> None:
    model = tiny.model()
    with torch.no_grad():
        model.lm_head.weight[2] = model.lm_head.weight[2] * 0 + 100 * model.model.norm.weight
    run = trainer(tmp_path, model=model)
    rows = [row for step in (0,) for row in sampler(run).sample(step).rows]
    assert {row["ended"] for row in rows} == {True, False}
    for row in rows:
        assert row["completion"].endswith("<eos>" if row["ended"] else "...")
        assert row["length"] == len(row["completion_ids"]) - row["ended"]
        assert row["ended"] or row["length"] == 8


def test_an_adapter_is_on_for_the_policy_and_off_for_the_reference(tmp_path) -> None:
    run, watched = sampled(tmp_path, peft_config=LORA)
    for row in watched.sampled[-1].rows:
        assert row["completion_ids"] == greedy(run.model, row["prompt"])
    assert watched.sampled[-1].metrics["watch/kl_per_token"] > 1e-3
    base = run.model.unload()
    assert any(row["completion_ids"] != greedy(base, row["prompt"]) for row in watched.sampled[-1].rows)


def test_a_compiled_policy_is_run_as_it_was(tmp_path) -> None:
    compiled: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    model = tiny.model()
    model.compile(backend=backend)
    run = trainer(tmp_path, model=model)
    found = sampler(run).sample(0)
    assert compiled == []
    assert [row["completion_ids"] for row in found.rows] == [greedy(tiny.model(), row["prompt"]) for row in found.rows]


def test_data_with_one_row_is_enough(tmp_path) -> None:
    row = Dataset.from_dict({"prompt": ["say yes"], "chosen": [" yes"], "rejected": [" no"]})
    run = trainer(tmp_path, eval_dataset=row)
    assert len(sampler(run).sample(0).rows) == 1


@torch.no_grad()
@pytest.mark.parametrize("name", ["Bloom", "gemma2", "mistral-window", "Mamba"])
def test_other_architectures_are_sampled_as_plain_transformers_does(tmp_path, name: str) -> None:
    """No positions, capped logits, windows, and a state in place of a cache."""
    eager = {"n_head": 4, "attn_implementation": "eager"}
    model = architectures.construct(name, eager) if name in ("Bloom", "Mamba") else architectures.build(name)
    plain = copy.deepcopy(model)
    run = trainer(tmp_path, model=model, processing_class=tiny.tokenizer(), per_device_eval_batch_size=3)
    found = sampler(run).sample(0)
    assert [row["completion_ids"] for row in found.rows] == [greedy(plain, row["prompt"]) for row in found.rows]
    assert found.metrics["watch/kl_per_token"] == pytest.approx(0.0, abs=1e-5)
    for row in found.rows:
        assert row["logp"] == pytest.approx(row["ref_logp"], abs=1e-4)
