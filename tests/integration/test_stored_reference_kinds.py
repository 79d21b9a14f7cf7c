"""Which reference is stored: given, described, the policy's start, its base, its adapter; never another in its place."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig
from trl import DPOTrainer

from tests.support import runs, tiny
from tests.support.stored_runs import STORED, batch_sums, live, report, stored
from tests.support.tolerances import rounding
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.dataset_source import DatasetReference
from trl_dpo_ext.reference.identity.identify import identify
from trl_dpo_ext.reference.model.spec import ReferenceSpec

pytestmark = pytest.mark.slow


def test_a_new_dataset_is_evaluated_before_training_and_after_it_where_it_is_stored(tmp_path, store):
    data = tiny.preferences()
    trainer = stored(tmp_path, store, train_dataset=data.select(range(4)))
    new = trainer.evaluate(data.select([5]))
    assert new["eval_rewards/margins"] == pytest.approx(0, abs=rounding(0.1 * 60))
    trainer.train()
    assert trainer.evaluate(data.select([5, 1]))["eval_loss"] > 0
    with pytest.raises(InputError, match="precompute"):
        trainer.evaluate(data.select([6]))


def test_an_adapter_off_reference_can_be_run_after_training(tmp_path, store):
    data = tiny.preferences()
    lora = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    trainer = stored(tmp_path, store, train_dataset=data.select(range(4)), peft_config=lora)
    trainer.train()
    before = report(trainer).computed
    trainer.evaluate(data.select([6]))
    assert report(trainer).computed == before + 2
    fresh = stored(tmp_path, store, train_dataset=data)
    live = runs.trainer(tmp_path / "host", DPOTrainer, **STORED)
    torch.testing.assert_close(
        batch_sums(fresh)[0], torch.tensor(live.train_dataset["ref_chosen_logps"]), rtol=1e-4, atol=1e-4
    )


def test_columns_that_the_dataset_brings_are_taken_as_they_are(tmp_path, monkeypatch):
    host = runs.trainer(tmp_path / "host", DPOTrainer, **STORED)
    columns = {name: host.train_dataset[name][:] for name in ("ref_chosen_logps", "ref_rejected_logps")}
    data = tiny.preferences(**columns)
    ours = runs.trainer(tmp_path / "out", train_dataset=data, **STORED)
    assert isinstance(ours.reference, DatasetReference)
    assert ours.ref_model is None
    ours.train()
    theirs = live(tmp_path)
    assert runs.logs(ours)[0]["loss"] == pytest.approx(runs.logs(theirs)[0]["loss"], rel=1e-4)
    assert "own columns" in ours.describe_reference()


def test_a_reference_model_that_was_given_is_run_and_let_go(tmp_path, store):
    reference = tiny.model(seed=5)
    held = weakref.ref(reference.model.embed_tokens)
    trainer = stored(tmp_path, store, ref_model=reference)
    del reference
    gc.collect()
    assert trainer.ref_model is None
    assert held() is None
    trainer.train()  # the start differs from the reference, and that is right here
    theirs = live(tmp_path, ref_model=tiny.model(seed=5))
    assert runs.logs(trainer)[0]["loss"] == pytest.approx(runs.logs(theirs)[0]["loss"], rel=1e-4)


def other_adapter():
    return LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")


@pytest.mark.parametrize("settings", [{}, {"peft_config": other_adapter()}], ids=["full", "adapter"])
@pytest.mark.parametrize("trained", [False, True], ids=["before training", "after training"])
def test_a_released_reference_is_not_replaced_by_the_policy(tmp_path, store, settings, trained):
    data = tiny.preferences()
    reference = tiny.model(seed=5)
    trainer = stored(tmp_path, store, ref_model=reference, train_dataset=data.select(range(4)), **settings)
    if trained:
        trainer.train()
    with pytest.raises(InputError, match="released"):
        trainer.evaluate(data.select([6]))
    # The store holds nothing of the policy's: a new trainer on the same objects fills in the reference's log-probs.
    again = stored(tmp_path, store, ref_model=reference, train_dataset=data)
    alone = stored(tmp_path, str(tmp_path / "alone"), ref_model=tiny.model(seed=5), train_dataset=data)
    for found, right in zip(batch_sums(again), batch_sums(alone), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


def test_a_reference_made_of_a_model_in_memory_is_not_replaced_by_the_policy(tmp_path, store):
    data = tiny.preferences()
    trainer = stored(tmp_path, store, ref_dtype="bfloat16", train_dataset=data.select(range(4)))
    with pytest.raises(InputError, match="released"):
        trainer.evaluate(data.select([6]))


def test_a_stream_is_computed_by_the_reference_that_was_given(tmp_path, store):
    data = tiny.preferences()
    trainer = stored(tmp_path, store, ref_model=tiny.model(seed=5), train_dataset=data.to_iterable_dataset())
    trainer.precompute_reference()
    again = stored(tmp_path, store, ref_model=tiny.model(seed=5), train_dataset=data)
    assert report(again).computed == 0
    alone = stored(tmp_path, str(tmp_path / "alone"), ref_model=tiny.model(seed=5), train_dataset=data)
    for found, right in zip(batch_sums(again), batch_sums(alone), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)
    trainer.train()
    assert trainer.ref_model is None  # kept for the stream, and released when training began
    with pytest.raises(InputError, match="released"):
        trainer.evaluate(tiny.preferences(2, conversational=True))


def test_a_released_reference_is_freed_without_waiting_for_a_garbage_collection(tmp_path, store):
    reference = tiny.model(seed=5)
    held = weakref.ref(reference.model.embed_tokens)
    gc.disable()
    try:
        trainer = stored(tmp_path, store, ref_model=reference)
        del reference
        assert trainer.ref_model is None
        trainer.train()
        assert held() is None
    finally:
        gc.enable()


def test_the_adapter_that_training_started_from_is_the_reference_and_belongs_to_its_identity(tmp_path, store):
    def policy(seed):
        lora = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
        model = tiny.model()
        torch.manual_seed(seed)
        return get_peft_model(model, lora)

    ours = stored(tmp_path, store, model=policy(1))
    theirs = runs.trainer(tmp_path / "host", DPOTrainer, model=policy(1), **STORED)
    for mine, column in zip(batch_sums(ours), ("ref_chosen_logps", "ref_rejected_logps"), strict=True):
        torch.testing.assert_close(mine, torch.tensor(theirs.train_dataset[column][:]), rtol=1e-4, atol=1e-4)
    ours.train()  # and the check at step 0 finds them equal
    assert report(stored(tmp_path, store, model=policy(1))).computed == 0
    with pytest.raises(InputError, match="adapter"):
        stored(tmp_path, store, model=policy(2))
    with pytest.raises(InputError, match="adapter"):
        stored(tmp_path, store)


def test_a_quantized_base_is_a_reference_of_its_own(tmp_path, store, monkeypatch):
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    folder = tiny.saved_model(str(tmp_path / "model"))

    def qlora(**settings):
        return {
            "model": folder,
            "quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
            "peft_config": LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
            **settings,
        }

    ours, theirs = stored(tmp_path, store, **qlora()), runs.trained(tmp_path / "live", **qlora())
    ours.train()
    for mine, live_one in zip(runs.logs(ours), runs.logs(theirs), strict=True):
        assert mine.get("loss", 0) == pytest.approx(live_one.get("loss", 0), rel=1e-3, abs=1e-4)
    assert report(stored(tmp_path, store, **qlora(seed=9))).computed == 0
    with pytest.raises(InputError, match="quantization"):
        stored(tmp_path, store, model=folder)


DESCRIBED = [
    {"ref_quantization": "nf4", "ref_double_quant": True},
    {"ref_quantization": "nf4", "ref_dtype": "bfloat16"},
    {"ref_quantization": "int8", "ref_dtype": "float16", "ref_skip_modules": ["v_proj"]},
    {"ref_dtype": "bfloat16"},
    {"ref_model_name_or_path": "other"},
]


@pytest.mark.parametrize("flags", DESCRIBED, ids=lambda flags: ",".join(map(str, flags.values())))
def test_a_described_reference_is_loaded_only_where_something_is_missing(tmp_path, store, flags, monkeypatch):
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    folder = tiny.saved_model(str(tmp_path / "model"))
    if "ref_model_name_or_path" in flags:
        flags = {"ref_model_name_or_path": tiny.saved_model(str(tmp_path / "other"), seed=4)}
    settings = {"model": folder, "ref_drift_num_pairs": 0, **flags}
    first = stored(tmp_path, store, **settings)
    assert first.ref_model is None
    assert report(first).computed > 0

    def loaded_again(*_, **__):
        pytest.fail("the reference was loaded")

    spec = first.reference.producer.spec
    assert spec is not None
    whole = identify(
        spec.load(), source=spec.settings["model"], compute_dtype=first.reference.stored.store.identity.compute_dtype
    )
    assert whole == first.reference.stored.store.identity
    monkeypatch.setattr(ReferenceSpec, "load", loaded_again)
    again = stored(tmp_path, store, **settings)
    again.train()
    monkeypatch.undo()
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    beside = runs.trained(tmp_path / "live", **settings)
    assert runs.logs(again)[0]["loss"] == pytest.approx(runs.logs(beside)[0]["loss"], rel=2e-2)
    with pytest.raises(InputError, match="in the store and"):
        stored(tmp_path, store, model=folder)
