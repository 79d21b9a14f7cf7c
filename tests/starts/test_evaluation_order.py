"""What runs before, between and beside evaluations changes neither their numbers nor those of training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from tests.support import runs, tiny
from trl_dpo_ext import InputError

from .evaluations import close, evaluated, evaluation, renamed, trainer, untimed

pytestmark = pytest.mark.usefixtures("no_loader_is_left_open")


class Stopping(TrainerCallback):
    def on_prediction_step(self, *_: Any, **__: Any) -> None:
        raise KeyboardInterrupt


def interrupt(run: Any) -> None:
    run.add_callback(Stopping)
    with pytest.raises(KeyboardInterrupt):
        run.evaluate()
    run.remove_callback(Stopping)


def loss_by_hand(run: Any) -> None:
    batch = next(iter(run.get_train_dataloader()))  # left before its end
    run.model.eval()
    with torch.no_grad():
        run.compute_loss(run.model, run._prepare_inputs(batch))


@pytest.mark.parametrize(
    "before",
    [
        evaluation.case(
            "`predict`, then evaluate", "no metric of the former", lambda run: run.predict(tiny.preferences(2))
        ),
        evaluation.case("interrupt an evaluation, then evaluate", "no metric of the former", interrupt),
        evaluation.case(
            "evaluate other data, then evaluate",
            "no metric of the former",
            lambda run: run.evaluate(tiny.preferences(2)),
        ),
        evaluation.case("compute a loss in evaluation mode, then evaluate", "no metric of the former", loss_by_hand),
    ],
)
def test_nothing_of_what_ran_before_is_in_an_evaluation(run: Any, before: Any) -> None:
    expected = evaluated(run)
    before(run)
    assert evaluated(run) == expected
    before(run)
    assert untimed(run.predict(run.eval_dataset).metrics) == renamed(expected, "test")


def test_a_loss_after_an_unfinished_evaluation_counts_all_pairs(run: Any) -> None:
    """The last batch of a loader that was left says that it is padded."""
    batch = run._prepare_inputs(next(iter(run.get_train_dataloader())))
    run.model.eval()
    expected = run.compute_loss(run.model, dict(batch))
    run.args.per_device_eval_batch_size = 8
    interrupt(run)  # in a batch of 7 of 8 rows
    for remainder in (1, 3):
        run.accelerator.gradient_state.active_dataloader.remainder = remainder
        assert run.accelerator.gradient_state.end_of_dataloader
        assert torch.equal(run.compute_loss(run.model, dict(batch)), expected)


class Between(TrainerCallback):
    """Predicts after each step, before its line is logged."""

    run: Any

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.run.predict(self.run.eval_dataset)


@evaluation("evaluate between two log lines, or predict in a callback", "the log lines of training steps do not change")
def test_lines_of_training_are_the_same_with_and_without_evaluations(tmp_path) -> None:
    def lines(name: str, callback: Between | None = None, **settings: Any) -> list[dict[str, Any]]:
        run = trainer(tmp_path / name, logging_steps=2, max_steps=2, gradient_checkpointing=False, **settings)
        if callback:
            callback.run = run
            run.add_callback(callback)
        run.train()
        return [line for line in runs.logs(run) if "grad_norm" in line]

    plain = lines("plain")
    assert ["rewards/margins" in line for line in plain] == [True]
    assert lines("steps", eval_strategy="steps", eval_steps=1, eval_on_start=True) == plain
    assert lines("callback", Between()) == plain


@evaluation(
    "evaluate other data with `dataloader_persistent_workers`", "other data is evaluated, not the former loader's"
)
def test_persistent_workers_do_not_evaluate_the_former_data(run: Any, monkeypatch) -> None:
    expected, other, third = evaluated(run), evaluated(run, tiny.preferences(2)), evaluated(run, tiny.preferences(5))
    monkeypatch.setattr(run.args, "dataloader_persistent_workers", True)
    monkeypatch.setattr(run.args, "dataloader_num_workers", 1)
    assert evaluated(run) == expected
    assert evaluated(run, tiny.preferences(2)) == other
    assert run.get_eval_dataloader() is run.get_eval_dataloader()
    monkeypatch.setattr(run, "eval_dataset", run.eval_dataset.select(range(5)))
    assert evaluated(run) == third
    assert run.args.dataloader_persistent_workers


@evaluation("`dataloader_drop_last` with fewer rows than a batch", "error: nothing would be evaluated")
def test_an_evaluation_without_a_batch_is_refused(tmp_path) -> None:
    settings = {"dataloader_drop_last": True, "per_device_eval_batch_size": 8}
    with pytest.raises(InputError, match="eval_dataset has 7 rows, fewer than the 8 of one batch"):
        trainer(tmp_path, **settings)
    with pytest.raises(InputError, match=r"eval_dataset\['a'\] has 7 rows"):
        trainer(tmp_path, eval_dataset={"a": tiny.preferences(7), "b": tiny.preferences(8)}, **settings)
    whole = trainer(tmp_path, **{**settings, "per_device_eval_batch_size": 3})
    metrics = whole.evaluate()
    assert metrics["eval_samples_per_second"] * metrics["eval_runtime"] == pytest.approx(6, rel=0.02)  # of 7 rows
    assert untimed(metrics) == close(evaluated(whole, whole.eval_dataset.select(range(6)), size=3))
