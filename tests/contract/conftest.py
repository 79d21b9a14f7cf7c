"""A trainer of TRL and a batch of its data, which contract tests look at."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from trl import DPOTrainer

from tests.support import runs, tiny


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return runs.trainer(tmp_path_factory.mktemp("host"), DPOTrainer, ref_model=tiny.model(seed=1))


@pytest.fixture
def batch(host: Any) -> dict[str, torch.Tensor]:
    return next(iter(host.get_train_dataloader()))
