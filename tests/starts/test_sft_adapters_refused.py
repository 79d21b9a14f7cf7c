"""Starts from an adapter that cannot be meant are refused before a model is loaded."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
from transformers import BitsAndBytesConfig

from tests.support import runs
from tests.support.sft import LORA, Sft, saved_adapters
from trl_dpo_ext import InputError

from .test_sft_adapters import adapter_start


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> Sft:
    return saved_adapters(tmp_path_factory.mktemp("sft"))


def mixed(sft: Sft) -> Any:
    return peft.PeftMixedModel.from_pretrained(sft.model(), sft.adapter(), is_trainable=True)


def two_active(sft: Sft) -> Any:
    model = sft.peft_model("a", "b")
    model.base_model.set_adapter(["a", "b"])
    return model


def switched_off(sft: Sft) -> Any:
    model = sft.peft_model("default")
    model.disable_adapter_layers()
    return model


def with_other_ref(sft: Sft) -> Any:
    return sft.peft_model("default", "ref")


def two_inside(sft: Sft) -> Any:
    model = sft.inside()
    model.load_adapter(sft.adapter(), "second")
    return model


QUANTIZED = BitsAndBytesConfig(load_in_4bit=True)


@pytest.mark.parametrize(
    ("given", "settings", "message"),
    [
        adapter_start.case("the folder of an adapter with --use_peft", "error: names both fixes",
            lambda sft: sft.adapter(), {"peft_config": LORA}, r"Remove peft_config \(--use_peft\).*--merge_adapter"),
        adapter_start.case("`AutoModelForCausalLM.from_pretrained(adapter)` with `peft_config`", "error: merge it first",
            lambda sft: sft.inside(), {"peft_config": LORA}, "adapter inside.*merge_and_unload"),
        adapter_start.case("a PeftModel with `peft_config`", "error: merge it first",
            lambda sft: sft.peft_model("sft"), {"peft_config": LORA}, r"a PeftModel \(sft\).*model.merge_and_unload"),
        adapter_start.case("`--merge_adapter` into a quantized base", "error",
            lambda sft: sft.adapter(), {"merge_adapter": True, "quantization_config": QUANTIZED}, "quantized base"),
        adapter_start.case("`--merge_adapter` without an adapter", "error",
            lambda sft: sft.base, {"merge_adapter": True}, "is not an adapter"),
        adapter_start.case("an adapter of virtual tokens as the model", "error: cannot be trained further",
            lambda sft: sft.adapter("prompt"), {}, "PROMPT_TUNING.*neither train further nor merge"),
        adapter_start.case("an adapter on the output layer as the model", "error: merge it first",
            lambda sft: sft.adapter("head"), {}, "adapts lm_head.*--merge_adapter"),
        adapter_start.case("an adapter as the model with `ref_quantization` or `ref_dtype`", "error",
            lambda sft: sft.adapter(), {"ref_dtype": "bfloat16"}, "ref_dtype cannot be used with an adapter"),
        adapter_start.case("an adapter as `ref_model_name_or_path`", "error: merge it first",
            lambda sft: sft.base, {"ref_model_name_or_path": "ADAPTER"}, "ref_model_name_or_path=.* is an adapter"),
        adapter_start.case("a PeftMixedModel", "error", mixed, {}, "PeftMixedModel"),
        adapter_start.case("several active adapters", "error", two_active, {}, r"2 adapters .*\(a, b\).*set_adapter"),
        adapter_start.case("adapters that are switched off", "error", switched_off, {}, "enable_adapter_layers"),
        adapter_start.case("a PeftModel with another adapter named `ref`", "error", with_other_ref, {},
            r"named 'ref'.*differs from 'default'.*delete_adapter\('ref'\)"),
        pytest.param(two_inside, {}, "several frozen adapters inside", id="two inside"),
        pytest.param(lambda sft: sft.peft_model("sft"), {"merge_adapter": True}, "given by name", id="merge an instance"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_before_a_model_is_loaded(
    tmp_path, sft: Sft, given: Callable[[Sft], Any], settings: dict[str, Any], message: str, monkeypatch
) -> None:
    model = given(sft)
    settings = {name: sft.adapter() if value == "ADAPTER" else value for name, value in settings.items()}
    monkeypatch.setattr("trl.trainer.dpo_trainer.create_model_from_path", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(InputError, match=message):
        runs.trainer(tmp_path, model=model, **settings)


def folder_of(sft: Sft, target: Path, **changes: Any) -> str:
    """A copy of the adapter with other entries in its configuration."""
    copied = Path(shutil.copytree(sft.adapter(), target))
    config = json.loads((copied / "adapter_config.json").read_text())
    (copied / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    return str(copied)


@adapter_start("an adapter whose base is not named, not found, or an adapter itself", "error: names the base")
def test_the_base_has_to_be_there(tmp_path, sft: Sft) -> None:
    for base, message in (
        (None, "does not name its base"),
        (str(tmp_path / "gone"), r"names the base .*gone, which could not be found"),
        (sft.adapter(), "which is an adapter itself"),
    ):
        folder = folder_of(sft, tmp_path / f"adapter {len(os.listdir(tmp_path))}", base_model_name_or_path=base)
        with pytest.raises(InputError, match=message):
            runs.trainer(tmp_path / "out", model=folder)


@adapter_start("a folder with adapters in the folders below it", "error: names the newest")
def test_the_folder_above_an_adapter_is_answered_with_the_adapter(tmp_path, sft: Sft) -> None:
    for step in (50, 100):
        shutil.copytree(sft.adapter(), tmp_path / "sft" / f"checkpoint-{step}")
    with pytest.raises(InputError, match=r"2 of its folders hold adapters.*sft/checkpoint-100"):
        runs.trainer(tmp_path / "out", model=str(tmp_path / "sft"))


@adapter_start("the folder of an adapter without its weights", "error")
def test_an_adapter_without_weights_is_refused(tmp_path, sft: Sft) -> None:
    folder = folder_of(sft, tmp_path / "adapter")
    (Path(folder) / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="not its weights"):
        runs.trainer(tmp_path / "out", model=folder)
