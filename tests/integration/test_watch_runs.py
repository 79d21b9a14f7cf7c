"""Watching leaves a run as it is; alarms end runs; resumed runs go on as if they had never been interrupted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, TrainerCallback

from tests.support import runs, tiny
from tests.support.watching import EVERY_TWO, Scripted, fired, lines, swapped, watched
from trl_dpo_ext.errors import AlarmStop

FALLS = {"learning_rate": 3e-2, "stop_on": ["chosen_falls"], "max_steps": 12}
"""With data that is the opposite of what is evaluated, `chosen_falls` fires at step 4."""
OPPOSITE = swapped(tiny.preferences(8))
NOISY: dict[str, Any] = {"disable_dropout": False, "max_steps": 7, "gradient_accumulation_steps": 2}


class Drawing(Scripted):
    """Draws random numbers of all kinds, and leaves the model in evaluation, as no sampler may."""

    run: Any = None

    def sample(self, step: int) -> Any:
        torch.manual_seed(step)
        if self.run is not None:
            self.run.model.eval()
        return super().sample(step)


def noisy_model() -> Any:
    return tiny.model(attention_dropout=0.3)


@pytest.mark.parametrize(
    "settings",
    [
        {"eval_strategy": "steps", "eval_steps": 2},
        {"eval_strategy": "no"},
        {"eval_strategy": "steps", "eval_steps": 3, "watch_steps": 2, "logging_steps": 3},
        {"eval_strategy": "epoch", "watch_on_start": False, "eval_on_start": True},
    ],
)
def test_weights_and_logs_are_equal_with_and_without_watching(tmp_path: Path, settings: dict[str, Any]) -> None:
    given = {**NOISY, "per_device_train_batch_size": 2, "eval_dataset": tiny.preferences(6), **settings}
    plain_settings = {name: value for name, value in given.items() if not name.startswith("watch")}
    plain = runs.trained(tmp_path / "plain", model=noisy_model(), **plain_settings)
    run = runs.trainer(tmp_path / "watched", model=noisy_model(), watch=True, **given)
    sampler = Drawing([{"watch/length": 1.0}])
    sampler.run, run.new_sampler = run, lambda: sampler
    run.train()
    assert sampler.steps, "nothing was sampled"
    before, after = runs.weights(plain), runs.weights(run)
    assert all(torch.equal(before[name], after[name]) for name in before)
    watched_lines = [line for line in runs.logs(run) if not any(name.startswith("watch/") for name in line)]
    extra = [line for line in watched_lines if line["step"] == 0 and not given.get("eval_on_start")]
    assert [line for line in watched_lines if line not in extra] == runs.logs(plain)


def test_the_policy_trains_on_after_samples_as_before(tmp_path: Path) -> None:
    modes: list[bool] = []

    class AtSteps(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            modes.append(run.model.training)

    settings = {"watch_steps": 2, "max_steps": 5, "callbacks": [AtSteps()]}
    run = runs.trainer(tmp_path, **settings)
    sampler = Drawing([{"watch/length": 1.0}])
    sampler.run, run.new_sampler = run, lambda: sampler
    run.model.train()
    run.train()
    assert sampler.steps == [0, 2, 4]
    assert modes == [True] * 5


def test_an_alarm_of_stop_on_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    run = watched(tmp_path, train_dataset=OPPOSITE, save_strategy="steps", save_steps=100, **FALLS)
    (line,) = lines(tmp_path, "alarms")
    assert (line["name"], line["fired"], line["stopped"], line["step"]) == ("chosen_falls", True, True, 4)
    assert list(line) == ["step", "epoch", "name", "value", "start", "threshold", "message", "fired", "stopped"]
    assert line["value"] < line["start"] - line["threshold"]
    assert run.state.global_step == 4
    assert run.stopped_by == {"name": "chosen_falls", "step": 4, "message": line["message"]}
    assert [folder.name for folder in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]


def test_without_stop_on_the_run_goes_on_and_without_saving_nothing_is_saved(tmp_path: Path) -> None:
    run = watched(tmp_path / "warned", train_dataset=OPPOSITE, **{**FALLS, "stop_on": []})
    assert (run.state.global_step, run.stopped_by) == (12, None)
    assert fired(tmp_path / "warned") == ["chosen_falls"]
    run = watched(tmp_path / "unsaved", train_dataset=OPPOSITE, **FALLS)
    assert run.state.global_step == 4
    assert not list((tmp_path / "unsaved").glob("checkpoint-*"))


def test_the_best_model_is_loaded_after_an_alarm(tmp_path: Path) -> None:
    saved = {"save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": True}
    run = watched(tmp_path, train_dataset=OPPOSITE, metric_for_best_model="eval_loss", **saved, **FALLS)
    assert Path(run.state.best_model_checkpoint).name == "checkpoint-2"
    other = runs.trainer(tmp_path / "other", train_dataset=OPPOSITE, learning_rate=3e-2, max_steps=12)
    other._load_from_checkpoint(run.state.best_model_checkpoint)
    best, now = runs.weights(other), runs.weights(run)
    assert all(torch.equal(best[name], now[name]) for name in best)


def test_an_interrupted_run_goes_on_with_its_starts_its_patience_and_its_files(tmp_path: Path) -> None:
    settings = {"train_dataset": OPPOSITE, "save_strategy": "steps", "save_steps": 2, "watch_patience": 3}
    settings |= {"learning_rate": 3e-2, "max_steps": 8}
    series = [{"watch/length": float(length)} for length in (10, 11, 12, 13, 14)]
    whole = watched(tmp_path / "whole", Scripted(series), **settings)
    # A run that was killed after step 6: its files have lines that the checkpoint of step 4 does not know.
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "whole", killed)
    for name in ("checkpoint-6", "checkpoint-8"):
        shutil.rmtree(killed / name)
    run = runs.trainer(
        killed, watch=True, eval_strategy="steps", eval_steps=2, eval_dataset=tiny.preferences(8), **settings
    )
    sampler = Scripted(series[3:])
    run.new_sampler = lambda: sampler
    run.train(resume_from_checkpoint=str(killed / "checkpoint-4"))
    assert sampler.steps == [6, 8], "the start is measured once"
    for name in ("metrics", "alarms"):
        assert lines(killed, name) == lines(tmp_path / "whole", name)
    assert [line["step"] for line in lines(killed, "alarms")] == [6]
    assert run.watch.state_dict() == whole.watch.state_dict()
    before, after = runs.weights(whole), runs.weights(run)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_new_run_in_the_same_folder_begins_its_files_anew(tmp_path: Path) -> None:
    for _ in range(2):
        watched(tmp_path, max_steps=2)
    assert [line["step"] for line in lines(tmp_path, "metrics")] == [0, 2]


def test_an_alarm_stops_the_run_again_unless_it_is_ignored(tmp_path: Path) -> None:
    settings = {"train_dataset": OPPOSITE, "save_strategy": "steps", "save_steps": 100, **FALLS}
    watched(tmp_path, **settings)
    data = {"eval_dataset": tiny.preferences(8), **EVERY_TWO}
    again = runs.trainer(tmp_path, **data, **settings)
    with pytest.raises(AlarmStop, match=r"chosen_falls stopped this run at step 4 .* --ignore_alarms chosen_falls"):
        again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 0
    on = runs.trainer(tmp_path, **data, **settings, ignore_alarms=["chosen_falls"])
    on.train(resume_from_checkpoint=True)
    assert (on.state.global_step, on.stopped_by) == (12, None)


def test_a_checkpoint_of_a_run_that_was_not_watched(tmp_path: Path) -> None:
    saved = {"save_strategy": "steps", "save_steps": 2}
    runs.trained(tmp_path, max_steps=4, eval_steps=2, **saved)
    run = runs.trainer(tmp_path, **EVERY_TWO, eval_dataset=tiny.preferences(8),
                       max_steps=8, **saved)  # fmt: skip
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert [line["step"] for line in lines(tmp_path, "metrics")] == [4, 6, 8]


def test_whichever_stops_first_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    early = EarlyStoppingCallback(early_stopping_patience=1)
    saved = {"save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": True, "disable_tqdm": False}
    settings = {"train_dataset": OPPOSITE, "metric_for_best_model": "eval_loss", "callbacks": [early], **saved, **FALLS}
    run = watched(tmp_path / "early", **settings)
    assert (run.state.global_step, run.stopped_by) == (4, None)
    assert fired(tmp_path / "early") == ["chosen_falls"]
    assert not any(line["stopped"] for line in lines(tmp_path / "early", "alarms"))
    assert "was stopped at step 4 of 12 by EarlyStoppingCallback, not by an alarm" in capsys.readouterr().out
    run = watched(tmp_path / "alarm", **{**settings, "watch_patience": 1})
    assert (run.state.global_step, run.stopped_by["name"]) == (2, "chosen_falls")
    assert "EarlyStoppingCallback" not in capsys.readouterr().out


@pytest.mark.parametrize(("metric", "watched_pairs"), [(None, 4), ("eval_b_loss", 6)])
def test_of_several_evaluation_sets_one_is_watched(tmp_path: Path, metric: str | None, watched_pairs: int) -> None:
    data: dict[str, Dataset] = {"a": tiny.preferences(4), "b": tiny.preferences(6)}
    watched(tmp_path, eval_dataset=data, metric_for_best_model=metric, max_steps=4)
    assert [(line["step"], line["pairs"]) for line in lines(tmp_path, "metrics")] == [
        (step, watched_pairs) for step in (0, 2, 4)
    ]


def test_samples_come_at_their_steps_and_pairs_at_evaluations(tmp_path: Path) -> None:
    sampler = Scripted([{"watch/length": 1.0}])
    watched(tmp_path, sampler, eval_steps=4, watch_steps=3, max_steps=9)
    assert sampler.steps == [0, 3, 6, 9]
    found = [(line["step"], "pairs" in line, "watch/length" in line) for line in lines(tmp_path, "metrics")]
    assert found == [
        (0, True, True), (3, False, True), (4, True, False), (6, False, True), (8, True, False), (9, False, True),
        (9, True, False),
    ]  # fmt: skip


def test_samples_do_not_take_the_place_of_an_evaluation_at_the_same_step(tmp_path: Path) -> None:
    sampler = Scripted([{"watch/length": 1.0}])
    watched(tmp_path, sampler, eval_steps=4, watch_steps=2, max_steps=8)
    found = [line["step"] for line in lines(tmp_path, "metrics") if "pairs" in line]
    assert found == [0, 4, 8]


def test_evaluating_a_trained_run_is_not_watched(tmp_path: Path) -> None:
    run = watched(tmp_path, max_steps=2)
    written = lines(tmp_path, "metrics")
    run.evaluate()
    assert lines(tmp_path, "metrics") == written


def test_what_is_printed_stands_in_lines_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sampler = Scripted([{"watch/length": 1.0, "watch/kl_per_token": 0.9}])
    watched(tmp_path, sampler, max_steps=4, disable_tqdm=False, learning_rate=1e-3)
    printed = capsys.readouterr().out.splitlines()
    assert "== step 0 of 4, evaluation (8 pairs, 1 samples)" in printed
    assert "   1  say yes                               start  answer 1 <eos>" in printed
    assert f"{' ' * 44}now    answer 3 <eos>" in printed
    assert any(line.startswith("  ALARM kl_high at step 2: ") for line in printed)
