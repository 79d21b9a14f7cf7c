"""What this package leans on in the constructor of TRL's trainer: one test per fact, whose failure names the seam."""

from __future__ import annotations

import inspect
import re
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from transformers import integrations
from trl import DPOConfig, DPOTrainer
from trl.trainer import dpo_trainer

from tests.support import runs, tiny
from tests.support.adapters import add_inside
from trl_dpo_ext import DPOExtTrainer, _trl, list_losses

from .trl_seams import Spy, seam


def test_the_constructor_copies_the_losses_of_its_configuration(tmp_path) -> None:
    args = runs.config(tmp_path, DPOConfig)
    with _trl.without_losses(args, [], []):
        trainer = DPOTrainer(
            tiny.model(), tiny.model(1), args, train_dataset=tiny.preferences(), processing_class=tiny.tokenizer()
        )
    assert (trainer.loss_types, trainer.loss_weights) == ([], []), seam("the constructor copies loss_type")
    assert args.loss_type == ["sigmoid"]


def test_both_models_are_loaded_by_create_model_from_path_policy_first(tmp_path, monkeypatch) -> None:
    folder, loaded = tiny.saved_model(str(tmp_path / "model")), []
    load = dpo_trainer.create_model_from_path
    monkeypatch.setattr(
        dpo_trainer, "create_model_from_path", lambda *a, **k: loaded.append(load(*a, **k)) or loaded[-1]
    )
    trainer = runs.trainer(tmp_path, DPOTrainer, model=folder)
    assert loaded == [trainer.model, trainer.ref_model], seam(
        "create_model_from_path loads the policy, then the reference"
    )


def test_no_reference_is_legal(tmp_path) -> None:
    folder = tiny.saved_model(str(tmp_path / "model"))
    with _trl.no_reference_model(policy_by_name=True):
        trainer = runs.trainer(tmp_path, DPOTrainer, model=folder)
    assert trainer.model is not None
    assert trainer.ref_model is None, seam("a reference of None is skipped in the constructor")


@pytest.mark.parametrize("engine", ["fsdp", "deepspeed"])
def test_the_reference_is_prepared_by_functions_of_the_trainers_module(tmp_path, monkeypatch, engine: str) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(dpo_trainer, f"prepare_{engine}", lambda model, accelerator: calls.append(model) or model)
    enabled = property(lambda self: "ref_model" in vars(self), lambda self, value: None)  # once it is to be prepared
    reference = tiny.model(1).train()
    monkeypatch.setattr(DPOTrainer, f"is_{engine}_enabled", enabled, raising=False)
    for whole, prepared in ((None, [reference]), (reference, [])):
        calls.clear()
        with _trl.placed_reference(whole):
            trainer = runs.trainer(tmp_path, DPOTrainer, ref_model=reference)
        assert calls == prepared, seam(f"prepare_{engine}(reference, accelerator)")
        assert trainer.ref_model is reference
    assert not reference.training


def test_weighting_asks_the_head_for_what_wpo_needs(tmp_path) -> None:
    trainer = runs.trainer(tmp_path, DPOTrainer, ref_model=tiny.model(1), use_weighting=True)
    recorder = _trl.Recorder(trainer.model)
    inputs = next(iter(trainer.get_train_dataloader()))
    trainer.compute_loss(recorder, inputs)
    tokens = inputs["input_ids"].size(1) - 1
    assert _trl.scored_tokens(recorder.output, tokens, "log_sum_sq_probs").shape[1] == tokens, seam("log_sum_sq_probs")


def test_the_references_head_is_asked_for_through_the_trainers_module(tmp_path) -> None:
    with _trl.reference_entropy():
        trainer = runs.trainer(tmp_path, DPOTrainer, ref_model=tiny.model(1))
    chosen, _, output = _trl.Host(trainer).run_reference(
        next(iter(trainer.get_train_dataloader())), lambda model: model
    )
    assert chosen.shape == (4,)
    assert output.entropy is not None, seam("add_fused_lm_head gives the reference its head")
    assert output.entropy.shape == output.log_probs.shape, seam("entropy is per token")
    assert _trl.Host(trainer).vocabulary_size() == len(tiny.tokenizer()), seam("vocab_size")


def test_the_constructor_alone_reads_padding_free(tmp_path, caplog) -> None:
    args = runs.config(tmp_path, DPOConfig, padding_free=True)
    with _trl.without_losses(args, ["sigmoid"], []):
        DPOTrainer(
            tiny.model(), tiny.model(1), args, train_dataset=tiny.preferences(), processing_class=tiny.tokenizer()
        )
    assert "padding_free" not in caplog.text, seam("padding_free is read in the constructor")
    assert args.padding_free


def test_the_names_of_trl_are_the_names_declared_as_trls() -> None:
    help_text = next(f for f in DPOConfig.__dataclass_fields__.values() if f.name == "loss_type").metadata["help"]
    names = set(re.findall(r"`'(\w+)'`", help_text))
    assert names == {v.name for v in list_losses() if v.from_trl}, seam("the losses named in the help of loss_type")


def test_the_constructor_takes_the_arguments_we_pass_by_position() -> None:
    names = list(inspect.signature(DPOTrainer.__init__).parameters)
    expected = ["self", "model", "ref_model", "args", "data_collator", "train_dataset", "eval_dataset"]
    assert names[:7] == expected, seam("the order of the constructor's arguments")


def test_our_constructor_has_the_signature_of_trls() -> None:
    theirs, ours = (inspect.signature(kind.__init__).parameters for kind in (DPOTrainer, DPOExtTrainer))
    described = {name: (p.kind, p.default) for name, p in theirs.items()}
    assert list(ours) == list(theirs), seam("the constructor's arguments")
    assert {name: (p.kind, p.default) for name, p in ours.items()} == described, seam("the constructor's defaults")


def test_adapters_inside_a_model_are_not_switched_off(tmp_path) -> None:
    model = add_inside(tiny.model(), peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    trainer = runs.trainer(tmp_path, DPOTrainer, model=model, precompute_ref_log_probs=True)
    batch = next(iter(trainer.get_train_dataloader()))
    spy = Spy(trainer.model)
    with_adapter = trainer.compute_ref_log_probs(spy, batch)[0]
    assert not _trl.is_peft_model(model)
    model.disable_adapters()
    without = trainer.compute_ref_log_probs(spy, batch)[0]
    assert not torch.allclose(with_adapter, without), seam("only a PeftModel's adapter is switched off")


def test_the_default_output_folder_is_named_like_trls() -> None:
    model = tiny.model()
    model.config._name_or_path = "someone/Tiny-1B"
    assert _trl.default_output_dir("someone/Tiny-1B") == _trl.default_output_dir(model) == "Tiny-1B-DPO"


def test_the_hash_of_all_weights_is_made_by_hash_module_and_read_by_the_pass_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(dpo_trainer, "hash_module", lambda _: pytest.fail("the weights were read"))
    with _trl.no_model_hash():
        trainer = runs.trainer(tmp_path, DPOTrainer, precompute_ref_log_probs=True)
    assert trainer._precompute_model_hash == "", seam("hash_module, looked up in the trainer's module")


def test_the_constructor_runs_the_pass_through_a_method_that_may_leave_the_dataset_alone(tmp_path) -> None:
    class Hooked(DPOTrainer):
        calls: tuple = ()

        def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
            assert self.data_collator is not None
            assert self.model is not None
            self.calls = (*self.calls, name)
            return dataset

    data = {"a": tiny.preferences(2), "b": tiny.preferences(1)}
    trainer = runs.trainer(tmp_path, Hooked, precompute_ref_log_probs=True, eval_dataset=data)
    assert trainer.calls == ("train", "a", "b"), seam("_precompute_ref_logps(dataset, name, batch_size)")
    assert "ref_chosen_logps" not in trainer.train_dataset.column_names


def test_the_reference_is_run_without_gradient_with_the_adapter_off_by_what_computes_its_log_probs(tmp_path) -> None:
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    trainer = runs.trainer(tmp_path, DPOTrainer, peft_config=lora)
    ids = torch.tensor([[5, 6, 7]])

    def logits() -> torch.Tensor:
        return trainer.model(input_ids=ids).logits

    base = _trl.Host(trainer).as_reference(logits)
    assert not base.requires_grad, seam("compute_ref_log_probs runs without gradient")
    with trainer.model.disable_adapter():
        assert torch.equal(base, logits()), seam("compute_ref_log_probs switches the adapter off")
    assert not torch.equal(base, logits())


def test_a_policy_by_name_is_loaded_through_a_function_that_can_be_stood_in_for(tmp_path) -> None:
    folder = tiny.saved_model(str(tmp_path / "model"))
    with _trl.stub_policy(), _trl.no_reference_model(policy_by_name=True):
        trainer = runs.trainer(tmp_path, DPOTrainer, model=folder)
    assert trainer.model.num_parameters() < 2000, seam("create_model_from_path, looked up in the trainer's module")


def test_the_accelerator_holds_what_it_has_prepared(tmp_path) -> None:
    trainer = runs.trainer(tmp_path, DPOTrainer, ref_model=tiny.model(seed=1))
    assert any(model is trainer.ref_model for model in trainer.accelerator._models), seam("accelerator._models")
    _trl.Host(trainer).release_reference()
    assert trainer.ref_model is None


def test_a_reference_pass_asks_for_checkpointing_by_three_old_names() -> None:
    called = []
    model: Any = SimpleNamespace(
        is_gradient_checkpointing=True,
        gradient_checkpointing_disable=lambda: called.append("off"),
        gradient_checkpointing_enable=lambda kwargs: called.append(kwargs),
    )
    fact = seam("disable_gradient_checkpointing(model, kwargs)")
    with dpo_trainer.disable_gradient_checkpointing(model, {"use_reentrant": False}):
        assert called == ["off"], fact
    assert called == ["off", {"use_reentrant": False}], fact
    assert "disable_gradient_checkpointing(self.model" in inspect.getsource(DPOTrainer.compute_ref_log_probs), fact


@pytest.mark.parametrize("name", ["tensorboard", "codecarbon", "flyte"])
def test_a_tracker_that_is_not_installed_raises_when_it_is_made(name: str) -> None:
    callback = integrations.INTEGRATION_TO_CALLBACK[name]
    if _trl.trackers()[name]:
        callback()
        return
    with pytest.raises((RuntimeError, ImportError)):
        callback()
