"""Seam: checkpoints hold the weights of some models under other names than those of their parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import MixtralConfig, MixtralForCausalLM

from tests.support import tiny, vision_families
from tests.support.seams import moved
from trl_dpo_ext import _trl


def mixtral(seed: int) -> Any:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = MixtralConfig(vocab_size=32, num_hidden_layers=1, num_local_experts=2, **sizes)
    return MixtralForCausalLM(config)


def family(name: str) -> Any:
    return lambda seed: vision_families.model(name, seed=seed)


MODELS = {name: family(name) for name in vision_families.FAMILIES} | {
    "mixtral": mixtral,
    "llama": lambda seed: tiny.model(seed),
}


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_loaded_by_the_names_that_they_are_saved_by(tmp_path, name: str) -> None:
    saved, model = MODELS[name](1), MODELS[name](2)
    saved.save_pretrained(tmp_path)
    weights = load_file(str(tmp_path / "model.safetensors"))
    with _trl.loading_saved_names(model, tmp_path):
        found = model.load_state_dict(weights, False)
    expected = saved.state_dict()
    assert not found.unexpected_keys
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())


def test_other_names_are_why(tmp_path) -> None:
    model = vision_families.model("llava")
    model.save_pretrained(tmp_path)
    names = {*load_file(str(tmp_path / "model.safetensors"))}
    assert not names & {*model.state_dict()}, moved(
        "transformers", "Llava is saved under names that its parameters do not have", "_trl/saved_names.py"
    )


def test_weights_of_two_dtypes_and_in_several_files_are_loaded_as_they_were_saved(tmp_path, monkeypatch) -> None:
    saved, model = (vision_families.model("llava", seed=seed) for seed in (1, 2))
    for each in (saved, model):
        each.model.language_model.to(torch.bfloat16)
        each.lm_head.to(torch.bfloat16)
    assert model.dtype == torch.float32 or next(model.model.vision_tower.parameters()).dtype != model.dtype
    saved.save_pretrained(tmp_path, max_shard_size="8KB")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    loads = []
    load = type(model).from_pretrained
    monkeypatch.setattr(type(model), "from_pretrained", lambda *args, **keys: loads.append(args) or load(*args, **keys))
    with _trl.loading_saved_names(model, tmp_path):
        for file in files:
            model.load_state_dict(load_file(str(file)), strict=False)
    expected = saved.state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())
    assert len(loads) == 1
