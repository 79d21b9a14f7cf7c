"""What watching a run leans on: when transformers asks for gradient norms, hides losses, saves, and calls back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import TrainerCallback
from trl import DPOTrainer

from tests.support import runs, tiny
from tests.support.seams import moved

WATCH = "watch/mixin.py"


def seam(fact: str) -> str:
    return moved("transformers", fact, WATCH)


class Noted(DPOTrainer):
    """Notes gradient norms and steps, and can make a loss NaN."""

    events: ClassVar[list[str]] = []
    norms: ClassVar[list[float]] = []

    def training_step(self, *args: Any, **keywords: Any) -> Any:
        self.events.append("batch")
        return super().training_step(*args, **keywords)

    def _get_grad_norm(self, *args: Any, **keywords: Any) -> Any:
        norm = super()._get_grad_norm(*args, **keywords)
        self.events.append("norm")
        self.norms.append(torch.as_tensor(norm).item())
        return norm


class Order(TrainerCallback):
    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        Noted.events.append("before the step")

    def on_step_end(self, *_: Any, **__: Any) -> None:
        Noted.events.append("end")


def test_the_gradient_norm_is_asked_for_once_for_each_optimizer_step_before_it(tmp_path: Path) -> None:
    for noted in (Noted.events, Noted.norms):
        noted.clear()
    settings = {"ref_model": tiny.model(), "max_steps": 2, "per_device_train_batch_size": 2}
    run = runs.trained(tmp_path, Noted, **settings, gradient_accumulation_steps=2, callbacks=[Order()])
    step = ["batch", "batch", "norm", "before the step", "end"]
    assert Noted.events == step * 2, seam("_get_grad_norm is called once per optimizer step, right before it")
    logged = [line["grad_norm"] for line in run.state.log_history if "grad_norm" in line]
    assert Noted.norms == logged, seam("_get_grad_norm returns the norm that is logged")


def test_a_loss_that_is_not_finite_is_hidden_from_the_log(tmp_path: Path) -> None:
    class Broken(DPOTrainer):
        def compute_loss(self, *args: Any, **keywords: Any) -> Any:
            return super().compute_loss(*args, **keywords) * float("nan")

    run = runs.trained(tmp_path, Broken, ref_model=tiny.model(), max_steps=2)
    losses = [line["loss"] for line in run.state.log_history if "loss" in line]
    assert losses == [0.0, 0.0], seam("logging_nan_inf_filter puts the mean of earlier losses in place of NaN")
    assert not torch.isfinite(next(run.model.parameters())).all(), seam("the optimizer steps with NaN gradients")


def test_a_callback_that_is_added_later_decides_last_whether_a_checkpoint_is_saved(tmp_path: Path) -> None:
    class Refuses(TrainerCallback):
        asked: ClassVar[list[bool]] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.asked.append(control.should_save)
            control.should_save = False

    runs.trained(
        tmp_path, DPOTrainer, ref_model=tiny.model(), save_strategy="steps", save_steps=1, callbacks=[Refuses()]
    )
    assert Refuses.asked == [True] * 3, seam("transformers decides to save before on_step_end of other callbacks")
    assert not list(tmp_path.glob("checkpoint-*")), seam("nothing is saved if a callback sets should_save to False")


def test_logging_takes_back_that_a_line_of_training_is_due(tmp_path: Path) -> None:
    class Logs(TrainerCallback):
        asked: ClassVar[list[tuple[bool, bool]]] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            before = control.should_log
            run.log({"mine": 1.0})
            self.asked.append((before, control.should_log))

    run = runs.trainer(tmp_path, DPOTrainer, ref_model=tiny.model(), callbacks=[Logs()])
    run.train()
    assert Logs.asked == [(True, False)] * 3, moved("transformers", "log sets should_log to False", "watch/callback.py")


def test_a_run_that_a_callback_stops_at_an_evaluation_saves_and_takes_no_further_step(tmp_path: Path) -> None:
    class Stops(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = control.should_save = True

    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 50, "max_steps": 6}
    run = runs.trained(
        tmp_path, DPOTrainer, ref_model=tiny.model(), eval_dataset=tiny.preferences(4), callbacks=[Stops()], **settings
    )
    assert run.state.global_step == 2, moved("transformers", "should_training_stop ends the run", "watch/callback.py")
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
