"""One run: train the reference by a loss, and measure it on the way and at the end.

All runs look the reference's log-probs up in one store: the first run fills it, and no later run computes them,
whatever its loss, beta, learning rate, or flipped labels. That is all a sweep needs: the same `ref_store` in each
configuration.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from counting import now
from transformers import PrinterCallback, TrainerCallback

from trl_dpo_ext import DPOExtConfig, DPOExtTrainer, get_loss

from .cells import Cell
from .language_model import loaded
from .measure import Judge
from .preferences import dataset_of, with_flips
from .records import Record
from .task import Task


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is the same in every run."""

    steps: int = 36
    pairs: int = 16
    """In a batch."""
    stops: int = 2
    """Measurements, the last one at the end."""
    samples: int = 1
    """Fresh continuations of each held-out prefix in a measurement."""
    rate_factor: float = 1.0
    """Of all learning rates of the grid, which are those of the model from scratch."""
    device: str = "cpu"


@dataclass
class Cost:
    """Token positions fed to the model, and processor time, of what is not measurement."""

    ref_positions: int = 0
    """Without gradients: the reference's."""
    positions: int = 0
    """With gradients: the policy's."""
    seconds: float = 0.0

    def watch(self, model: Any) -> Any:
        """Count what a model is fed."""

        def count(module: Any, _args: Any, keywords: dict[str, Any]) -> None:
            fed = (keywords.get("input_ids") if keywords.get("input_ids") is not None else _args[0]).numel()
            if torch.is_grad_enabled():
                self.positions += fed
            else:
                self.ref_positions += fed

        return model.base_model.register_forward_pre_hook(count, with_kwargs=True)


class _Stops(TrainerCallback):
    """Measures after some steps."""

    def __init__(self, steps: set[int], measure: Callable[[int], None]) -> None:
        self._steps, self._measure = steps, measure

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step in self._steps:
            self._measure(state.global_step)


def run(cell: Cell, task: Task, judge: Judge, plan: Plan) -> Record:
    """Train and measure one cell; returns its record."""
    cost, points = Cost(), []
    with tempfile.TemporaryDirectory() as folder:
        begun = now(plan.device)
        trainer = _trainer(cell, task, plan, Path(folder), cost)
        measuring = 0.0
        hooks = trainer.watched  # type: ignore[attr-defined]

        def measure(step: int) -> None:
            nonlocal measuring
            start = now(plan.device)
            counted = (cost.ref_positions, cost.positions)
            points.append({"step": step, **judge.measure(trainer.model, seed=1000 + cell.seed, samples=plan.samples)})
            cost.ref_positions, cost.positions = counted
            measuring += (now(plan.device) - start).processor

        stops = {round(plan.steps * (stop + 1) / plan.stops) for stop in range(plan.stops)}
        trainer.add_callback(_Stops(stops, measure))
        trainer.train()
        cost.seconds = (now(plan.device) - begun).processor - measuring
        for hook in hooks:
            hook.remove()
    return {
        **cell.record,
        "points": points,
        "ref_positions": cost.ref_positions,
        "positions": cost.positions,
        "seconds": round(cost.seconds, 2),
        "seconds_of_measuring": round(measuring, 2),
    }


def _trainer(cell: Cell, task: Task, plan: Plan, folder: Path, cost: Cost) -> DPOExtTrainer:
    variant = get_loss(cell.loss)
    pairs = with_flips(task.pairs, cell.flips, seed=cell.seed)
    policy, tokenizer = loaded(task.reference, plan.device)
    reference, options = _reference(cell, task, plan, folder, variant.needs_reference)
    hooks = [cost.watch(model) for model in (policy, reference) if model is not None]
    args = DPOExtConfig(
        str(folder),
        loss_type=cell.loss,
        **cell.hyper,
        **options,
        max_steps=plan.steps,
        per_device_train_batch_size=plan.pairs,
        learning_rate=cell.rate * plan.rate_factor,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=max(1, plan.steps // 10),
        seed=cell.seed,
        bf16=False,
        use_cpu=plan.device == "cpu",
        gradient_checkpointing=False,
        max_length=None,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        datasets.disable_progress_bars()
        trainer = DPOExtTrainer(
            policy, reference, args, train_dataset=dataset_of(pairs, variant), processing_class=tokenizer
        )
    trainer.remove_callback(PrinterCallback)
    trainer.watched = hooks  # type: ignore[attr-defined]
    return trainer


def _reference(cell: Cell, task: Task, plan: Plan, folder: Path, needed: bool) -> tuple[Any, dict[str, Any]]:
    """Return the reference model that the run holds, if any, and the options of where its log-probs come from."""
    if not needed:
        return None, {}
    if cell.reference == "live":
        return loaded(task.reference, plan.device)[0], {}
    store = task.folder / "store" if cell.reference == "shared store" else folder / "store"
    return None, {"precompute_ref_log_probs": True, "ref_store": str(store)}
