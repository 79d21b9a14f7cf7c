"""Fixtures of the tests in this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return tiny.saved_model(str(tmp_path / "model"))


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", load)
