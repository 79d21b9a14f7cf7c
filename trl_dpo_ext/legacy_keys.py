"""Options of older versions and recipes, and their successors.

An old option is an error: ignoring it would train something else.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

Options = TypeVar("Options")

LEGACY_KEYS = {
    # this package, before its first release
    "share_prompt_check": "was renamed to verify_share_prompt",
    "ref_self_check": "was renamed to verify_reference",
    "ref_drift_pairs": "was renamed to ref_drift_num_pairs",
    "ignore_traps": "was renamed to ignore_pitfalls",
    # transformers
    "warmup_ratio": "was replaced: use warmup_steps; a number below 1 is a ratio (warmup_steps: 0.1)",
    "evaluation_strategy": "was renamed to eval_strategy",
    "overwrite_output_dir": "was removed: an existing output_dir is always written to",
    "logging_dir": "was replaced: set the environment variable TENSORBOARD_LOGGING_DIR",
    "no_cuda": "was renamed to use_cpu",
    "use_mps_device": "was removed: the device is detected automatically",
    "per_gpu_train_batch_size": "was renamed to per_device_train_batch_size",
    "per_gpu_eval_batch_size": "was renamed to per_device_eval_batch_size",
    "group_by_length": "was replaced: use train_sampling_strategy: group_by_length",
    "push_to_hub_model_id": "was renamed to hub_model_id",
    "tokenizer": "was renamed to processing_class and is an argument of the trainer",
    "save_safetensors": "was removed: checkpoints are always safetensors",
    "include_tokens_per_second": "was removed: num_tokens is always logged",
    "include_inputs_for_metrics": "was replaced: use include_for_metrics: [inputs]",
    "push_to_hub_token": "was renamed to hub_token",
    "push_to_hub_organization": "was replaced: use hub_model_id: organization/name",
    "evaluate_during_training": "was replaced: use eval_strategy",
    "adafactor": "was replaced: use optim: adafactor",
    "use_liger": "was renamed to use_liger_kernel",
    "dispatch_batches": "was replaced: use accelerator_config: {dispatch_batches: ...}",
    "split_batches": "was replaced: use accelerator_config: {split_batches: ...}",
    "sharded_ddp": "was replaced: use fsdp",
    "fsdp_min_num_params": "was replaced: use fsdp_config: {min_num_params: ...}",
    "fsdp_transformer_layer_cls_to_wrap": "was replaced: use fsdp_config: {transformer_layer_cls_to_wrap: ...}",
    "torchdynamo": "was replaced: use torch_compile_backend",
    "fp16_backend": "was removed: mixed precision is always PyTorch's",
    "half_precision_backend": "was removed: mixed precision is always PyTorch's",
    "fp16_opt_level": "was removed: mixed precision is always PyTorch's",
    "jit_mode_eval": "was removed: use torch_compile",
    "use_ipex": "was removed: PyTorch has its optimizations",
    "xpu_backend": "was renamed to ddp_backend",
    "tpu_num_cores": "was removed: the launcher sets the number of processes",
    "use_legacy_prediction_loop": "was removed",
    "past_index": "was removed",
    "mp_parameters": "was removed",
    "ray_scope": "was removed",
    # model
    "torch_dtype": "was renamed to dtype",
    "use_flash_attention_2": "was replaced: use attn_implementation: flash_attention_2",
    "chat_template": "was replaced: set it on the tokenizer in the model's directory",
    "tokenizer_name_or_path": "was replaced: save the tokenizer in the model's directory, or pass processing_class",
    "model_code_revision": "was replaced: use model_init_kwargs: {code_revision: ...}",
    "peft_lora_r": "was renamed to lora_r",
    "peft_lora_alpha": "was renamed to lora_alpha",
    "gradient_checkpointing_use_reentrant": "was replaced: use gradient_checkpointing_kwargs: {use_reentrant: ...}",
    # data
    "dataset_mixer": "was replaced: use datasets: a list of {path: ..., split: ..., columns: [...]}",
    "dataset_mixture": "was replaced: use datasets: a list of {path: ..., split: ..., columns: [...]}",
    "dataset_splits": "was replaced: use dataset_train_split and dataset_test_split, or datasets: "
    "[{path: ..., split: ...}]",
    "dataset_configs": "was replaced: use dataset_config, or datasets: [{path: ..., name: ...}]",
    "preprocessing_num_workers": "was renamed to dataset_num_proc",
    "max_prompt_length": "was removed: filter long prompts out of the data; max_length counts prompt and completion",
    "max_completion_length": "was removed: max_length counts prompt and completion",
    "max_seq_length": "was renamed to max_length",
    "tools": "was replaced: use a dataset column named tools",
    "max_target_length": "was removed: max_length counts prompt and completion",
    "label_pad_token_id": "was removed",
    "padding_value": "was removed: the tokenizer's pad token is used",
    "is_encoder_decoder": "was removed: only causal language models are supported",
    # DPO
    "rpo_alpha": "was replaced: use loss_type: dpo_nll with dpo_nll_weight, or loss_type: [sigmoid, sft] with "
    "loss_weights",
    "dpo_alpha": "was replaced: use loss_type: dpo_nll with dpo_nll_weight",
    "average_log_prob": "was replaced: use loss_type: sigmoid_norm (or simpo, ipo)",
    "gamma_beta_ratio": "was renamed to simpo_gamma_beta_ratio",
    "generate_during_eval": "was removed",
    "precompute_ref_eval_batch_size": "was renamed to precompute_ref_batch_size",
    "ref_model_init_kwargs": "was removed: the reference is loaded with model_init_kwargs",
    "force_use_ref_model": "was replaced: pass ref_model to the trainer",
    "model_adapter_name": "was removed: a given adapter is trained",
    "ref_adapter_name": "was removed: a frozen copy of a given adapter is the reference",
    "use_logits_to_keep": "was removed: only completion tokens are scored",
    "use_num_logits_to_keep": "was removed: only completion tokens are scored",
    "base_model_attribute_name": "was removed: the base model is found automatically",
    "preprocess_logits_for_metrics": "was removed: full logits are never materialized",
    "model_init": "was removed: pass a model, or its name with model_init_kwargs",
    "use_liger_loss": "was removed: full logits are never materialized",
}


def unknown_key_problems(
    keys: Iterable[str], known: Iterable[str], elsewhere: Mapping[str, str] | None = None
) -> list[str]:
    """Return one problem per key that is not known: where it belongs, its successor, or the nearest known key.

    Args:
        keys: what was given.
        known: what is allowed.
        elsewhere: keys that belong into another place, and a phrase that says which.
    """
    known, elsewhere = set(known), elsewhere or {}
    problems = []
    for key in keys:
        if key in known:
            continue
        near = difflib.get_close_matches(key, known, n=1)
        if key in elsewhere:
            problems.append(f"{key} {elsewhere[key]}.")
        elif key in LEGACY_KEYS:
            problems.append(f"{key} {LEGACY_KEYS[key]}.")
        else:
            problems.append(f"Unknown option {key}." + (f" Did you mean {near[0]}?" if near else ""))
    return problems


def explain_unknown_arguments(cls: type[Options], elsewhere: Mapping[str, str] | None = None) -> type[Options]:
    """Let the constructor name the successor of an argument that it does not know, or the nearest argument.

    Args:
        cls: the class.
        elsewhere: see `unknown_key_problems`.

    Raises:
        TypeError: (by the constructor) an argument is unknown, as without this decorator.
    """
    construct: Any = cls.__init__
    known = set(inspect.signature(construct).parameters)

    @functools.wraps(construct)
    def init(self: Any, *args: Any, **options: Any) -> None:
        problems = unknown_key_problems(options, known, elsewhere)
        if problems:
            raise TypeError(f"{cls.__name__} got unexpected arguments. {' '.join(problems)}")
        construct(self, *args, **options)

    cls.__init__ = init
    return cls
