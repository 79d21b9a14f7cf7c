"""A trainer of TRL's and one of ours, on the same small models, for tests that feed both with the same log-probs."""

from __future__ import annotations

from typing import Any

import pytest
from trl import DPOTrainer

from tests.support import runs, tiny


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return runs.trainer(tmp_path_factory.mktemp("host"), DPOTrainer, ref_model=tiny.model(seed=1))


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return runs.trainer(tmp_path_factory.mktemp("ours"), ref_model=tiny.model(seed=1))
