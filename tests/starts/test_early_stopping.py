"""`EarlyStoppingCallback` is silent about evaluation datasets that it does not watch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import EarlyStoppingCallback
from trl import DPOTrainer

from tests.support import runs, tiny
from trl_dpo_ext import DPOExtTrainer
from trl_dpo_ext.data.evaluation_sets import is_unwatched

from .listing import Kind

stopping = Kind("Early stopping")

SETS = {"easy": tiny.preferences(3), "easy_2": tiny.preferences(2), "hard": tiny.preferences(4)}
EVERY_STEP = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}


def said(folder: Path, kind: type, caplog: pytest.LogCaptureFixture, **settings: Any) -> list[str]:
    run = runs.trainer(
        folder,
        kind,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=5)],
        ref_model=tiny.model(),
        load_best_model_at_end=True,
        max_steps=2,
        **{"eval_dataset": SETS, "metric_for_best_model": "eval_easy_loss", **EVERY_STEP, **settings},
    )
    logger = logging.getLogger("transformers.trainer_callback")
    caplog.clear()
    logger.addHandler(caplog.handler)
    try:
        run.train()
    finally:
        logger.removeHandler(caplog.handler)
    return [record.getMessage() for record in caplog.records if "early stopping required" in record.getMessage()]


@stopping(
    "`EarlyStoppingCallback` with several evaluation datasets",
    "no warning about datasets that it does not watch; TRL warns of each at every evaluation",
)
def test_datasets_that_are_not_watched_are_no_reason_to_warn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert said(tmp_path / "ours", DPOExtTrainer, caplog) == []
    assert said(tmp_path / "trl", DPOTrainer, caplog)  # transformers still warns


def test_a_metric_that_is_missing_is_still_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = runs.trainer(tmp_path, eval_dataset=SETS, metric_for_best_model="eval_easy_loss", **EVERY_STEP)
    run.add_callback(EarlyStoppingCallback())
    logger = logging.getLogger("transformers.trainer_callback")
    logger.addHandler(caplog.handler)
    try:
        run.evaluate(tiny.preferences(2), metric_key_prefix="test")
    finally:
        logger.removeHandler(caplog.handler)
    assert "did not find eval_easy_loss" in caplog.text


@pytest.mark.parametrize(
    ("metric", "prefix", "unwatched"),
    [
        ("eval_easy_loss", "eval_easy", False),
        ("easy_loss", "eval_hard", True),
        ("easy_2_loss", "eval_easy", True),
        ("easy_2_loss", "eval_easy_2", False),
        ("easy_loss", "eval", False),
        ("easy_loss", "test_hard", False),
        (None, "eval_hard", False),
        ("loss", "eval_hard", False),
    ],
)
def test_which_datasets_are_not_watched(metric: str | None, prefix: str, unwatched: bool) -> None:
    assert is_unwatched(metric, SETS, prefix) == unwatched
    assert not is_unwatched(metric, SETS["easy"], prefix)
