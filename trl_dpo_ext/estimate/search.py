"""Search for the simplest accelerate configuration whose estimated memory fits, with the pitfalls of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, collecting
from ..recipe_registry import Recipe, accelerate_configs, find_accelerate
from .formulas import Memory, Training, estimate
from .from_args import completion_warnings, context_from_args, training_from_args, with_precision_from_args
from .initial_loss import describe_initial_loss
from .model_size import ModelSize, compute_model_size, read_model_config
from .pitfalls import find_pitfalls, format_warnings
from .strategy import GPUS_PER_MACHINE, ParallelStrategy, machines_for, read_strategy

# From the simplest to the slowest; the first that fits is reported as the simplest.
_ORDER = ("single_gpu", "multi_gpu", "zero1", "zero2", "fsdp2", "fsdp1", "fsdp1_lora", "zero3")
MORE_GPUS = (16, 32, 64, 128, 256)
"""Numbers of GPUs to try with ZeRO-3 if nothing fits on those that the run has."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An accelerate configuration with its estimated memory and its pitfalls."""

    name: str
    strategy: ParallelStrategy
    memory: Memory
    pitfalls: frozenset[str] = frozenset()
    """Names of the pitfalls of the run under this configuration, without `other_batch`."""
    chosen: bool = False
    """True for the configuration that the run names, on the command line or in its recipe."""


@dataclass(frozen=True, slots=True)
class EstimateReport:
    """The estimate of a run under every suitable accelerate configuration."""

    size: ModelSize
    training: Training
    candidates: tuple[Candidate, ...]
    """The chosen configuration first, if there is one, then all others, simplest first."""
    gpu_memory: float
    """Nominal gigabytes of one GPU."""
    warnings: tuple[str, ...]
    losses: str
    expected_initial_loss: str
    pairs_per_step: int

    @property
    def fitting(self) -> list[Candidate]:
        """The configurations that fit, simplest first."""
        fitting = [candidate for candidate in self.candidates if candidate.memory.fits(self.gpu_memory)]
        return sorted(fitting, key=lambda candidate: _complexity(candidate.name, candidate.strategy))

    @property
    def simplest(self) -> Candidate | None:
        """The simplest configuration that fits and has no pitfall that another one avoids."""
        unavoidable = frozenset.intersection(*(candidate.pitfalls for candidate in self.candidates))
        return next((candidate for candidate in self.fitting if candidate.pitfalls <= unavoidable), None)

    def gpus_that_fit(self) -> int | None:
        """Return the smallest of `MORE_GPUS` on which ZeRO-3 fits, or None."""
        half_precision = self.candidates[0].strategy.half_precision
        for gpus in MORE_GPUS:
            strategy = ParallelStrategy("zero3", gpus, machines_for(gpus), half_precision=half_precision)
            if estimate(self.size, self.training, strategy).fits(self.gpu_memory):
                return gpus
        return None


def _complexity(name: str, strategy: ParallelStrategy) -> tuple[int, int]:
    return (_ORDER.index(name) if name in _ORDER else len(_ORDER), strategy.processes)


def estimate_run(
    args: Any,
    model: Any,
    peft_config: Any = None,
    recipe: Recipe | None = None,
    *,
    gpu_memory: float = 80,
    gpus: int | None = None,
    completions: int | None = None,
    accelerate_config: str | None = None,
    model_config: str | None = None,
    image_tokens: int | None = None,
) -> EstimateReport:
    """Estimate a run from its parsed flags, without loading a model or a dataset.

    Args:
        args: a `DPOExtConfig`.
        model: TRL's `ModelConfig`.
        peft_config: the PEFT configuration of the adapter to train; None trains every parameter.
        recipe: the recipe of `--config`, for its accelerate configuration and its published number of pairs.
        gpu_memory: nominal gigabytes of one GPU.
        gpus: number of GPUs; None uses that of the accelerate configuration.
        completions: of a list of the data, at most; None for what `max_completions` keeps, or pairs.
        accelerate_config: a file, or the name of a shipped configuration; None uses the recipe's.
        model_config: the model's config.json; None looks the configuration up by the model's name.
        image_tokens: tokens of a row that stand for images; None for those of one image if the model takes images.

    Raises:
        InputError: a value is invalid, or the model's configuration cannot be read.
    """
    problems: list[str] = []
    with collecting(problems):
        _check_numbers(gpu_memory, gpus, completions, image_tokens)
    accelerate_config = accelerate_config or (recipe.accelerate if recipe else None)
    if recipe and accelerate_config and accelerate_config == recipe.accelerate:
        gpus = gpus or recipe.processes
    chosen = config = None
    with collecting(problems):
        chosen = _read_chosen(accelerate_config, args, gpus) if accelerate_config else None
    if not problems or not (model.model_name_or_path or model_config):  # a name may have to be looked up on the hub
        with collecting(problems):
            config = read_model_config(model.model_name_or_path, model_config, model.model_revision)
    if problems:
        raise InputError(*problems)
    mixture = args.loss_mixture()
    size = _compute_size(model.model_name_or_path, config, peft_config)
    if image_tokens is None:
        image_tokens = size.tower.image_tokens if size.tower else 0
    training = training_from_args(args, model, mixture, config, completions, image_tokens)
    strategies = _strategies(args, training, accelerate_config, chosen, gpus)
    published = recipe.pairs_per_step if recipe else None
    contexts = [context_from_args(args, mixture, training, strategy, published) for _, strategy in strategies]
    candidates = [
        Candidate(
            name,
            strategy,
            estimate(size, training, strategy),
            frozenset(find_pitfalls(context, [*args.ignore_pitfalls, "other_batch"])),
            chosen=strategy is chosen,
        )
        for (name, strategy), context in zip(strategies, contexts, strict=True)
    ]
    return EstimateReport(
        size,
        training,
        tuple(candidates),
        gpu_memory,
        (
            *completion_warnings(args, mixture, completions),
            *format_warnings(find_pitfalls(contexts[0], args.ignore_pitfalls)),
        ),
        mixture.describe(),
        describe_initial_loss(mixture),
        contexts[0].pairs_per_step,
    )


def _compute_size(name: str | None, config: Any, peft_config: Any) -> ModelSize:
    try:
        return compute_model_size(config, peft_config)
    except ValueError as error:
        raise InputError(f"{name} is not a causal language model: {str(error).splitlines()[0]}") from None


def _strategies(
    args: Any, training: Training, accelerate_config: str | None, chosen: ParallelStrategy | None, gpus: int | None
) -> list[tuple[str, ParallelStrategy]]:
    """Return the chosen strategy, if there is one, and all others that suit the run, with their names."""
    first = [(Path(accelerate_config).stem, chosen)] if accelerate_config and chosen else []
    suitable = _suitable_strategies(args, training, gpus or _default_gpus(chosen))
    return first + [(name, strategy) for strategy, name in suitable.items() if strategy != chosen]


def _check_numbers(gpu_memory: float, gpus: int | None, completions: int | None, image_tokens: int | None) -> None:
    problems = [f"--gpu_memory must be above 0; got {gpu_memory:g}."] if not gpu_memory > 0 else []
    problems += [f"--gpus must be 1 or more; got {gpus}."] if gpus is not None and gpus < 1 else []
    if completions is not None and completions < 2:
        problems.append(f"--completions must be 2 or more; got {completions}.")
    if image_tokens is not None and image_tokens < 0:
        problems.append(f"--image_tokens must be 0 (text alone) or more; got {image_tokens}.")
    if problems:
        raise InputError(*problems)


def _read_chosen(accelerate_config: str, args: Any, gpus: int | None) -> ParallelStrategy:
    strategy = with_precision_from_args(read_strategy(find_accelerate(accelerate_config)), args)
    return strategy.with_processes(gpus) if gpus else strategy


def _default_gpus(chosen: ParallelStrategy | None) -> int:
    return chosen.processes if chosen and chosen.processes > 1 else GPUS_PER_MACHINE


def _suitable_strategies(args: Any, training: Training, gpus: int) -> dict[ParallelStrategy, str]:
    """Return the strategies of the shipped configurations that suit the run, with their names, simplest first."""
    found: dict[ParallelStrategy, str] = {}
    for name, file in accelerate_configs().items():
        strategy = with_precision_from_args(read_strategy(file).with_processes(gpus), args)
        # FSDP1 flattens weights into one tensor, so they need a common dtype.
        flat = not training.quantized or (training.quantized.shardable and training.dtype == "bfloat16")
        wrong_fsdp1 = strategy.kind == "fsdp1" and (not flat or (name == "fsdp1_lora") != training.adapter)
        if not strategy.on_cpu and not wrong_fsdp1:
            found.setdefault(strategy, name)
    return dict(sorted(found.items(), key=lambda item: _complexity(item[1], item[0])))
