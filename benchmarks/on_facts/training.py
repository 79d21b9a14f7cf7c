"""One run: train the start on lists in one way until it has been fed so many positions, and measure it on the way."""

from __future__ import annotations

import random
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from counting import now
from on_sentiment.language_model import loaded
from on_sentiment.records import Record
from on_sentiment.training import Cost
from transformers import PrinterCallback, TrainerCallback

from trl_dpo_ext import DPOExtConfig, DPOExtTrainer

from .cells import Cell
from .measure import answers, logps, orders, own_answers
from .task import Row, Task


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is the same in every run."""

    budget: int = 24_000
    """Positions fed to the policy, with gradients."""
    stops: int = 3
    """Measurements: at the budget, at half of it, at a quarter, and so on."""
    lists: int = 16
    """In a batch."""
    beta: float = 0.1
    rate: float = 5e-4

    @property
    def budgets(self) -> list[int]:
        """Positions at which to measure, in ascending order."""
        return [self.budget // 2**place for place in reversed(range(self.stops))]


class _Measuring(TrainerCallback):
    """Measures whenever the next number of positions has been fed, and ends the run at the last one."""

    def __init__(self, budgets: Sequence[int], cost: Cost, measure: Any) -> None:
        self._budgets, self._cost, self._measure = [*budgets], cost, measure

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._cost.positions >= self._budgets[0]:
            self._measure(self._budgets.pop(0), state.global_step)
            control.should_training_stop = not self._budgets


def run(cell: Cell, task: Task, plan: Plan) -> Record:
    """Train and measure one cell; returns its record."""
    cost, points = Cost(), []
    policy, tokenizer = loaded(task.start, "cpu")
    theirs = logps(policy.eval(), tokenizer, task.held_out)

    def measure(budget: int, step: int) -> None:
        counted = (cost.ref_positions, cost.positions)
        policy.eval()
        ours = logps(policy, tokenizer, task.held_out)
        rewards = [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(ours, theirs, strict=True)]
        best = [found[row.scores.index(max(row.scores))] for row, found in zip(task.held_out, rewards, strict=True)]
        found = orders(task.held_out, rewards) | {"best_drift": sum(best) / len(best)}
        if budget == plan.budget:
            found |= own_answers(tokenizer, task.held_out, answers(policy, tokenizer, task.held_out))
        policy.train()
        cost.ref_positions, cost.positions = counted
        points.append({"budget": budget, "positions": cost.positions, "step": step, **found})

    with tempfile.TemporaryDirectory() as folder:
        begun = now("cpu")
        trainer = _trainer(cell, task, plan, folder, policy, tokenizer)
        hook = cost.watch(policy)
        trainer.add_callback(_Measuring(plan.budgets, cost, measure))
        trainer.train()
        hook.remove()
        seconds = (now("cpu") - begun).processor
    return {
        "key": cell.key,
        "way": cell.way.name,
        "seed": cell.seed,
        "points": points,
        "seconds": round(seconds, 1),
    }


def dataset_of(rows: Sequence[Row], cell: Cell) -> datasets.Dataset:
    """Return the rows as lists; for `random_pair`, as pairs of the best answer and one of the others."""
    if cell.way.name != "random_pair":
        return datasets.Dataset.from_list(
            [{"prompt": row.prompt, "completions": row.completions, "scores": row.scores} for row in rows]
        )
    chance, found = random.Random(cell.seed), []
    for row in rows:
        best = row.scores.index(max(row.scores))
        other = chance.choice([place for place in range(len(row.scores)) if place != best])
        found.append({"prompt": row.prompt, "chosen": row.completions[best], "rejected": row.completions[other]})
    return datasets.Dataset.from_list(found)


def _trainer(cell: Cell, task: Task, plan: Plan, folder: str, policy: Any, tokenizer: Any) -> DPOExtTrainer:
    args = DPOExtConfig(
        str(Path(folder) / "out"),
        **cell.way.options,
        beta=plan.beta,
        share_prompt=True,
        precompute_ref_log_probs=True,
        ref_store=str(Path(folder) / "store"),
        max_steps=plan.budget,  # the budget ends the run
        per_device_train_batch_size=plan.lists,
        learning_rate=plan.rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=3,
        seed=cell.seed,
        bf16=False,
        use_cpu=True,
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
            policy, None, args, train_dataset=dataset_of(task.train, cell), processing_class=tokenizer
        )
    trainer.remove_callback(PrinterCallback)
    return trainer
