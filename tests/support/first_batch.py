"""The first batch of a run, without the training loop around it."""

from __future__ import annotations

from typing import Any

import torch


def first_batch(run: Any, rows: int = 4) -> torch.Tensor:
    """The loss of a trainer's first rows in training mode, with the checks of the first step."""
    run.model.train()
    return run.compute_loss(run.model, run.host.batch_of([run.train_dataset[index] for index in range(rows)]))
