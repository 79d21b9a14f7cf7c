"""For each alarm, a run that was made to fail; and runs that learn, at which none fires."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import tiny
from tests.support.watching import Scripted, fired, lines, swapped, undecided, watched
from trl_dpo_ext.watch.alarm_table import ALARMS

MANY = tiny.preferences(72)


def test_a_run_that_learns_raises_no_alarm(tmp_path: Path) -> None:
    run = watched(tmp_path, max_steps=12, eval_dataset=MANY, learning_rate=3e-3, eval_steps=4)
    values = lines(tmp_path, "metrics")
    assert [line["step"] for line in values] == [0, 4, 8, 12]
    assert values[0]["accuracy"] == 0.5
    assert values[-1]["accuracy"] > 0.7
    assert (fired(tmp_path), run.stopped_by) == ([], None)


def test_weights_that_are_not_finite_end_the_run_and_are_not_saved(tmp_path: Path) -> None:
    run = watched(tmp_path, max_steps=20, learning_rate=1e25, save_strategy="steps", save_steps=1, eval_steps=50)
    assert fired(tmp_path) == ["nan"]
    assert run.state.global_step < 20
    assert run.stopped_by["name"] == "nan"
    assert "is not finite (learning rate 8.5e+24, largest margin before " in run.stopped_by["message"]
    assert not run.has_usable_weights
    for folder in tmp_path.glob("checkpoint-*"):
        saved = torch.load(folder / "optimizer.pt", weights_only=False)["state"]
        assert all(torch.isfinite(state["exp_avg"]).all() for state in saved.values()), folder


def test_no_gradient(tmp_path: Path) -> None:
    data = tiny.preferences(8).add_column("w", [0.0] * 8)
    watched(tmp_path, train_dataset=data, eval_dataset=None, weight_column="w", eval_strategy="no", max_steps=4)
    assert fired(tmp_path) == ["no_gradient"]
    assert lines(tmp_path, "alarms")[0]["step"] == 3


def test_grad_spike(tmp_path: Path) -> None:
    data = tiny.preferences(40).add_column("w", [1.0] * 30 + [100.0] + [1.0] * 9)
    settings = {
        "weight_column": "w",
        "eval_dataset": None,
        "eval_strategy": "no",
        "per_device_train_batch_size": 1,
        "max_steps": 40,
    }
    watched(tmp_path, train_dataset=data, learning_rate=1e-5, train_sampling_strategy="sequential", **settings)
    (line,) = lines(tmp_path, "alarms")
    assert (line["name"], line["step"], line["stopped"]) == ("grad_spike", 31, False)


def test_first_loss(tmp_path: Path) -> None:
    watched(tmp_path, ref_model=tiny.model(seed=1), learning_rate=1e-5)
    (line,) = lines(tmp_path, "alarms")
    assert (line["name"], line["step"]) == ("first_loss", 1)
    assert line["start"] == pytest.approx(0.6931, abs=1e-4)
    assert abs(line["value"] - line["start"]) > 0.01


def test_chosen_falls(tmp_path: Path) -> None:
    # What is trained is the opposite of what is evaluated.
    watched(tmp_path, train_dataset=swapped(tiny.preferences(8)), max_steps=8, learning_rate=3e-2)
    assert fired(tmp_path) == ["chosen_falls"]


def test_rejected_collapses(tmp_path: Path) -> None:
    # The evaluated answers, both of them, are such as training rejects.
    answers = tiny.preferences(8)["rejected"]
    data = tiny.preferences(8).remove_columns("chosen").add_column("chosen", [*answers[1:], answers[0]])
    settings = {"learning_rate": 3e-2, "ignore_alarms": ["chosen_falls"], "beta": 0.01, "eval_steps": 4}
    watched(tmp_path, eval_dataset=data, max_steps=16, **settings)
    assert fired(tmp_path) == ["rejected_collapses"]


def test_accuracy_saturated_and_what_the_length_alone_would_give(tmp_path: Path) -> None:
    watched(tmp_path, max_steps=14, eval_dataset=MANY)
    (line,) = lines(tmp_path, "alarms")
    assert (line["name"], line["value"]) == ("accuracy_saturated", 1.0)
    assert line["message"].endswith("The chosen answer is the shorter one in 75 % of these pairs.")


def test_accuracy_stuck(tmp_path: Path) -> None:
    watched(tmp_path, train_dataset=undecided(16), eval_dataset=undecided(80), max_steps=8, learning_rate=1e-3)
    (line,) = lines(tmp_path, "alarms")
    assert (line["name"], line["step"]) == ("accuracy_stuck", 6)


SAMPLED: dict[str, tuple[dict[str, float], dict[str, float]]] = {
    "kl_high": ({"watch/kl_per_token": 0.0}, {"watch/kl_per_token": 1.0}),
    "length_runaway": ({"watch/length": 20.0}, {"watch/length": 60.0}),
    "eos_lost": ({"watch/eos_rate": 1.0}, {"watch/eos_rate": 0.5}),
    "repetition": ({"watch/repetition": 0.0}, {"watch/repetition": 0.4}),
}


def test_alarms_of_sampled_answers(tmp_path: Path) -> None:
    start, later = ({name: value for each in SAMPLED.values() for name, value in each[when].items()} for when in (0, 1))
    watched(tmp_path, Scripted([start, start, later]), max_steps=6, learning_rate=1e-4)
    assert [(line["name"], line["step"]) for line in lines(tmp_path, "alarms")] == [(name, 6) for name in SAMPLED]


def test_every_alarm_has_a_run_that_fires_it() -> None:
    source = Path(__file__).read_text()
    assert all(f'"{name}"' in source for name in ALARMS)


def test_training_metrics_stand_in_where_nothing_is_evaluated(tmp_path: Path) -> None:
    """The drift is measured against the reference on the same pairs, so that batches of other pairs are no drift."""
    run = watched(tmp_path, train_dataset=MANY, eval_strategy="no", max_steps=20, learning_rate=1e-2)
    values = lines(tmp_path, "metrics")
    assert [line["step"] for line in values] == list(range(2, 21, 2))
    assert not any(line["evaluated"] for line in values)
    assert values[-1]["pairs"] == 40
    logged: list[dict[str, Any]] = [line for line in run.state.log_history if "watch/chosen_logp_per_token" in line]
    assert len(logged) == 10
    steps = [line for line in run.state.log_history if "loss" in line]
    margins = [line["rewards/margins"] for line in steps[-10:]]
    assert values[-1]["margin"] == pytest.approx(sum(margins) / 10, rel=1e-4)
    assert [line["step"] for line in steps] == list(range(1, 21)), "watching took a line of training away"


def test_drift_in_training_is_that_of_the_same_pairs(tmp_path: Path) -> None:
    settings = {"train_dataset": swapped(MANY), "eval_strategy": "no", "max_steps": 20, "learning_rate": 1e-7}
    watched(tmp_path, watch_thresholds={"chosen_falls": 0.001}, **settings)
    assert fired(tmp_path) == []  # although batches differ by much more


@pytest.mark.parametrize(("loss", "ranks"), [("simpo", True), ("sft", False), (["trl:sft"], False)])
def test_pairs_are_ranked_by_the_rewards_of_the_losses_if_any_prefers(tmp_path: Path, loss: Any, ranks: bool) -> None:
    watched(tmp_path, loss_type=loss, max_steps=4, eval_dataset=MANY, learning_rate=1e-5)
    values = lines(tmp_path, "metrics")
    assert [line["step"] for line in values] == [0, 2, 4]
    assert all(("accuracy" in line) is ("margin" in line) is ranks for line in values)
    assert ranks or not fired(tmp_path)
