"""What the package leans on to start from an adapter: one test per fact, whose failure names the place to mend."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM
from trl import DPOTrainer

from tests.support import runs, tiny
from tests.support.seams import moved
from trl_dpo_ext._trl import active_inside, missing_targets

LORA: dict[str, Any] = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}


def seam(library: str, fact: str) -> str:
    return moved(library, fact, "_trl/adapters.py")


def adapted(*names: str, **settings: Any) -> Any:
    model = peft.get_peft_model(tiny.model(), peft.LoraConfig(**{**LORA, **settings}), adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, peft.LoraConfig(**{**LORA, **settings}))
    return model


def test_trl_copies_the_adapter_default_by_add_adapter_and_get_parameter(tmp_path) -> None:
    model, asked = adapted("default"), []
    add, get = model.add_adapter, model.get_parameter
    model.add_adapter = lambda name, config: asked.append((name, config)) or add(name, config)
    model.get_parameter = lambda name: asked.append(name) or get(name)
    runs.trainer(tmp_path, DPOTrainer, model=model)
    assert asked[0] == ("ref", model.peft_config["default"]), seam("trl", 'add_adapter("ref", config of "default")')
    assert len(asked) == 3, seam("trl", "each parameter of the copy is looked up by get_parameter")
    assert all(".ref." in name for name in asked[1:]), seam("trl", "each parameter of the copy has .ref. in its name")


def test_peft_saves_an_adapter_that_is_not_called_default_in_a_folder_of_its_name(tmp_path) -> None:
    adapted("default", "sft").save_pretrained(tmp_path / "all")
    found = {path.parent.name for path in (tmp_path / "all").rglob("adapter_config.json")}
    assert found == {"all", "sft"}, seam("peft", "save_pretrained saves every adapter, but default in a folder")
    adapted("default", "sft").save_pretrained(tmp_path / "one", selected_adapters=["sft"])
    found = {path.parent.name for path in (tmp_path / "one").rglob("adapter_config.json")}
    assert found == {"sft"}, seam("peft", "selected_adapters")


def test_on_resume_transformers_takes_the_adapter_at_the_top_for_default(tmp_path) -> None:
    model = adapted("sft", "ref")
    model.save_pretrained(tmp_path / "checkpoint", selected_adapters=["ref"])
    adapted("default").save_pretrained(tmp_path / "checkpoint")
    run = runs.trainer(tmp_path, DPOTrainer, model=adapted("default"))
    loaded: list[tuple[Any, Any]] = []
    run.model.load_adapter = lambda folder, name, **_: loaded.append((Path(folder).name, name))
    run._load_from_checkpoint(str(tmp_path / "checkpoint"), run.model)
    assert loaded[-1] == ("ref", "ref"), seam("transformers", "load_adapter of each folder, under its name")
    # older versions of transformers leave the one at the top out
    assert loaded[:-1] in ([], [("checkpoint", "default")]), seam("transformers", "load_adapter of the top as default")


def test_an_adapted_layer_gives_its_layer_and_says_whether_it_is_switched_off() -> None:
    model = adapted("default")
    (layer,) = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    assert isinstance(layer.get_base_layer(), torch.nn.Linear), seam("peft", "get_base_layer()")
    model.disable_adapter_layers()
    assert layer.disable_adapters, seam("peft", "layer.disable_adapters")


def test_transformers_puts_an_adapter_inside_a_model_under_the_names_that_peft_gives(tmp_path) -> None:
    tiny.saved_model(str(tmp_path / "base"))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = peft.get_peft_model(base, peft.LoraConfig(**LORA))
    model.save_pretrained(tmp_path / "adapter")
    inside = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    ours = {name for name, _ in model.get_base_model().named_parameters()}
    assert {name for name, _ in inside.named_parameters()} == ours, seam("transformers", "names of an adapter inside")
    assert inside._hf_peft_config_loaded, seam("transformers", "_hf_peft_config_loaded")
    assert not any(p.requires_grad for p in inside.parameters()), seam("transformers", "an adapter inside is frozen")
    (layer,) = [module for module in inside.modules() if isinstance(module, BaseTunerLayer)]
    assert list(layer.active_adapters) == ["default"], seam("peft", "a layer's active_adapters")
    assert "autocast_adapter_dtype" in inspect.signature(peft.PeftModel.from_pretrained).parameters, seam(
        "peft", "cast"
    )


@pytest.mark.parametrize("targets", [["q_proj"], ["self_attn.q_proj", "absent"], r".*\.q_proj"])
def test_targets_are_ends_of_names_and_missing_ones_are_ignored(targets: Any) -> None:
    model = adapted("default", target_modules=targets)
    names = [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    assert [name.split(".")[-1] for name in names] == ["q_proj"] * model.config.num_hidden_layers, seam(
        "peft", "a list holds ends of names, and a string is a pattern of whole names"
    )
    assert missing_targets(peft.LoraConfig(target_modules=targets), tiny.model()) == (
        ["absent"] if "absent" in targets else []
    )


@pytest.mark.parametrize("targets", [["absent", "proj"], "q_proj", r".*\.absent"])
def test_without_any_of_its_targets_an_adapter_is_refused(targets: Any) -> None:
    listed = [targets] if isinstance(targets, str) else sorted(targets)
    assert missing_targets(peft.LoraConfig(target_modules=targets), tiny.model()) == listed
    with pytest.raises(ValueError, match="not found in the base model"):
        adapted("default", target_modules=targets)


def test_an_injected_adapter_leaves_its_configuration_on_the_model() -> None:
    model = tiny.model()
    assert active_inside(model) == []
    peft.inject_adapter_in_model(peft.LoraConfig(**LORA), model)
    assert active_inside(model) == ["default"], seam("peft", "inject_adapter_in_model keeps peft_config on the model")
    assert active_inside(adapted("default")) == []
