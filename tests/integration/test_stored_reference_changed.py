"""A reference that was changed, cast, replaced or trained after its store was opened is refused, never stored."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from transformers import TrainerCallback

from tests.support import runs, tiny
from tests.support.adapters import add_inside
from tests.support.references import LORA
from tests.support.stored_runs import STORED, report, stored
from trl_dpo_ext import load_reference
from trl_dpo_ext.errors import InputError

DATA = tiny.preferences()
FIRST, NEW = DATA.select(range(4)), DATA.select([5, 6])


class StopsAtOnce(TrainerCallback):
    def on_train_begin(self, *_: Any, **__: Any) -> None:
        raise KeyboardInterrupt


def trains_again_in_vain(trainer: Any) -> None:
    trainer.train()
    trainer.add_callback(StopsAtOnce())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.state.global_step == 0


def is_cast_by_evaluation(trainer: Any) -> None:
    trainer.args.bf16_full_eval = True
    trainer.evaluate(FIRST)
    assert trainer.model.dtype == torch.bfloat16


def is_merged(trainer: Any) -> None:
    trainer.train()
    trainer.model = trainer.model_wrapped = trainer.model.merge_and_unload()


CHANGES = {
    "trained before": (trains_again_in_vain, {}),
    "loaded": (lambda trainer: trainer.model.load_state_dict(tiny.model(7).state_dict()), {}),
    "cast": (is_cast_by_evaluation, {}),
    "base cast": (is_cast_by_evaluation, {"peft_config": LORA}),
    "merged": (is_merged, {"peft_config": LORA}),
    "trained by another trainer": (lambda trainer: runs.trained(trainer.args.output_dir, model=trainer.model, ref_model=tiny.model()), {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES.values(), ids=CHANGES)
def test_a_policy_that_is_not_the_identified_one_any_more_is_refused(tmp_path, store, case):
    change, settings = case
    trainer = stored(tmp_path, store, train_dataset=FIRST, **settings)
    change(trainer)
    before = report(trainer).computed
    with pytest.raises(InputError, match="Cannot compute the missing reference log-probs"):
        trainer.evaluate(NEW)
    assert report(trainer).computed == before
    assert report(stored(tmp_path, store, train_dataset=NEW)).found == 0


@pytest.mark.parametrize("kind", ["bias", "base"])
def test_a_base_that_is_trained_beside_the_adapter_is_refused_after_training(tmp_path, store, kind):
    policy = tiny.model(attention_bias=True)
    if kind == "base":
        policy = peft.get_peft_model(policy, LORA)
        settings: dict[str, Any] = {}
    else:
        settings = {"peft_config": peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", bias="all")}
    trainer = stored(tmp_path, store, model=policy, train_dataset=FIRST, **settings)
    if kind == "base":  # after construction: PEFT 0.19 freezes the base again when TRL adds an adapter
        trainer.model.get_base_model().model.embed_tokens.weight.requires_grad_(True)
    trainer.evaluate(DATA.select([4]))
    trainer.train()
    with pytest.raises(InputError, match="outside the adapter are trained"):
        trainer.evaluate(NEW)


def test_a_checkpoint_whose_files_have_changed_is_refused(tmp_path, store):
    folder = tiny.saved_model(str(tmp_path / "reference"), seed=4)
    trainer = stored(tmp_path, store, ref_model_name_or_path=folder, train_dataset=FIRST)
    trainer.evaluate(DATA.select([4]))
    trainer.save_model(folder)
    with pytest.raises(InputError, match=r"files of .* have changed"):
        trainer.evaluate(NEW)


def test_a_kept_reference_that_its_owner_changes_is_refused(tmp_path, store):
    reference = tiny.model(5)
    trainer = stored(tmp_path, store, ref_model=reference, train_dataset=DATA.to_iterable_dataset())
    reference.load_state_dict(tiny.model(8).state_dict())
    with pytest.raises(InputError, match="have changed"):
        trainer.precompute_reference()


def test_a_loaded_reference_that_was_changed_is_not_identified_by_its_files(tmp_path, store):
    folder = tiny.saved_model(str(tmp_path / "reference"), seed=4)
    reference = load_reference(folder)
    reference.load_state_dict(tiny.model(9).state_dict())
    stored(tmp_path, store, ref_model=reference, train_dataset=FIRST)
    with pytest.raises(InputError, match="weights"):
        stored(tmp_path, store, ref_model_name_or_path=folder, train_dataset=FIRST)


def with_adapter_inside() -> Any:
    torch.manual_seed(1)
    return add_inside(tiny.model(), peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))


def test_an_adapter_inside_a_model_belongs_to_its_identity(tmp_path, store):
    stored(tmp_path, store, ref_model=with_adapter_inside(), train_dataset=FIRST)
    with pytest.raises(InputError, match="adapter"):
        stored(tmp_path, store, train_dataset=FIRST)


def test_a_policy_with_an_adapter_inside_is_its_own_reference_before_training_only(tmp_path, store):
    trainer = stored(tmp_path, store, model=with_adapter_inside(), train_dataset=FIRST)
    trainer.train()
    with pytest.raises(InputError, match="since been trained"):
        trainer.evaluate(NEW)


@pytest.mark.parametrize("settings", [{}, STORED], ids=["live", "stored"])
def test_a_peft_model_as_ref_model_is_refused_with_the_remedy(tmp_path, settings):
    reference = peft.get_peft_model(tiny.model(), LORA)
    with pytest.raises(InputError, match=r"ref_model is a PeftModel.*load_reference"):
        runs.trainer(tmp_path, ref_model=reference, model="no/such-model", **settings)


def test_a_stream_is_looked_up_in_all_of_the_store(tmp_path, store):
    stored(tmp_path, store, train_dataset=DATA)
    trainer = stored(tmp_path, store, train_dataset=FIRST)
    trainer.train()
    assert trainer.evaluate(NEW.to_iterable_dataset())["eval_loss"] == pytest.approx(
        trainer.evaluate(NEW)["eval_loss"], rel=1e-5
    )


@pytest.mark.parametrize(
    "adapter",
    [
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False),
    ],
    ids=["virtual tokens", "random"],
)
def test_an_adapter_that_does_not_start_as_its_base_is_no_mistake(tmp_path, store, adapter):
    trainer = stored(tmp_path, store, train_dataset=FIRST, peft_config=adapter)
    trainer.train()
    trainer.evaluate(NEW)
    assert report(stored(tmp_path, store, train_dataset=DATA.select([0, 1, 2, 3, 5, 6]))).computed == 0


def test_losses_of_tokens_refuse_columns_of_sums_before_a_model_is_loaded(tmp_path):
    columns = {name: [-9.0] * 8 for name in ("ref_chosen_logps", "ref_rejected_logps")}
    with pytest.raises(InputError, match="reference per token, but the given dataset has sums"):
        runs.trainer(
            tmp_path, model="no/such", train_dataset=tiny.preferences(8, **columns), loss_type="sampo", **STORED
        )


def test_losses_that_are_refused_leave_the_old_ones(tmp_path):
    trainer = runs.trainer(tmp_path, loss_type="simpo")
    with pytest.raises(InputError, match="needs a reference; this trainer was created without it"):
        trainer.set_losses(loss_type="sigmoid")
    with pytest.raises(InputError, match="Unknown loss_type 'nonsense'"):
        trainer.set_losses(loss_type="nonsense", beta=0.7)
    assert trainer.args.loss_type == ["simpo"]
    assert trainer.args.beta == 0.1
    trainer.set_losses(loss_type="cpo")
    assert [term.variant.name for term in trainer.mixture.terms] == ["cpo"]
