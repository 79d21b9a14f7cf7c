"""The summary that `train` logs before it starts: losses, reference, batch, steps and memory; and known pitfalls."""

from __future__ import annotations

import dataclasses
import logging
import math
import warnings
from pathlib import Path
from typing import Any

from datasets import IterableDataset

from ..data.streams import COUNTED
from ..estimate.formulas import GIB, Training, estimate
from ..estimate.from_args import context_from_args, training_from_args
from ..estimate.initial_loss import describe_initial_loss
from ..estimate.model_size import ModelSize, compute_model_size
from ..estimate.pitfalls import find_pitfalls, format_warnings
from ..estimate.strategy import ParallelStrategy, detect_strategy
from ..recipe_registry import read_recipe
from .adapters import as_new_adapter, describe_policy

logger = logging.getLogger(__name__)


def print_run_summary(trainer: Any, model: Any, recipe_file: Path | None) -> None:
    """Log what will run and warn about pitfalls, on the main process.

    Args:
        trainer: the trainer, ready to train.
        model: TRL's `ModelConfig`, as parsed from the flags.
        recipe_file: the file of `--config`, whose header may state the number of pairs per step.
    """
    if not trainer.accelerator.is_main_process:
        return
    args, strategy = trainer.args, detect_strategy(trainer.accelerator)
    adapted = as_new_adapter(args, model, None)[0] if not model.use_peft else model
    training = training_from_args(args, adapted, trainer.mixture, trainer.model.config)
    size = _model_size(trainer)
    policy = describe_policy(trainer, model)
    lines = [f"Policy: {policy}"] if policy else []
    logger.info("\n".join([*lines, *summary_lines(trainer, training, strategy, size)]))
    if size is None:
        return
    published = read_recipe(recipe_file).pairs_per_step if recipe_file else None
    context = context_from_args(args, trainer.mixture, training, strategy, published)
    for message in format_warnings(find_pitfalls(context, args.ignore_pitfalls)):
        warnings.warn(message, stacklevel=2)


def summary_lines(trainer: Any, training: Training, strategy: ParallelStrategy, size: ModelSize | None) -> list[str]:
    """Describe the run, one fact per line."""
    args = trainer.args
    per_device, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    pairs = per_device * accumulation * args.world_size
    # A reference that takes no memory is not visible in its description.
    free = ", no additional memory" if training.reference.kind in ("stored", "adapter off") else ""
    lines = [
        f"Loss: {trainer.mixture.describe()}; at the first step {_initial_loss(trainer, training)}",
        f"Reference: {trainer.describe_reference()}{free}",
        f"Batch: {pairs} {'lists' if trainer.of_lists else 'pairs'} per step ({per_device} per process x "
        f"{accumulation} accumulated x {args.world_size} processes)",
        f"Steps: {_steps(trainer)}",
    ]
    if isinstance(trainer.train_dataset, IterableDataset):
        lines.append(
            "Data: streamed, so that rows are checked as they come; those that max_length drops or cuts are counted "
            f"in the first {COUNTED}"
        )
    if size is not None and not strategy.on_cpu:
        total = estimate(size, training, strategy).total / GIB
        lines.append(f"Memory: about {total:.0f} GiB per GPU with {strategy.describe()} (estimated)")
    return lines


def _initial_loss(trainer: Any, training: Training) -> str:
    expected = describe_initial_loss(trainer.mixture)
    if trainer.of_lists and trainer.args.list_reduction == "sum" and expected[0].isdigit():
        return "depends on the number of pairs of each list"
    is_start = training.reference.kind != "stored" and not trainer.args.describes_reference
    return expected if is_start or not expected[0].isdigit() else f"near {expected}"


def _model_size(trainer: Any) -> ModelSize | None:
    """Return the model's size, or None if transformers has no causal language model for its configuration."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    try:
        size = compute_model_size(model.config)
    except ValueError:
        return None
    # ZeRO-3 replaces each sharded weight by an empty tensor and keeps its size in ds_numel.
    trained = (getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad)
    return dataclasses.replace(size, trainable=sum(trained))


def _steps(trainer: Any) -> str:
    args = trainer.args
    if args.max_steps > 0:
        return f"{args.max_steps}"
    batches = math.ceil(len(trainer.train_dataset) / (args.per_device_train_batch_size * args.world_size))
    per_epoch = math.ceil(batches / args.gradient_accumulation_steps)
    return f"{math.ceil(per_epoch * args.num_train_epochs)} ({args.num_train_epochs:g} epochs of {per_epoch})"
