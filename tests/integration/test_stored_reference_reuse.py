"""What is stored once is not computed again, what is missing is, and a pass survives memory and interruptions."""

from __future__ import annotations

import pytest
import torch
from datasets import concatenate_datasets
from peft import LoraConfig

from tests.support import runs, tiny
from tests.support.stored_runs import STORED, batch_sums, report, set_of_sequences, stored
from trl_dpo_ext.errors import InputError


@pytest.mark.parametrize(
    "changed",
    [
        {"learning_rate": 1.0},
        {"seed": 7},
        {"beta": 0.5},
        {"per_device_train_batch_size": 2},
        {"max_steps": 1},
        {"loss_type": "dpop"},
        {"ld_alpha": 0.5},
        {"train_dataset": tiny.preferences().shuffle(seed=1)},
        {"train_dataset": tiny.preferences().select(range(3))},
        {"train_dataset": concatenate_datasets([tiny.preferences(), tiny.preferences()])},
        {"eval_dataset": tiny.preferences().select([4, 2])},
        {"peft_config": LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")},
        {"peft_config": LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM"), "seed": 3},
        {"max_length": 1000},
        {"truncation_mode": "keep_end"},
    ],
    ids=lambda changed: ",".join(changed),
)
def test_what_does_not_change_the_reference_is_a_hit(tmp_path, store, changed, monkeypatch):
    stored(tmp_path, store)
    model = tiny.model()
    monkeypatch.setattr(type(model.model), "forward", lambda *_, **__: pytest.fail("the reference was run"))
    again = stored(tmp_path, store, model=model, **changed)
    assert report(again).computed == 0
    assert report(again).found > 0


def test_another_truncation_computes_what_it_cut_and_no_more(tmp_path, store):
    first = stored(tmp_path, store)
    cut = stored(tmp_path, store, max_length=9)
    assert 0 < report(cut).computed < report(first).computed


def test_sequences_that_pairs_share_are_computed_once(tmp_path, store):
    twice = concatenate_datasets([tiny.preferences()] * 2)
    assert report(stored(tmp_path, store, train_dataset=twice)).computed == len(set_of_sequences(tiny.preferences()))


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (lambda: tiny.model(seed=1), "weights"),
        (lambda: tiny.model(rope_parameters={"rope_theta": 5.0, "rope_type": "default"}), "rope_theta"),
        (lambda: tiny.model().to(torch.bfloat16), "dtype"),
    ],
    ids=["weights", "rope", "dtype"],
)
def test_another_reference_is_refused_with_what_differs(tmp_path, store, other, named):
    stored(tmp_path, store)
    with pytest.raises(InputError, match=named):
        stored(tmp_path, store, model=other())


def test_references_that_differ_have_stores_of_their_own_by_default(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    first, second = (runs.trainer(tmp_path / "out", model=tiny.model(seed), **STORED) for seed in (0, 1))
    assert report(first).computed == report(second).computed > 0
    assert first.reference.stored.store.folder != second.reference.stored.store.folder
    assert first.reference.stored.store.folder.is_relative_to(tmp_path / "cache")


def test_a_batch_that_does_not_fit_is_halved(tmp_path, store, monkeypatch):
    expected = batch_sums(stored(tmp_path, str(tmp_path / "plain")))
    model = tiny.model()
    forward, fed = type(model.model).forward, []

    def limited(self, input_ids=None, **keywords):
        fed.append(input_ids.numel())
        if input_ids.numel() > 60:
            raise torch.OutOfMemoryError("CUDA out of memory (a test's)")
        return forward(self, input_ids=input_ids, **keywords)

    monkeypatch.setattr(type(model.model), "forward", limited)
    trainer = stored(tmp_path, store, model=model)
    assert max(fed) > 60
    assert fed.count(max(fed)) == 1  # what did not fit once is not tried again
    for mine, plain in zip(batch_sums(trainer), expected, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-4)


def test_a_sequence_that_does_not_fit_alone_is_named_and_the_rest_is_kept(tmp_path, store, monkeypatch):
    model = tiny.model()
    forward = type(model.model).forward

    def limited(self, input_ids=None, **keywords):
        if input_ids.size(1) > 14:
            raise torch.OutOfMemoryError("CUDA out of memory (a test's)")
        return forward(self, input_ids=input_ids, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(type(model.model), "forward", limited)
        with pytest.raises(InputError, match="precompute_ref_max_tokens"):
            stored(tmp_path, store, model=model)


def test_an_interrupted_pass_goes_on_where_it_stopped(tmp_path, store, monkeypatch):
    model = tiny.model()
    forward, calls = type(model.model).forward, []

    def interrupted(self, *args, **keywords):
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return forward(self, *args, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(type(model.model), "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stored(tmp_path, store, model=model, precompute_ref_max_tokens=40)
    again = stored(tmp_path, store)
    assert report(again).found > 0
    assert report(again).found + report(again).computed == len(set_of_sequences(tiny.preferences()))


def test_a_stream_that_is_not_stored_names_the_first_missing_sequence(tmp_path, store):
    data = tiny.preferences()
    stored(tmp_path, store, train_dataset=data.select(range(3)))
    trainer = stored(tmp_path, store, train_dataset=data.to_iterable_dataset())
    with pytest.raises(InputError, match=r"a prompt of 6 tokens .* precompute"):
        trainer.train()
    trainer = stored(tmp_path, store, train_dataset=data.to_iterable_dataset())
    trainer.precompute_reference()
    trainer.train()
