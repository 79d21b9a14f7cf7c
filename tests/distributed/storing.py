"""What the launched tests of the store run in every process: functions of a job's folder and its settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import launched
import runs
import tiny

STORED = {"precompute_ref_log_probs": True, "gradient_checkpointing": False, "max_steps": 2}


def train(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train from the store at `ref_store` below the job's folder, filling it before; "{rank}" in it is the process."""
    ref_store = settings.pop("ref_store", "refs").format(rank=os.environ.get("RANK", "0"))
    fill_only = settings.pop("fill_only", False)
    settings = {**STORED, "ref_store": str(folder / ref_store), **settings}
    if settings.pop("in_memory", False):
        run = runs.trainer(
            folder / "out", model=str(folder / "model"), train_dataset=tiny.preferences(7), use_cpu=False, **settings
        )
    else:
        run = launched.trainer(folder, settings)
    report = vars(run._stored.report).copy()
    if fill_only:
        run.model_wrapped = run.accelerator.prepare(run.model)  # as training would, so that the engine can be told
    else:
        run.train()
    return {"report": report}
