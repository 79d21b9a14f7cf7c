"""Fixtures of the tests in this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import tiny


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return tiny.saved_model(str(tmp_path / "model"))


@pytest.fixture
def store(tmp_path):
    return str(tmp_path / "refs")
