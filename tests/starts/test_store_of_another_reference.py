"""A store is not read for a reference that it was not computed with, however alike the two look."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from tests.support import tiny
from tests.support.stored_runs import report, stored
from trl_dpo_ext import load_reference
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.model.loading import files_of

from .listing import Kind
from .start_kinds import reference_logps

another_store = Kind("A store that another reference has filled")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return tiny.saved_model(str(tmp_path / "model"))


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "refs")


RANDOM_LORA = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)


def merges(model: Any) -> Any:
    torch.manual_seed(1)
    return peft.get_peft_model(model, RANDOM_LORA).merge_and_unload()


def changes_one_value(model: Any) -> Any:
    model.model.embed_tokens.weight.data[7, 3] += 1.0
    return model


def replaces_a_parameter(model: Any) -> Any:
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.flip(0), requires_grad=False)
    return model


def swaps_two_rows(model: Any) -> Any:
    rows = model.lm_head.weight.data
    rows[[5, 6]] = rows[[6, 5]]
    return model


@pytest.mark.parametrize(
    "change",
    [
        another_store.case(
            "merge an adapter into what `load_reference` gave, and pass that as `ref_model`",
            "it is identified by its weights in memory, and the store of its base is refused",
            merges,
        ),
        another_store.case("change one value through `data`", "the same", changes_one_value),
        another_store.case("replace a parameter by another", "the same", replaces_a_parameter),
        another_store.case("exchange two rows of a weight through `data`", "the same", swaps_two_rows),
    ],
)
def test_a_reference_that_was_changed_after_loading_is_not_its_files(
    tmp_path: Path, folder: str, change: Callable[[Any], Any]
) -> None:
    assert files_of(copy.deepcopy(load_reference(folder))) == (folder, None)
    assert files_of(change(load_reference(folder))) == (None, None)


def test_a_merged_reference_is_refused_a_store_of_its_base(tmp_path: Path, folder: str, store: str) -> None:
    stored(tmp_path, store, ref_model_name_or_path=folder)
    with pytest.raises(InputError, match=r"weights is files:.* in the store and memory:"):
        stored(tmp_path, store, ref_model=merges(load_reference(folder)))


OTHER_FILES: dict[str, tuple[dict[str, Any], Callable[[str], Any]]] = {
    "subfolder": ({"subfolder": "later"}, lambda folder: tiny.model(2).save_pretrained(f"{folder}/later")),
    "variant": ({"variant": "ema"}, lambda folder: tiny.model(2).save_pretrained(folder, variant="ema")),
    "use_safetensors": (
        {"use_safetensors": False},
        lambda folder: torch.save(tiny.model(2).state_dict(), f"{folder}/pytorch_model.bin"),
    ),
}


@pytest.mark.parametrize("how", ["policy", pytest.param("ref_dtype", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("load", "write"),
    [
        another_store.case(
            f"load another weight file of the same folder (`{name}` in `model_init_kwargs`)",
            "the store of the folder's first file is refused",
            *case,
        )
        for name, case in OTHER_FILES.items()
    ],
)
def test_other_files_of_a_folder_are_another_reference(
    tmp_path: Path, folder: str, store: str, load: dict[str, Any], write: Callable[[str], Any], how: str
) -> None:
    write(folder)
    reference: dict[str, Any] = {"ref_dtype": "float32", "ref_drift_num_pairs": 0} if how == "ref_dtype" else {}
    stored(tmp_path, store, model=folder, **reference)
    with pytest.raises(InputError, match="weights"):
        stored(tmp_path, store, model=folder, model_init_kwargs=load, **reference)
    run = stored(tmp_path, f"{store}2", model=folder, model_init_kwargs=load, **reference)
    found, truth = reference_logps(run, tiny.model(2))
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-4)


@another_store(
    "put an adapter into the `ref_model` with peft's `inject_adapter_in_model`", "the adapter is part of the reference"
)
def test_adapters_that_peft_puts_inside_count(tmp_path: Path, store: str) -> None:
    def injected(seed: int) -> Any:
        model = tiny.model(4)
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(RANDOM_LORA, model)
        return model

    stored(tmp_path, store, ref_model=injected(1))
    assert report(stored(tmp_path, store, ref_model=injected(1))).found > 0
    for other in (injected(2), tiny.model(4)):
        with pytest.raises(InputError, match="adapter is"):
            stored(tmp_path, store, ref_model=other)


def with_hook(model: Any) -> Any:
    model.lm_head.register_forward_hook(lambda _, inputs, output: output * 0.5)
    model.model.norm.register_forward_hook(lambda _, inputs, output: output * 0.5)
    return model


def with_another_activation(model: Any) -> Any:
    model.model.layers[0].mlp.act_fn = torch.nn.Sigmoid()
    return model


def with_other_positions(model: Any) -> Any:
    model.model.rotary_emb.inv_freq.mul_(0.0)
    return model


@pytest.mark.parametrize(
    "change",
    [
        another_store.case(
            "register a forward hook on the `ref_model`", "error: the store holds other log-probs", with_hook
        ),
        another_store.case("replace a layer without weights in the `ref_model`", "the same", with_another_activation),
        another_store.case("change a buffer that no file holds (`inv_freq`)", "the same", with_other_positions),
    ],
)
def test_what_no_identity_shows_is_found_in_the_numbers(
    tmp_path: Path, store: str, change: Callable[[Any], Any]
) -> None:
    stored(tmp_path, store, ref_model=tiny.model(4))
    assert report(stored(tmp_path, store, ref_model=tiny.model(4))).computed == 0
    with pytest.raises(InputError, match="holds other log-probs than ref_model gives"):
        stored(tmp_path, store, ref_model=change(tiny.model(4)))
    nevertheless = stored(tmp_path, store, ref_model=change(tiny.model(4)), verify_reference=False)
    assert report(nevertheless).computed == 0
