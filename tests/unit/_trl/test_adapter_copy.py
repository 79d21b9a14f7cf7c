"""An adapter is copied whole, whatever it is made of: for the reference, a moving reference, and another name."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch

from tests.support import tiny
from trl_dpo_ext import _trl
from trl_dpo_ext._trl.adapter_copy import copy_adapter
from trl_dpo_ext._trl.adapters import rename_frozen_name
from trl_dpo_ext.errors import InputError

QV: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}
LORA: dict[str, Any] = {**QV, "r": 2, "init_lora_weights": False}
CONFIGS = {
    "LoRA": peft.LoraConfig(**LORA),
    "embeddings": peft.LoraConfig(**{**LORA, "target_modules": ["q_proj", "embed_tokens"]}),
    "tokens": peft.LoraConfig(**LORA, trainable_token_indices=[5, 6]),
    "whole modules": peft.LoraConfig(**LORA, modules_to_save=["lm_head"]),
    "DoRA": peft.LoraConfig(**LORA, use_dora=True),
    "IA3": peft.IA3Config(**QV, feedforward_modules=[]),
    "VeRA": peft.VeraConfig(**QV, r=2),
    "OFT": peft.OFTConfig(**QV, r=2, oft_block_size=0),
}


def adapted(config: Any, name: str = "default") -> Any:
    model = peft.get_peft_model(tiny.model(), config, adapter_name=name)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    return model


def logits(model: Any, adapter: str) -> torch.Tensor:
    model.set_adapter(adapter)
    with torch.no_grad():
        return model.eval()(torch.arange(4, 24).view(2, 10)).logits


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_copy_computes_what_its_source_computes(config: Any) -> None:
    model = adapted(config)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    copy_adapter(model, "default", "ref", frozen=True)
    pairs = list(_trl.adapter_pairs(model, "default", "ref"))
    assert len(pairs) >= sum(before.values())
    assert all(copied is not None and torch.equal(mine, copied) for _, mine, copied in pairs)
    after = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert {name: after[name] for name in before} == before
    assert not any(required for name, required in after.items() if name not in before)
    assert torch.equal(logits(model, "ref"), logits(model, "default"))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_an_adapter_under_the_references_name_computes_the_same_under_another(config: Any) -> None:
    model = adapted(config, "ref")
    before = logits(model, "ref")
    trained = sum(parameter.requires_grad for parameter in model.parameters())
    rename_frozen_name(model)
    assert list(model.peft_config) == ["default"]
    assert sum(parameter.requires_grad for parameter in model.parameters()) == trained
    assert torch.equal(logits(model, "default"), before)


@pytest.mark.parametrize("make", [lambda model: copy_adapter(model, "default", "ref", frozen=True), _trl.SecondAdapter])
def test_a_copy_has_the_scale_and_the_dtype_of_its_source(make: Any) -> None:
    model = adapted(CONFIGS["LoRA"])
    for name, module in model.named_modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["default"] *= 3  # as `set_scale` does
        if "lora_" in name and isinstance(module, torch.nn.Linear):
            module.to(torch.bfloat16)
    make(model)
    copies = [copied for _, _, copied in _trl.adapter_pairs(model, "default", "ref")]
    assert {getattr(copied, "dtype", None) for copied in copies} == {torch.bfloat16}
    assert torch.equal(logits(model, "ref"), logits(model, "default"))


def test_a_copy_that_lacks_a_parameter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(CONFIGS["LoRA"])
    add = model.add_adapter
    narrower = peft.LoraConfig(**{**LORA, "target_modules": ["q_proj"]})
    monkeypatch.setattr(model, "add_adapter", lambda name, config: add(name, narrower))
    with pytest.raises(InputError, match=r"frozen copy of the adapter 'default', but PEFT made it without .*v_proj"):
        copy_adapter(model, "default", "ref", frozen=True)
