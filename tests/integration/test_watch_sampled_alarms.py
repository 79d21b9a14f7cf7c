"""Alarms of sampled answers, at runs that train a model to fail and sample it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests.support import runs, tiny
from tests.support.watching import fired, lines

pytestmark = pytest.mark.slow
WORDS = tiny.SENTENCE.split()
SHORT, LONG = " yes", " " + " ".join(WORDS[:24])
SAMPLED = {"watch_prompts": 4, "watch_max_new_tokens": 40, "eval_strategy": "steps", "eval_steps": 10, "max_steps": 60}


def pairs(chosen: str, rejected: str) -> Dataset:
    rows = [{"prompt": f"{word} say", "chosen": chosen, "rejected": rejected} for word in WORDS[:16]]
    return Dataset.from_list(rows)


def imitated(folder: Path, answer: str) -> Any:
    """A model that gives this answer."""
    settings = {"max_steps": 80, "learning_rate": 2e-2, "loss_type": "sft", "per_device_train_batch_size": 16}
    run = runs.trainer(folder, train_dataset=pairs(answer, " no"), **settings)
    run.train()
    return run.model


def watched(folder: Path, model: Any, data: Dataset, **settings: Any) -> list[dict[str, Any]]:
    """Train a model on data, and return what watching has measured."""
    settings = {"learning_rate": 1e-2, "per_device_train_batch_size": 16, **SAMPLED, **settings}
    runs.trainer(folder, model=model, train_dataset=data, eval_dataset=data.select(range(4)), **settings).train()
    return lines(folder, "metrics")


@pytest.mark.parametrize(("start", "chosen"), [(SHORT, LONG), (LONG, SHORT)], ids=["longer", "shorter"])
def test_answers_that_follow_the_length_of_the_chosen_side_run_away(tmp_path: Path, start: str, chosen: str) -> None:
    model = imitated(tmp_path / "start", start)
    values = watched(tmp_path / "run", model, pairs(chosen, start), loss_type="sft")
    lengths = [line["watch/length"] for line in values]
    assert abs(lengths[0] - len(start.split())) <= 1
    assert abs(lengths[-1] - len(chosen.split())) <= 1
    assert "length_runaway" in fired(tmp_path / "run")


def test_a_side_without_an_end_and_answers_that_repeat_are_noticed(tmp_path: Path) -> None:
    # All that the chosen side has more of is a word again and again; truncation takes its end.
    model, endless = imitated(tmp_path / "start", SHORT), " yes" * 30
    values = watched(tmp_path / "run", model, pairs(endless, SHORT), max_length=20, loss_type=["sigmoid", "sft"])
    assert values[0]["watch/eos_rate"] == 1.0
    assert values[-1]["watch/eos_rate"] == 0.0
    assert {"length_runaway", "eos_lost", "repetition", "kl_high"} <= {*fired(tmp_path / "run")}


def test_a_run_that_goes_on_with_what_the_model_does_raises_none_of_them(tmp_path: Path) -> None:
    model = imitated(tmp_path / "start", SHORT)
    watched(tmp_path / "run", model, pairs(SHORT, LONG), loss_type="sft", learning_rate=1e-3)
    assert fired(tmp_path / "run") == []
