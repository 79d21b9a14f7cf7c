"""The `estimate` command: memory per GPU, the smallest accelerate configuration that fits, and known traps."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cookbook import accelerate_configs, find_accelerate, find_config, read_recipe
from ..errors import InputError
from ..first_step import describe_first_loss
from .engine import Engine, read_engine
from .formulas import GIB, Memory, Training, estimate
from .settings import engine_for, situation_of, training_of
from .shape import ModelShape, read_config, shape_of
from .traps import find_traps

PARTS = ("weights", "gradients", "optimiser", "reference", "activations", "head", "sharding", "overhead", "total")
# From the simplest to the slowest; the first that fits is the smallest.
ORDER = ("single_gpu", "multi_gpu", "zero1", "zero2", "fsdp2", "fsdp1", "fsdp1_lora", "zero3")
MORE_GPUS = (16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Row:
    """One accelerate configuration and what it leaves on each GPU."""

    name: str
    engine: Engine
    memory: Memory
    own: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command found."""

    shape: ModelShape
    training: Training
    rows: tuple[Row, ...]
    """The run's own configuration first, where it has one, then all others from the simplest on."""
    gpu_memory: float
    traps: tuple[str, ...]
    losses: str
    first_loss: str
    batch: int

    @property
    def smallest(self) -> Row | None:
        """The simplest configuration that fits."""
        rows = sorted(self.rows, key=_simplicity)
        return next((row for row in rows if row.memory.fits(self.gpu_memory)), None)


def _simplicity(row: Row) -> tuple[int, int]:
    return (ORDER.index(row.name) if row.name in ORDER else len(ORDER), row.engine.processes)


def plan(argv: Sequence[str], gpu_memory: float = 80, accelerate_config: str | None = None, **given: Any) -> Plan:
    """Estimate the run that `argv` describes, in the flags of `train`.

    Args:
        argv: flags of `train`, `--config` among them.
        gpu_memory: nominal gigabytes of one GPU.
        accelerate_config: a file, or the name of a shipped one; None takes the recipe's own.
        **given: `gpus` (how many there are; None takes the configuration's) and `model_config` (a config.json).

    Raises:
        InputError: a flag is wrong, or the model's configuration is not at hand.
    """
    from ..train import adapter_config, parse_anywhere

    args, model = parse_anywhere(argv)
    recipe = read_recipe(find_config(argv[argv.index("--config") + 1])) if "--config" in argv else None
    chosen = accelerate_config or (recipe.accelerate if recipe else None) or None
    config = read_config(model.model_name_or_path, given.get("model_config"), model.model_revision)
    mixture = args.loss_mixture()
    training = training_of(args, model, mixture, config)
    try:
        shape = shape_of(config, adapter_config(model))
    except ValueError as error:
        raise InputError([f"{model.model_name_or_path} is not a causal language model: {error}"]) from None
    own = engine_for(read_engine(find_accelerate(chosen)), args) if chosen else None
    wanted = given.get("gpus") or (recipe.processes if recipe and chosen == recipe.accelerate else None)
    own = own.over(wanted) if own and wanted else own
    gpus = wanted or (own.processes if own and own.processes > 1 else 8)
    rows = [Row(Path(chosen).stem, own, estimate(shape, training, own), own=True)] if own and chosen else []
    rows += [r for r in _others(shape, training, args, gpus) if not own or r.engine != own]
    engine = own or rows[0].engine
    situation = situation_of(args, mixture, training, engine, recipe.batch if recipe else None)
    return Plan(
        shape,
        training,
        tuple(rows),
        gpu_memory,
        tuple(find_traps(situation, args.ignore_traps)),
        mixture.describe(),
        describe_first_loss(mixture),
        situation.batch,
    )


def _others(shape: ModelShape, training: Training, args: Any, gpus: int) -> list[Row]:
    rows: dict[Engine, Row] = {}
    for name, file in accelerate_configs().items():
        engine = engine_for(read_engine(file).over(gpus), args)
        # FSDP1 flattens weights together, which have to be of one type.
        flat = not training.quantised or (training.quantised.shardable and training.dtype == "bfloat16")
        wrong_fsdp1 = engine.kind == "fsdp1" and (not flat or (name == "fsdp1_lora") != training.adapter)
        if not engine.on_cpu and not wrong_fsdp1:
            rows.setdefault(engine, Row(name, engine, estimate(shape, training, engine)))
    return sorted(rows.values(), key=_simplicity)


def describe(found: Plan) -> str:
    """The plan as the command prints it."""
    shape, training = found.shape, found.training
    trained = "all trained" if shape.trainable == shape.parameters else f"{shape.trainable / 1e6:.1f} million trained"
    lines = [
        f"{shape.name}, {shape.parameters / 1e9:.2f} billion parameters, {trained}; {found.losses}",
        f"{training.pairs} pairs of up to 2 x {training.tokens} tokens per GPU, {found.batch} pairs per step; "
        f"reference: {training.reference.kind}",
        "",
        f"{'GiB per GPU':28}" + "".join(f"{part:>12}" for part in PARTS) + f"  fits {found.gpu_memory:g} GB",
    ]
    for row in found.rows:
        values = "".join(f"{getattr(row.memory, part) / GIB:12.1f}" for part in PARTS)
        fits = "yes" if row.memory.fits(found.gpu_memory) else "no"
        host = f", {row.memory.host / GIB:.0f} GiB of host memory" if row.memory.host else ""
        label = f"{row.name} x {row.engine.processes}{' (chosen)' if row.own else ''}"
        lines.append(f"{label:28}{values}  {fits}{host}")
    lines += ["", _verdict(found), f"Expected loss at the first step: {found.first_loss}"]
    lines += [f"Warning: {trap}" for trap in found.traps]
    return "\n".join(lines)


def _verdict(found: Plan) -> str:
    smallest = found.smallest
    if smallest:
        return f"Smallest that fits {found.gpu_memory:g} GB: {smallest.name} on {smallest.engine.processes} GPUs."
    for gpus in MORE_GPUS:
        engine = Engine("zero3", gpus, machines=-(-gpus // 8), half=found.rows[0].engine.half)
        if estimate(found.shape, found.training, engine).fits(found.gpu_memory):
            return f"Nothing here fits {found.gpu_memory:g} GB; zero3 does on {gpus} GPUs."
    return (
        f"Nothing fits {found.gpu_memory:g} GB, even on {MORE_GPUS[-1]} GPUs. Shorten max_length or train an adapter."
    )


def run(argv: Sequence[str], prog: str) -> None:
    """Print what the flags ask for."""
    parser = argparse.ArgumentParser(
        prog,
        allow_abbrev=False,
        description="Estimate the memory of a run from the model's configuration alone, before anything is loaded. "
        "Takes the flags of `train` too, which win over those of the recipe.",
    )
    parser.add_argument("--config", metavar="RECIPE", help="a recipe: a YAML file, or the name of a shipped one")
    parser.add_argument("--accelerate_config", metavar="C", help="a YAML file, or the name of a shipped one")
    parser.add_argument("--gpu_memory", type=float, default=80, help="gigabytes of one GPU (default: 80)")
    parser.add_argument("--gpus", type=int, help="how many GPUs there are (default: those of the accelerate config)")
    parser.add_argument("--model_config", metavar="FILE", help="the model's config.json, where the hub is out of reach")
    ours, rest = parser.parse_known_args([part for a in argv for part in _split(a)])
    config = ["--config", ours.config] if ours.config else []
    found = plan(
        [*config, *rest], ours.gpu_memory, ours.accelerate_config, gpus=ours.gpus, model_config=ours.model_config
    )
    print(describe(found))


def _split(argument: str) -> list[str]:
    return argument.split("=", 1) if argument.startswith("--config=") else [argument]
