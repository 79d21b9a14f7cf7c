"""The reference is the model that the policy starts from, or the run is stopped."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    LoraConfig,
    get_peft_model,
)
from transformers import AutoModelForCausalLM

from tests.support import runs, tiny
from tests.support.first_batch import first_batch
from trl_dpo_ext.errors import InputError

from .start_kinds import LOG2, LORA, STORE, another_reference, reference_logps, shifted


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.saved_model(str(tmp_path_factory.mktemp("model")))


def base(folder: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


# 1. Full fine-tuning of a model whose weights in memory are not those of the file under its name.


def merged_adapter(folder: str) -> Any:
    model = get_peft_model(base(folder), LoraConfig(**LORA, init_lora_weights=False)).merge_and_unload()
    return model.requires_grad_(True)


def resized(folder: str) -> Any:
    model = base(folder)
    model.resize_token_embeddings(len(tiny.tokenizer()) + 7)
    return model


def loaded_state(folder: str) -> Any:
    model = base(folder)
    model.load_state_dict(tiny.model(seed=8).state_dict())
    return model


def adapter_inside(folder: str) -> Any:
    model = base(folder)
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    return model


AS_HANDED_IN = "the reference is a copy of the model as it was passed"


@pytest.mark.parametrize(
    "change",
    [
        another_reference.case(
            "change a model's weights in memory (`p.data.add_(...)`), then fine-tune it fully",
            AS_HANDED_IN,
            lambda folder: shifted(base(folder)),
        ),
        another_reference.case(
            "merge an adapter into a model in memory, then fine-tune it fully", AS_HANDED_IN, merged_adapter
        ),
        another_reference.case("resize a model's embeddings before training", AS_HANDED_IN, resized),
        another_reference.case("`load_state_dict` before training", AS_HANDED_IN, loaded_state),
        another_reference.case("add an adapter inside a model (`model.add_adapter`)", AS_HANDED_IN, adapter_inside),
        another_reference.case(
            "pass a model that was never loaded from a folder, without `ref_model`",
            AS_HANDED_IN,
            lambda _: tiny.model(),
        ),
    ],
)
def test_the_model_as_handed_in_is_the_reference(tmp_path: Path, folder: str, change: Callable[[str], Any]) -> None:
    model = change(folder)
    run = runs.trainer(tmp_path, model=model)
    assert first_batch(run).item() == LOG2
    found, alone = reference_logps(run, model)
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-3)
    shifted(run.model)  # as training does
    torch.testing.assert_close(reference_logps(run, model)[0], found, rtol=0, atol=0)


@another_reference(
    "change the policy's weights between creating the trainer and `train()`",
    "error before the first step that names a changed weight: pass `ref_model=load_reference(model)`",
)
def test_weights_that_change_after_construction_stop_the_run(tmp_path: Path, folder: str) -> None:
    run = runs.trainer(tmp_path, model=folder)
    shifted(run.model)
    with pytest.raises(InputError, match=r"weights in memory are not those.*embed_tokens.*load_reference\(model\)"):
        run.train()
    assert run.state.global_step == 0


@another_reference(
    "load adapter weights into the policy after creating the trainer",
    "error before the first step: pass the model with its adapter",
)
def test_adapter_weights_that_are_loaded_after_construction_stop_the_run(tmp_path: Path) -> None:
    run = runs.trainer(tmp_path, peft_config=LoraConfig(**LORA))
    shifted(run.model)
    with pytest.raises(InputError, match=r"Pass the model with its adapter \(a PeftModel\)"):
        first_batch(run)


def test_the_weights_of_a_trained_adapter_that_change_after_construction_are_named(tmp_path: Path) -> None:
    run = runs.trainer(tmp_path, model=get_peft_model(tiny.model(), LoraConfig(**LORA, init_lora_weights=False)))
    shifted(run.model)
    with pytest.raises(InputError, match=r"not what its frozen copy was made of.*lora_A\.default"):
        first_batch(run)


@another_reference("merge the adapter after creating the trainer", "error before the first step that names the layer")
def test_an_adapter_that_is_merged_after_construction_stops_the_run(tmp_path: Path) -> None:
    config = LoraConfig(**LORA, init_lora_weights=False)
    run = runs.trainer(tmp_path, model=get_peft_model(tiny.model(), config), ref_store=str(tmp_path / "refs"), **STORE)
    shifted(run.model)
    run.model.merge_adapter()
    with pytest.raises(InputError, match=r"merged into the policy \(.*q_proj\).*unmerge_adapter"):
        first_batch(run)


@another_reference(
    "put the reference model into training mode after creating the trainer, with dropout",
    "error before the first step: call `ref_model.eval()`",
)
def test_a_reference_that_is_put_into_training_mode_stops_the_run(tmp_path: Path) -> None:
    run = runs.trainer(tmp_path, model=tiny.model(attention_dropout=0.5))
    run.ref_model.train()
    with pytest.raises(InputError, match=r"runs in training mode.*ref_model\.eval"):
        first_batch(run)


@another_reference("put reference log-probs of another model into the dataset's columns", "error before the first step")
def test_columns_of_another_model_stop_the_run(tmp_path: Path) -> None:
    columns = {name: [-20.0] * 8 for name in ("ref_chosen_logps", "ref_rejected_logps")}
    run = runs.trainer(tmp_path, train_dataset=tiny.preferences(8, **columns), **STORE)
    with pytest.raises(InputError, match=r"own columns.*Another model, chat template or code"):
        first_batch(run)


def test_the_check_can_be_switched_off_for_a_live_reference(tmp_path: Path) -> None:
    run = runs.trainer(tmp_path, peft_config=LoraConfig(**LORA), verify_reference=False)
    shifted(run.model)
    assert math.isfinite(first_batch(run).item())
    assert run.first_step.start_difference is None
