"""What the package leans on where a policy with adapters is its own reference: one test per fact."""

from __future__ import annotations

import inspect
from typing import Any

import peft
import pytest
import torch
from trl import DPOTrainer
from trl.trainer import dpo_trainer

from tests.support import runs, tiny
from tests.support.seams import moved
from trl_dpo_ext._trl import borrowed, temporarily, without_frozen_copy
from trl_dpo_ext.reference.identity.weights import adapters_start_apart

ADAPTERS = "_trl/adapters.py"
BORROWED = "_trl/borrowed.py"
LORA = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
QV = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}


def continued() -> peft.PeftModel:
    return peft.get_peft_model(tiny.model(), peft.LoraConfig(**LORA, init_lora_weights=False))


def test_trl_copies_the_adapter_default_by_add_adapter_and_one_call_of_named_parameters(tmp_path) -> None:
    model, calls = continued(), []
    original = model.named_parameters

    def add_adapter(name: str, config: Any) -> None:
        calls.append((name, config is model.peft_config["default"]))
        model.named_parameters = named_parameters

    def named_parameters(*args: Any, **keywords: Any) -> Any:
        calls.append("named_parameters")
        del model.named_parameters
        return original(*args, **keywords) if len(calls) > 2 else iter(())

    with temporarily(model, add_adapter=add_adapter):
        runs.trainer(tmp_path, DPOTrainer, model=model)
    assert calls == [("ref", True), "named_parameters"], moved(
        "trl", 'the constructor calls add_adapter("ref", peft_config["default"]), then named_parameters()', ADAPTERS
    )


def test_trl_wraps_a_policy_by_get_peft_model_as_found_in_its_module(tmp_path) -> None:
    made = []

    def get_peft_model(*args: Any, **keywords: Any) -> Any:
        made.append(peft.get_peft_model(*args, **keywords))
        return made[-1]

    with temporarily(dpo_trainer, get_peft_model=get_peft_model):
        run = runs.trainer(tmp_path, DPOTrainer, peft_config=peft.LoraConfig(**LORA))
    assert run.model is made[0], moved("trl", "the constructor calls get_peft_model of its module", ADAPTERS)


def test_trl_runs_the_adapter_ref_as_the_reference_if_there_is_one(tmp_path) -> None:
    run = runs.trainer(tmp_path, DPOTrainer, model=continued())
    active = []
    batch = next(iter(run.get_train_dataloader()))
    model = run.model

    def seeing(**inputs: Any) -> Any:
        active.append(model.active_adapter)
        return model(**inputs)

    run.compute_ref_log_probs(seeing, batch)
    assert active == ["ref"], moved("trl", 'the reference is the adapter "ref"', ADAPTERS)
    assert model.active_adapter == "default", moved("trl", "the policy's adapter is active again", ADAPTERS)


def test_switching_adapters_changes_requires_grad() -> None:
    model = continued().requires_grad_(False)
    with model.disable_adapter():
        pass
    assert any(p.requires_grad for p in model.parameters()), (
        "PEFT leaves requires_grad alone now: trl_dpo_ext/_trl/adapter_copy.py (gradients_kept) is not needed any more."
    )


def test_one_part_of_the_name_of_an_adapters_tensor_is_the_adapters_name() -> None:
    configs = (
        peft.LoraConfig(**{**LORA, "target_modules": ["q_proj", "embed_tokens"]}, modules_to_save=["lm_head"]),
        peft.LoraConfig(**LORA, trainable_token_indices=[1], use_dora=True),
        peft.IA3Config(**QV, feedforward_modules=[]),
        peft.LoHaConfig(**QV, r=2),
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
    )
    for config in configs:
        model = peft.get_peft_model(tiny.model(), config, adapter_name="sft")
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        assert trained
        assert all("sft" in name.split(".") for name in trained), moved(
            "peft", f"an adapter's tensors of {type(config).__name__} have its name as one part of theirs", ADAPTERS
        )


def test_an_adapter_for_inference_freezes_the_active_one_when_it_is_added() -> None:
    assert "inference_mode" in inspect.signature(peft.PeftModel.set_adapter).parameters, moved(
        "peft", "set_adapter(name, inference_mode)", ADAPTERS
    )
    model = continued()
    model.add_adapter("ref", peft.LoraConfig(**LORA, inference_mode=True))
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".ref." in n), moved(
        "peft", "an adapter with inference_mode=True is frozen", ADAPTERS
    )


def case(name: str, **settings: Any) -> Any:
    """A PEFT configuration by name."""
    return pytest.param(name, settings, id=f"{name}-{'-'.join(map(str, settings.values()))}")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        case("LoraConfig", r=2, target_modules=["q_proj"]),
        case("LoraConfig", r=2, target_modules=["q_proj"], init_lora_weights="pissa"),
        case("LoraConfig", r=2, target_modules=["q_proj"], init_lora_weights=False),
        case("IA3Config", target_modules=["q_proj"], feedforward_modules=[], init_ia3_weights=True),
        case("IA3Config", target_modules=["q_proj"], feedforward_modules=[], init_ia3_weights=False),
        case("LoHaConfig", r=2, target_modules=["q_proj"]),
        case("LoKrConfig", r=2, target_modules=["q_proj"]),
        case("OFTConfig", r=2, oft_block_size=0, target_modules=["q_proj"]),
        case("BOFTConfig", target_modules=["q_proj"]),
        case("HRAConfig", r=2, target_modules=["q_proj"]),
        case("VeraConfig", r=2, target_modules=["q_proj"]),
        case("FourierFTConfig", n_frequency=10, target_modules=["q_proj"]),
        case("FourierFTConfig", n_frequency=10, target_modules=["q_proj"], init_weights=True),
        case("VBLoRAConfig", r=2, topk=2, num_vectors=16, vector_length=4, target_modules=["q_proj"]),
        case("C3AConfig", block_size=4, target_modules=["q_proj"]),
        case("LNTuningConfig", target_modules=["input_layernorm"]),
        case("PromptTuningConfig", num_virtual_tokens=2),
    ],
)
def test_which_adapters_start_as_the_model_that_they_adapt(name: str, settings: dict[str, Any]) -> None:
    """Of the others, the policy's start and the base are two models, so the first step compares nothing."""
    ids = torch.arange(4, 24).view(2, 10)
    plain = tiny.model()
    with torch.no_grad():
        before = plain(ids).logits
        model = peft.get_peft_model(plain, getattr(peft, name)(task_type="CAUSAL_LM", **settings)).eval()
        after = model(ids).logits[:, -10:]
    starts_apart = (after - before).abs().max().item() > 1e-4
    assert adapters_start_apart(model) == starts_apart, moved(
        "peft", f"whether {name} starts as its base", "reference/identity/weights.py (_starts_apart)"
    )


def test_a_policy_whose_frozen_copy_is_hidden_runs_with_its_adapter_off(tmp_path) -> None:
    model = continued()
    trainer = runs.trainer(tmp_path, DPOTrainer, model=model)
    batch = trainer.data_collator([trainer.train_dataset[at] for at in range(2)])
    with_copy, _ = trainer.compute_ref_log_probs(model, batch)
    with without_frozen_copy(model):
        without, _ = trainer.compute_ref_log_probs(model, batch)
    again, _ = trainer.compute_ref_log_probs(model, batch)
    fact = 'compute_ref_log_probs looks for "ref" in peft_config, and turns adapters off without it'
    assert torch.equal(with_copy, again), moved("trl", fact, "_trl/frozen_copy.py (without_frozen_copy)")
    assert not torch.allclose(with_copy, without), moved("trl", fact, "_trl/frozen_copy.py (without_frozen_copy)")
    plain = runs.trainer(tmp_path / "base", DPOTrainer, ref_model=tiny.model())
    base, _ = plain.compute_ref_log_probs(plain.ref_model, batch)
    assert torch.allclose(without, base, atol=1e-4), moved("trl", fact, "_trl/frozen_copy.py (without_frozen_copy)")


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "adapter"])
def test_a_borrowed_model_is_given_back_as_it_was(tmp_path, adapted: bool) -> None:
    model = continued() if adapted else tiny.model()
    model.requires_grad_(False)
    causal = model.get_base_model() if adapted else model
    causal.config.pad_token_id = causal.generation_config.pad_token_id = 7
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with borrowed(model):
        runs.trainer(tmp_path, DPOTrainer, model=model, ref_model=None if adapted else tiny.model(1))
        assert "forward" in vars(causal), moved("trl", "the head that computes log-probs replaces `forward`", BORROWED)
        assert causal.config.pad_token_id == 0, moved("trl", "the constructor sets the model's pad token", BORROWED)
        assert ("ref" in getattr(model, "peft_config", {})) == adapted, moved("trl", "it adds the copy", BORROWED)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert "forward" not in vars(causal)
    assert causal.config.pad_token_id == causal.generation_config.pad_token_id == 7
