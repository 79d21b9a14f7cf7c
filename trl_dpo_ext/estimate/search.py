"""The `estimate` command: memory per GPU, the smallest accelerate configuration that fits, and known traps."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..recipe_registry import accelerate_configs, find_accelerate, find_config, read_recipe
from .formulas import GIB, Memory, Training, estimate
from .from_args import context_from_args, strategy_for, training_from_args
from .initial_loss import describe_initial_loss
from .model_size import ModelSize, model_size_of, read_config
from .pitfalls import RunContext, find_pitfalls, warnings_of
from .strategy import ParallelStrategy, read_strategy

PARTS = ("weights", "gradients", "optimizer", "reference", "activations", "head", "sharding", "overhead", "total")
# From the simplest to the slowest; the first that fits is the smallest.
ORDER = ("single_gpu", "multi_gpu", "zero1", "zero2", "fsdp2", "fsdp1", "fsdp1_lora", "zero3")
MORE_GPUS = (16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Row:
    """One accelerate configuration and what it leaves on each GPU."""

    name: str
    engine: ParallelStrategy
    memory: Memory
    traps: frozenset[str] = frozenset()
    """Names of the traps that the run would walk into there, but for the number of pairs per step."""
    own: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command found."""

    shape: ModelSize
    training: Training
    rows: tuple[Row, ...]
    """The run's own configuration first, where it has one, then all others from the simplest on."""
    gpu_memory: float
    traps: tuple[str, ...]
    losses: str
    expected_initial_loss: str
    batch: int

    @property
    def fitting(self) -> list[Row]:
        """The configurations that fit, from the simplest on."""
        fitting = [row for row in self.rows if row.memory.fits(self.gpu_memory)]
        return sorted(fitting, key=lambda row: _simplicity(row.name, row.engine))

    @property
    def smallest(self) -> Row | None:
        """The simplest configuration that fits and walks into no trap which another one avoids."""
        everywhere = frozenset.intersection(*(row.traps for row in self.rows))
        return next((row for row in self.fitting if row.traps <= everywhere), None)


def _simplicity(name: str, engine: ParallelStrategy) -> tuple[int, int]:
    return (ORDER.index(name) if name in ORDER else len(ORDER), engine.processes)


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
    from ..cli.train import adapter_config, parse_anywhere

    gpus: int | None = given.get("gpus")
    _check_numbers(gpu_memory, gpus)
    args, model = parse_anywhere(argv)
    recipe = read_recipe(find_config(argv[argv.index("--config") + 1])) if "--config" in argv else None
    chosen = accelerate_config or (recipe.accelerate if recipe else None) or None
    own = strategy_for(read_strategy(find_accelerate(chosen)), args) if chosen else None
    gpus = gpus or (recipe.processes if recipe and chosen == recipe.accelerate else None)
    own = own.over(gpus) if own and gpus else own
    config = read_config(model.model_name_or_path, given.get("model_config"), model.model_revision)
    mixture = args.loss_mixture()
    training = training_from_args(args, model, mixture, config)
    try:
        shape = model_size_of(config, adapter_config(model))
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{model.model_name_or_path} is not a causal language model: {reason}") from None

    def situation(engine: ParallelStrategy) -> RunContext:
        return context_from_args(args, mixture, training, engine, recipe.batch if recipe else None)

    def row(name: str, engine: ParallelStrategy) -> Row:
        walks_into = find_pitfalls(situation(engine), [*args.ignore_pitfalls, "other_batch"])
        return Row(name, engine, estimate(shape, training, engine), frozenset(walks_into), own=engine is own)

    others = _others(training, args, gpus or (own.processes if own and own.processes > 1 else 8))
    rows = [row(Path(chosen).stem, own)] if own and chosen else []
    rows += [row(name, engine) for engine, name in others.items() if engine != own]
    first = situation(rows[0].engine)
    return Plan(
        shape,
        training,
        tuple(rows),
        gpu_memory,
        tuple(warnings_of(find_pitfalls(first, args.ignore_pitfalls))),
        mixture.describe(),
        describe_initial_loss(mixture),
        first.batch,
    )


def _check_numbers(gpu_memory: float, gpus: int | None) -> None:
    problems = [f"--gpu_memory must be above 0; got {gpu_memory:g}."] if not gpu_memory > 0 else []
    problems += [f"--gpus must be 1 or more; got {gpus}."] if gpus is not None and gpus < 1 else []
    if problems:
        raise InputError(*problems)


def _others(training: Training, args: Any, gpus: int) -> dict[ParallelStrategy, str]:
    """The engines of the shipped configurations that suit the run, with their names, from the simplest on."""
    found: dict[ParallelStrategy, str] = {}
    for name, file in accelerate_configs().items():
        engine = strategy_for(read_strategy(file).over(gpus), args)
        # FSDP1 flattens weights together, which have to be of one type.
        flat = not training.quantized or (training.quantized.shardable and training.dtype == "bfloat16")
        wrong_fsdp1 = engine.kind == "fsdp1" and (not flat or (name == "fsdp1_lora") != training.adapter)
        if not engine.on_cpu and not wrong_fsdp1:
            found.setdefault(engine, name)
    return dict(sorted(found.items(), key=lambda item: _simplicity(item[1], item[0])))


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
        fits = "no"
        if row.memory.fits(found.gpu_memory):
            fits = "yes" + (f", but {', '.join(sorted(row.traps))}" if row.traps else "")
        host = f", {row.memory.host / GIB:.0f} GiB of host memory" if row.memory.host else ""
        label = f"{row.name} x {row.engine.processes}{' (chosen)' if row.own else ''}"
        lines.append(f"{label:28}{values}  {fits}{host}")
    lines += ["", _verdict(found), f"Expected loss at the first step: {found.expected_initial_loss}"]
    lines += [f"Warning: {trap}" for trap in found.traps]
    return "\n".join(lines)


def _verdict(found: Plan) -> str:
    smallest = found.smallest
    if smallest:
        gpus = smallest.engine.processes
        return f"Smallest that fits {found.gpu_memory:g} GB: {smallest.name} on {gpus} GPU{'s' if gpus > 1 else ''}."
    if found.fitting:
        trapped = "; ".join(f"{row.name}: {', '.join(sorted(row.traps))}" for row in found.fitting)
        return f"What fits {found.gpu_memory:g} GB walks into a trap ({trapped}); see the README, or ignore_pitfalls."
    for gpus in MORE_GPUS:
        engine = ParallelStrategy("zero3", gpus, machines=-(-gpus // 8), half=found.rows[0].engine.half)
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
