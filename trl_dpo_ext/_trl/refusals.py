"""What TRL and transformers refuse when they have loaded a model or begin to train, to be said before."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from datasets import Dataset
from peft import PeftConfig
from transformers import AttentionInterface
from transformers.utils import is_flash_attn_2_available, is_kernels_available

from .adapters import adapter_kind, adapters_of, adapts_head
from .batch import column_names, image_columns
from .compiled import is_compiled, without_compilation
from .images import collates_images
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


_UNUSABLE = {
    "ADAPTION_PROMPT": "replaces attention modules, so that the policy without it cannot be run as the reference",
    "CPT": "computes a loss from logits, which TRL's forward does not make",
    "MULTITASK_PROMPT_TUNING": "needs the task of every row (task_ids), which preference data do not have",
    "POLY": "needs the task of every row (task_ids), which preference data do not have",
    "SHADOW": "passes objects between layers that models of transformers do not take",
    "XLORA": "reads hidden states, which TRL's forward does not return",
}
"""Seam: kinds of adapters that cannot run in TRL's forward, and why."""


STREAMED_IMAGES = (
    "precompute_ref_log_probs=True cannot read images from a stream. Load the dataset without streaming, or set "
    "precompute_ref_log_probs=False."
)


def late_refusals(
    args: Any, models: list[Any], datasets: list[Any], peft_config: Any, data_collator: Any = None
) -> list[str]:
    """Return what a trainer's constructor or its first step would refuse.

    Seam: TRL's constructor raises for each of these after loading the policy, but for packages that are missing, on
    which `train` raises; `pad_to_multiple_of`, on which the collator of images raises; and `activation_offloading`,
    which fails without an accelerator. A compiled PEFT model is none to TRL, whose head then fails in the first step.

    Args:
        args: the configuration.
        models: policy and reference as given, each a model, a name, or None.
        datasets: each that was given.
        peft_config, data_collator: as given.
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
    if args.fsdp and args.world_size == 1 and args.parallel_mode.value != "distributed":
        problems.append(
            "fsdp shards a model over processes, and this is one process. Start the run with accelerate launch or "
            "torchrun, or remove fsdp."
        )
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
    policy = next(iter(models), None)
    problems += [*_attention_problems(args), *_adapter_problems(args, policy, peft_config)]
    if adapts_head(peft_config):
        problems.append(
            "peft_config adapts lm_head, but log-probs are computed from its weight directly, so that adapter would "
            "not be trained. Remove 'lm_head' from target_modules, or put it into modules_to_save."
        )
    problems += initialization_problems(policy, peft_config)
    return [*problems, *_image_problems(args, datasets, data_collator)]


def _attention_problems(args: Any) -> list[str]:
    """Seam: transformers raises for attention that is not registered or not installed while it loads a model."""
    name = (args.model_init_kwargs or {}).get("attn_implementation")
    if not isinstance(name, str) or "/" in name:  # kernels of the hub
        return []
    known = ["eager", *AttentionInterface().valid_keys()]
    plain = name.removeprefix("paged|")
    if plain not in known and name not in known:
        shown = ", ".join(sorted(each for each in known if "|" not in each))
        return [f"attn_implementation={name!r} does not exist. Choose one of {shown}."]
    if plain == "flash_attention_2" and not is_flash_attn_2_available() and not is_kernels_available():
        return [
            f"attn_implementation={name!r} needs the package flash_attn, which is not installed or finds no GPU. "
            "Install it, or set attn_implementation='sdpa'."
        ]
    return []


def _adapter_problems(args: Any, policy: Any, peft_config: Any) -> list[str]:
    """Seam: PEFT raises for these when it adds an adapter or runs it, or trains nothing and raises nothing."""
    if peft_config is None:
        policy = without_compilation(policy)
        configs, active = adapters_of(policy) if is_peft_model(policy) else ({}, [])
        return [each for name in active for each in _config_problems(args, configs[name])]
    if not isinstance(peft_config, PeftConfig):
        return [f"peft_config must be a PeftConfig, such as peft.LoraConfig(...); got {type(peft_config).__name__}."]
    return _config_problems(args, peft_config)


def _config_problems(args: Any, config: Any) -> list[str]:
    kind, problems = adapter_kind(config), []
    if kind in _UNUSABLE:
        problems.append(f"An adapter of the kind {kind} {_UNUSABLE[kind]}. Use another kind, such as LoraConfig.")
    if kind in ("PREFIX_TUNING", "CARTRIDGE") and args.gradient_checkpointing:
        problems.append(
            f"An adapter of the kind {kind} is fed through the cache, which gradient checkpointing turns off. Set "
            "gradient_checkpointing=False."
        )
    if kind == "LORA" and getattr(config, "lora_alpha", 1) == 0:
        problems.append("Nothing would train: lora_alpha=0 multiplies the adapter by zero. Set lora_alpha above 0.")
    rank = getattr(config, "r", 1)
    if isinstance(rank, int) and rank <= 0 and kind in ("LORA", "VERA", "LOHA"):
        problems.append(f"The rank of an adapter must be positive; got r={rank} (--lora_r).")
    task = getattr(config.task_type, "value", config.task_type)
    if task not in (None, "CAUSAL_LM"):
        problems.append(
            f"The adapter's task_type is {task}, so that a saved adapter would not load on a causal language model. "
            "Set task_type='CAUSAL_LM' (--lora_task_type CAUSAL_LM)."
        )
    return problems


def _image_problems(args: Any, datasets: list[Any], data_collator: Any) -> list[str]:
    pictured = [dataset for dataset in datasets if image_columns(column_names(dataset))]
    if not pictured:
        return []
    wrong = {
        f"pad_to_multiple_of={args.pad_to_multiple_of}": args.pad_to_multiple_of is not None,
        "truncation_mode='keep_end'": args.truncation_mode == "keep_end" and args.max_length is not None,
    }
    problems = [
        f"{option} cannot be used with images (dataset column image or images), which are processed batch by batch "
        "and stand in the prompt. Remove the option."
        for option, chosen in wrong.items()
        if chosen
    ]
    packing = [name for name in ("share_prompt", "padding_free") if getattr(args, name)]
    if packing:
        problems.append(
            f"{' and '.join(packing)} cannot be used with images (dataset column image or images): the model looks for "
            f"image tokens in whole rows. Remove {' and '.join(packing)}. To compute less, set "
            "precompute_ref_log_probs, which runs the reference once; a live reference works, too."
        )
    if args.precompute_ref_log_probs and not all(isinstance(dataset, Dataset) for dataset in pictured):
        problems.append(STREAMED_IMAGES)
    if args.precompute_ref_log_probs and data_collator is not None and not collates_images(data_collator):
        problems.append(
            f"precompute_ref_log_probs=True finds rows with images by what TRL's DataCollatorForVisionPreference makes "
            f"of them, and data_collator is of type {type(data_collator).__name__}. Leave data_collator out, or set "
            "precompute_ref_log_probs=False."
        )
    return problems
