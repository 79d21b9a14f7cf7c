"""The `estimate` command: print memory per GPU, the simplest accelerate configuration that fits, and known pitfalls."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ..errors import InputError, collecting
from ..estimate.formulas import GIB, Training
from ..estimate.model_size import NO_MODEL, ModelSize
from ..estimate.search import MORE_GPUS, Candidate, EstimateReport, estimate_run
from ..recipe_registry import read_recipe
from ..text_table import format_table
from .adapters import as_new_adapter
from .arguments import adapter_config, read_for_another_machine

PARTS = ("weights", "gradients", "optimizer", "reference", "activations", "head", "sharding", "overhead", "total")


def run(argv: Sequence[str], prog: str) -> int:
    """Print the estimate of the run that `argv` describes."""
    parser = argparse.ArgumentParser(
        prog,
        allow_abbrev=False,
        description="Estimate the memory of a run from the model's configuration alone, before anything is loaded. "
        "Accepts all flags of `train` as well; they override the recipe.",
    )
    parser.add_argument("--config", metavar="RECIPE", help="a recipe: a YAML file, or the name of a shipped recipe")
    parser.add_argument("--accelerate_config", metavar="C", help="a YAML file, or the name of a shipped configuration")
    parser.add_argument("--gpu_memory", type=float, default=80, help="gigabytes of one GPU (default: 80)")
    parser.add_argument("--gpus", type=int, help="number of GPUs (default: that of the accelerate configuration)")
    parser.add_argument(
        "--completions", type=int, help="completions of a list, at most (default: max_completions; pairs without it)"
    )
    parser.add_argument("--model_config", metavar="FILE", help="the model's config.json, if the hub is not reachable")
    parser.add_argument(
        "--image_tokens",
        type=int,
        help="tokens of a row that stand for images (default: those of one image if the model takes images, one of "
        "1024 x 768 pixels if it takes any size; 0 for data without images)",
    )
    ours, flags = parser.parse_known_args(argv)
    flags = [*(["--config", ours.config] if ours.config else []), *flags]
    options = {"gpu_memory": ours.gpu_memory, "gpus": ours.gpus, "completions": ours.completions}
    options |= {"accelerate_config": ours.accelerate_config, "model_config": ours.model_config}
    options["image_tokens"] = ours.image_tokens
    print(describe(estimate_flags(flags, **options)))
    return 0


def estimate_flags(argv: Sequence[str], **options: Any) -> EstimateReport:
    """Estimate the run that flags of `train` describe.

    Args:
        argv: the flags, including `--config` if there is a recipe.
        **options: keyword arguments of `estimate_run`.
    """
    arguments = read_for_another_machine(argv)
    recipe = read_recipe(arguments.recipe_file) if arguments.recipe_file else None
    problems, report = [*arguments.problems], None
    with collecting(problems):
        model, peft_config = as_new_adapter(arguments.args, arguments.model, adapter_config(arguments.model))
        report = estimate_run(arguments.args, model, peft_config, recipe, **options)
    if problems or report is None:
        raise InputError(*[problem for problem in problems if not (arguments.is_partial and problem == NO_MODEL)])
    return report


def describe(report: EstimateReport) -> str:
    """Format the report as the command prints it."""
    size = report.size
    trained = "all trained" if size.trainable == size.parameters else f"{size.trainable / 1e6:.1f} million trained"
    header = ("GiB per GPU", *PARTS, f"fits {report.gpu_memory:g} GB")
    rows = [_row(candidate, report.gpu_memory) for candidate in report.candidates]
    return "\n".join(
        [
            f"{size.name}, {size.parameters / 1e9:.2f} billion parameters, {trained}; {report.losses}",
            *_of_images(size, report.training),
            _batch(report),
            "",
            format_table([header, *rows], "<" + ">" * len(PARTS)),
            "",
            _verdict(report),
            f"Expected loss at the first step: {report.expected_initial_loss}",
            *(f"Warning: {warning}" for warning in report.warnings),
        ]
    )


def _batch(report: EstimateReport) -> str:
    training, reference = report.training, report.training.reference
    noun = "pairs" if training.completions == 2 else "lists"
    batch = (
        f"{training.pairs} {noun} of up to {training.completions} x {training.tokens} tokens per GPU, "
        f"{report.pairs_per_step} {noun} per step"
    )
    corrected = f", corrected at rank {reference.correction_rank}" if reference.correction_rank else ""
    return f"{batch}; reference: {reference.kind}{corrected}"


def _of_images(size: ModelSize, training: Training) -> list[str]:
    """What the estimate of a vision-language model counts."""
    if not size.beside_text:
        return []
    outside = f"{size.beside_text / 1e9:.2f} billion of them are outside the language model (vision tower, projector)"
    if size.tower is None:
        return [f"{outside}: their weights are counted, the activations and tokens of images are not"]
    if not training.image_tokens:
        return [f"{outside}; no images (--image_tokens)"]
    patches = round(training.image_tokens * size.tower.patches_per_token)
    kept = "trained" if size.tower_trained else "frozen"
    return [
        f"{outside}, {kept}; images: {training.image_tokens} of a row's tokens, {patches} patches of the vision tower "
        "(--image_tokens)"
    ]


def _row(candidate: Candidate, gpu_memory: float) -> tuple[str, ...]:
    label = f"{candidate.name} x {candidate.strategy.processes}{' (chosen)' if candidate.chosen else ''}"
    values = (f"{getattr(candidate.memory, part) / GIB:.1f}" for part in PARTS)
    fits = "no"
    if candidate.memory.fits(gpu_memory):
        fits = "yes" + (f", but {_names(candidate)}" if candidate.pitfalls else "")
    host = f", {candidate.memory.host / GIB:.0f} GiB of host memory" if candidate.memory.host else ""
    return (label, *values, fits + host)


def _verdict(report: EstimateReport) -> str:
    card, simplest = f"{report.gpu_memory:g} GB", report.simplest
    if simplest:
        gpus = simplest.strategy.processes
        return f"Simplest that fits {card}: {simplest.name} on {gpus} GPU{'s' if gpus > 1 else ''}."
    if report.fitting:
        listed = "; ".join(f"{candidate.name}: {_names(candidate)}" for candidate in report.fitting)
        advice = "see docs/guides/memory.md, or set ignore_pitfalls"
        return f"Everything that fits {card} has a pitfall ({listed}); {advice}."
    gpus = report.gpus_that_fit()
    if gpus:
        return f"Nothing here fits {card}; zero3 does on {gpus} GPUs."
    return f"Nothing fits {card}, even on {MORE_GPUS[-1]} GPUs. Reduce max_length or train an adapter."


def _names(candidate: Candidate) -> str:
    return ", ".join(sorted(candidate.pitfalls))
