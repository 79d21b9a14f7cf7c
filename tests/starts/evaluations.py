"""Evaluations of one run in batches of any size, without the times in their metrics."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import runs, tiny
from tests.support.tolerances import rounding

from .listing import Kind

evaluation = Kind("Evaluation")
TIMED = ("runtime", "per_second", "preparation_time")


# Of seed 3 some tokens are the likeliest ones, so that the token accuracy is not zero.
MODELS = {"model": 3, "ref_model": 1}


def trainer(folder: Any, **settings: Any) -> Any:
    models = {name: tiny.model(seed) for name, seed in MODELS.items()}
    return runs.trainer(folder, **{**models, "eval_dataset": tiny.preferences(7), **settings})


def untimed(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not any(word in name for word in TIMED)}


def evaluated(run: Any, *args: Any, size: int = 2, **keywords: Any) -> dict[str, float]:
    run.args.per_device_eval_batch_size = size
    return untimed(run.evaluate(*args, **keywords))


def renamed(metrics: dict[str, float], prefix: str) -> dict[str, float]:
    return {name.replace("eval_", f"{prefix}_"): value for name, value in metrics.items() if name != "epoch"}


def close(metrics: dict[str, float]) -> Any:
    """Equal but for the rounding of sums over batches of other sizes: of log-probs to -60, and of them times beta."""
    return pytest.approx(metrics, rel=1e-5, abs=rounding(0.1 * 60))
