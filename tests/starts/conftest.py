"""Trainers that the tests of one file evaluate, and what tests of images share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlavaForConditionalGeneration

from tests.features import vision
from tests.support import pictures
from trl_dpo_ext.errors import InputError

from .evaluations import trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trainer that is evaluated in many ways and never trained."""
    return trainer(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trainer whose losses are replaced."""
    return trainer(tmp_path_factory.mktemp("other"))


@pytest.fixture(scope="module")
def vision_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a small Llava."""
    return vision.saved_model(str(tmp_path_factory.mktemp("images") / "model"))


@pytest.fixture
def refused_images(tmp_path: Path, vision_model: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """The problems of a trainer on images that must not load a model."""
    monkeypatch.setattr(LlavaForConditionalGeneration, "from_pretrained", None)

    def problems(**settings: Any) -> list[str]:
        with pytest.raises(InputError) as caught:
            pictures.trainer(tmp_path / "out", vision_model, **settings)
        return caught.value.problems

    return problems
