"""What `train` says before it starts: batch, steps, losses, what the reference is and costs; and known traps."""

from __future__ import annotations

import dataclasses
import math
import warnings
from pathlib import Path
from typing import Any

from ..estimate.formulas import GIB, Training, estimate
from ..estimate.from_args import context_from_args, training_from_args
from ..estimate.initial_loss import describe_initial_loss
from ..estimate.model_size import ModelSize, model_size_of
from ..estimate.pitfalls import find_pitfalls, warnings_of
from ..estimate.strategy import ParallelStrategy, detect_strategy
from ..recipe_registry import read_recipe


def announce(trainer: Any, model: Any, recipe: Path | None) -> None:
    """Print what will run, and warn of traps, on the first process.

    Args:
        trainer: ready to train.
        model: TRL's `ModelConfig`, as the flags gave it.
        recipe: the file of `--config`, whose header may say how many pairs a step takes.
    """
    if not trainer.accelerator.is_main_process:
        return
    args, engine = trainer.args, detect_strategy(trainer.accelerator)
    training = training_from_args(args, model, trainer.mixture, trainer.model.config)
    shape = _shape(trainer)
    print("\n".join(lines(trainer, training, engine, shape)), flush=True)
    if shape is not None:
        published = read_recipe(recipe).batch if recipe else None
        situation = context_from_args(args, trainer.mixture, training, engine, published)
        for trap in warnings_of(find_pitfalls(situation, args.ignore_pitfalls)):
            warnings.warn(trap, stacklevel=3)


def lines(trainer: Any, training: Training, engine: ParallelStrategy, shape: ModelSize | None) -> list[str]:
    """What will run, in a few lines."""
    args = trainer.args
    per_device, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    pairs = per_device * accumulation * args.world_size
    said = [
        f"Loss: {trainer.mixture.describe()}; at the first step {_first_loss(trainer, training)}",
        f"Reference: {trainer.describe_reference()}{_cost(training)}",
        f"Batch: {pairs} pairs per step ({per_device} per process x {accumulation} accumulated x "
        f"{args.world_size} processes)",
        f"Steps: {_steps(trainer)}",
    ]
    if shape is not None and not engine.on_cpu:
        total = estimate(shape, training, engine).total / GIB
        said.append(f"Memory: about {total:.0f} GiB per GPU under {engine.describe()}, estimated")
    return said


def _first_loss(trainer: Any, training: Training) -> str:
    expected = describe_initial_loss(trainer.mixture)
    exact = training.reference.kind in ("none", "adapter off", "loaded") and not getattr(
        trainer.args, "describes_reference", False
    )
    return expected if exact or not expected[0].isdigit() else f"near {expected}"


def _cost(training: Training) -> str:
    """What the description of a reference leaves out: that it takes no memory."""
    return ", no memory of its own" if training.reference.kind in ("stored", "adapter off") else ""


def _shape(trainer: Any) -> ModelSize | None:
    """The model's sizes, or None for architectures that are no causal language model by configuration."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    try:
        shape = model_size_of(model.config)
    except ValueError:
        return None
    # ZeRO-3 leaves an empty tensor where it has taken a weight away, with the size beside it.
    trained = (getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad)
    return dataclasses.replace(shape, trainable=sum(trained))


def _steps(trainer: Any) -> str:
    args = trainer.args
    if args.max_steps > 0:
        return f"{args.max_steps}"
    batches = math.ceil(len(trainer.train_dataset) / (args.per_device_train_batch_size * args.world_size))
    per_epoch = math.ceil(batches / args.gradient_accumulation_steps)
    return f"{math.ceil(per_epoch * args.num_train_epochs)} ({args.num_train_epochs:g} epochs of {per_epoch})"
