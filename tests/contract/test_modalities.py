"""What `_trl/modalities.py` relies on: transformers finds the language model of every vision-language model."""

from __future__ import annotations

import pytest
import torch

from tests.support import tiny, vision_families
from tests.support.seams import moved
from trl_dpo_ext import _trl


def seam(fact: str) -> str:
    return moved("transformers", fact, "_trl/modalities.py")


def test_a_language_model_has_nothing_outside() -> None:
    assert _trl.takes_text_alone(tiny.model().config), seam("get_text_config()")
    assert _trl.outside_language_model(tiny.model()) == {}


@pytest.mark.parametrize("name", vision_families.FAMILIES)
def test_the_language_model_is_the_decoder(name: str) -> None:
    model = vision_families.model(name)
    assert not _trl.takes_text_alone(model.config), seam("get_text_config()")
    outside = _trl.outside_language_model(model)
    parts = [*outside.values(), model.get_decoder(), model.get_output_embeddings()]
    found = {id(p) for part in parts for p in part.parameters()}
    assert found == {id(p) for p in model.parameters()}, seam("get_decoder()")
    assert all(model.get_submodule(key) is part for key, part in outside.items())
    language = model.get_decoder()
    assert len([m for m in language.modules() if isinstance(m, torch.nn.Linear)]) == 14, seam("get_decoder()")
