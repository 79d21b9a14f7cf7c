"""What TRL and transformers refuse when they have loaded a model or begin to train, to be said before."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from .adapters import adapts_head
from .batch import column_names
from .compiled import is_compiled, without_compilation
from .initializations import initialization_problems
from .models import is_peft_model

OPTIMIZER_PACKAGES = {
    "galore": "galore_torch",
    "apollo": "apollo_torch",
    "lomo": "lomo_optim",
    "adalomo": "lomo_optim",
    "grokadamw": "grokadamw",
    "schedule_free": "schedulefree",
    "stable_adamw": "optimi",
    "adamw_torch_4bit": "torchao",
    "adamw_torch_8bit": "torchao",
}
"""Seam: how the names of transformers' optimizers begin that need a package, and the module that is imported."""


def late_refusals(args: Any, models: list[Any], datasets: list[Any], peft_config: Any) -> list[str]:
    """Return what a trainer's constructor or its first step would refuse.

    Seam: TRL's constructor raises for each of these after loading the policy, but for packages that are missing, on
    which `train` raises; `pad_to_multiple_of`, on which the collator of images raises; and `activation_offloading`,
    which fails without an accelerator. A compiled PEFT model is none to TRL, whose head then fails in the first step.

    Args:
        args: the configuration.
        models: policy and reference as given, each a model, a name, or None.
        datasets: each that was given.
        peft_config: as given.
    """
    problems = []
    optimizer = str(getattr(args.optim, "value", args.optim))
    package = next((each for name, each in OPTIMIZER_PACKAGES.items() if optimizer.startswith(name)), None)
    needed = {f"optim={optimizer!r}": package, "use_liger_kernel=True": args.use_liger_kernel and "liger_kernel"}
    problems += [
        f"{option} needs the package {module}, which is not installed. Install it, or remove the option."
        for option, module in needed.items()
        if module and importlib.util.find_spec(module) is None
    ]
    if args.activation_offloading and torch.accelerator.current_accelerator() is None:
        problems.append(
            "activation_offloading=True moves activations from an accelerator to the CPU, and this machine has only "
            "the CPU. Remove it."
        )
    if any(is_compiled(each) and (peft_config or is_peft_model(without_compilation(each))) for each in models):
        problems.append(
            "A model with an adapter was compiled before it was given to the trainer. Give the model itself, and set "
            "torch_compile=True."
        )
    if adapts_head(peft_config):
        problems.append(
            "peft_config adapts lm_head, but log-probs are computed from its weight directly, so that adapter would "
            "not be trained. Remove 'lm_head' from target_modules, or put it into modules_to_save."
        )
    problems += initialization_problems(next(iter(models), None), peft_config)
    return [*problems, *_image_problems(args, datasets)]


def _image_problems(args: Any, datasets: list[Any]) -> list[str]:
    if not any({"image", "images"} & set(column_names(dataset)) for dataset in datasets):
        return []
    wrong = {
        "precompute_ref_log_probs=True": args.precompute_ref_log_probs,
        f"pad_to_multiple_of={args.pad_to_multiple_of}": args.pad_to_multiple_of is not None,
        "truncation_mode='keep_end'": args.truncation_mode == "keep_end" and args.max_length is not None,
    }
    return [
        f"{option} cannot be used with images (dataset column image or images), which are processed batch by batch "
        "and stand in the prompt. Remove the option."
        for option, chosen in wrong.items()
        if chosen
    ]
