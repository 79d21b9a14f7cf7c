"""Trainers that the tests of one file evaluate."""

from __future__ import annotations

from typing import Any

import pytest

from .evaluations import trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trainer that is evaluated in many ways and never trained."""
    return trainer(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trainer whose losses are replaced."""
    return trainer(tmp_path_factory.mktemp("other"))
