"""The reference of an adapter that is trained further is a frozen copy of it, complete and under any name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    BOFTConfig,
    HRAConfig,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)

from tests.support import runs, tiny
from tests.support.first_batch import first_batch
from trl_dpo_ext.errors import InputError

from .start_kinds import LOG2, LORA, STORE, another_reference, reference_logps, shifted

QV = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}


# 2. An adapter that is trained further: its frozen copy has all of it.

COMPLETE = "the frozen copy that serves as reference has every parameter of the adapter"
ADAPTERS = [
    another_reference.case(
        "train a LoRA adapter further that also adapts `embed_tokens`",
        COMPLETE,
        LoraConfig(**{**LORA, "target_modules": ["q_proj", "embed_tokens"]}),
    ),
    another_reference.case(
        "train an adapter further that has `trainable_token_indices`",
        COMPLETE,
        LoraConfig(**LORA, trainable_token_indices=[5, 6, 7, 8]),
    ),
    another_reference.case(
        "train an adapter further that has `modules_to_save`", COMPLETE, LoraConfig(**LORA, modules_to_save=["lm_head"])
    ),
    another_reference.case("train a DoRA adapter further", COMPLETE, LoraConfig(**LORA, use_dora=True)),
    another_reference.case("train an IA3 adapter further", COMPLETE, IA3Config(**QV, feedforward_modules=[])),
    another_reference.case("train a LoHa adapter further", COMPLETE, LoHaConfig(**QV, r=2)),
    another_reference.case("train a VeRA adapter further", COMPLETE, VeraConfig(**QV, r=2)),
    another_reference.case(
        "train virtual tokens further", COMPLETE, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    ),
    pytest.param(OFTConfig(**QV, r=2, oft_block_size=0), id="OFT"),
    pytest.param(BOFTConfig(**QV), id="BOFT"),
    pytest.param(HRAConfig(**QV, r=2), id="HRA"),
]


@pytest.mark.parametrize("config", ADAPTERS)
def test_the_frozen_copy_of_an_adapter_is_complete(tmp_path: Path, config: Any) -> None:
    model = shifted(get_peft_model(tiny.model(), config))
    run = runs.trainer(tmp_path, model=model)
    assert first_batch(run).item() == LOG2
    assert run.first_step.start_difference == 0
    trained = [name for name, parameter in run.model.named_parameters() if parameter.requires_grad]
    assert trained
    assert not any("ref" in name.split(".") for name in trained)
    before = reference_logps(run, tiny.model())[0]
    shifted(run.model)
    torch.testing.assert_close(reference_logps(run, tiny.model())[0], before, rtol=0, atol=0)


@pytest.mark.parametrize("config", [case.values[0] for case in ADAPTERS[:2]], ids=["embed_tokens", "tokens"])
def test_the_frozen_copy_is_what_a_store_holds(tmp_path: Path, config: Any) -> None:
    model = shifted(get_peft_model(tiny.model(), config))
    run = runs.trainer(tmp_path, model=model, ref_store=str(tmp_path / "refs"), **STORE)
    assert first_batch(run).item() == LOG2


def with_name(name: str, beside: str | None = None) -> PeftModel:
    config = LoraConfig(**LORA, init_lora_weights=False)
    model = get_peft_model(tiny.model(), config, adapter_name=beside or name)
    if beside:
        model.add_adapter(name, LoraConfig(**{**LORA, "target_modules": ["v_proj"]}, init_lora_weights=False))
        model.set_adapter(name)
    return model


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        another_reference.case(
            "train an adapter further that is not named `default`", "its frozen copy is the reference", "sft", None
        ),
        another_reference.case(
            "train one of two adapters further, and the other is named `default`",
            "the frozen copy is made of the active one",
            "sft",
            "default",
        ),
        pytest.param("model", None, id="a name that is a module's too"),
    ],
)
def test_an_adapter_of_any_name_is_copied(tmp_path: Path, name: str, beside: str | None) -> None:
    model = with_name(name, beside)
    run = runs.trainer(tmp_path, model=model)
    assert first_batch(run).item() == LOG2
    assert run.model.active_adapter == name
    assert set(run.model.peft_config) == {name, "ref", *filter(None, [beside])}


@another_reference(
    "create a second trainer on a `PeftModel`", "the frozen copy is made anew, of the adapter as it is now"
)
def test_a_second_trainer_on_one_model_copies_the_adapter_as_it_is_now(tmp_path: Path) -> None:
    model = with_name("default")
    runs.trainer(tmp_path, model=model)
    shifted(model)
    assert first_batch(runs.trainer(tmp_path, model=model)).item() == LOG2


@another_reference(
    "pass a `PeftModel` that has an adapter named `ref`", "error: the frozen copy has this name; load it under another"
)
def test_an_adapter_named_like_the_copy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="adapter named 'ref'"):
        runs.trainer(tmp_path, model=with_name("default", beside="ref"))


def test_two_active_adapters_are_refused(tmp_path: Path) -> None:
    model = with_name("default", beside="other")
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(InputError, match="2 adapters of the model are active"):
        runs.trainer(tmp_path, model=model)


# 3. An adapter whose initialization moves the base.


@pytest.mark.parametrize("settings", [{}, STORE], ids=["live", "stored"])
@pytest.mark.parametrize(
    "init",
    [
        another_reference.case(
            "initialize LoRA with PiSSA (`init_lora_weights='pissa'`)",
            "a frozen copy of the new adapter on the residual base is the reference, which is the model as passed",
            "pissa",
        ),
        another_reference.case("initialize LoRA with OLoRA", "the same", "olora"),
        pytest.param("pissa_niter_4", id="fast PiSSA"),
    ],
)
def test_a_base_that_an_initialization_moves_is_completed_by_a_frozen_copy(
    tmp_path: Path, init: str, settings: dict[str, Any]
) -> None:
    store = {"ref_store": str(tmp_path / "refs")} if settings else {}
    run = runs.trainer(tmp_path, peft_config=LoraConfig(**LORA, init_lora_weights=init), **settings, **store)
    assert first_batch(run).item() == LOG2
    if not settings:
        found, handed_in = reference_logps(run, tiny.model())
        torch.testing.assert_close(found, handed_in, rtol=1e-4, atol=1e-3)


def test_copying_an_adapter_does_not_decompose_the_base_again(tmp_path: Path) -> None:
    model = get_peft_model(tiny.model(), LoraConfig(**LORA, init_lora_weights="pissa"))
    run = runs.trainer(tmp_path, model=model)
    found, handed_in = reference_logps(run, tiny.model())
    torch.testing.assert_close(found, handed_in, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("init", [True, "gaussian", "orthogonal"])
def test_an_initialization_that_leaves_the_base_alone_needs_no_copy(tmp_path: Path, init: Any) -> None:
    run = runs.trainer(tmp_path, peft_config=LoraConfig(**LORA, init_lora_weights=init))
    assert "ref" not in run.model.peft_config
