"""Keys of older recipes, and what says the same today.

An old key is an error: dropped in silence, it would train something else.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

OLD_KEYS = {
    # this package, before its first release
    "share_prompt_check": "it is called verify_share_prompt now",
    "ref_self_check": "it is called verify_reference now",
    "ref_drift_pairs": "it is called ref_drift_num_pairs now",
    "ignore_traps": "it is called ignore_pitfalls now",
    # transformers
    "warmup_ratio": "use warmup_steps; a number below 1 is a ratio (warmup_steps: 0.1)",
    "evaluation_strategy": "it is called eval_strategy now",
    "overwrite_output_dir": "remove it; an existing output_dir is written to anyway",
    "logging_dir": "remove it; set the environment variable TENSORBOARD_LOGGING_DIR",
    "no_cuda": "it is called use_cpu now",
    "use_mps_device": "remove it; the device is found by itself",
    "per_gpu_train_batch_size": "it is called per_device_train_batch_size now",
    "per_gpu_eval_batch_size": "it is called per_device_eval_batch_size now",
    "group_by_length": "use train_sampling_strategy: group_by_length",
    "push_to_hub_model_id": "it is called hub_model_id now",
    "tokenizer": "it is called processing_class now, and is an argument of the trainer",
    "save_safetensors": "remove it; checkpoints are always safetensors",
    "include_tokens_per_second": "remove it; num_tokens is always logged",
    # model
    "torch_dtype": "it is called dtype now",
    "use_flash_attention_2": "use attn_implementation: flash_attention_2",
    "chat_template": "set it on the tokenizer that the model folder holds",
    # data
    "dataset_mixer": "use datasets: a list of {path: ..., split: ..., columns: [...]}",
    "dataset_mixture": "use datasets: a list of {path: ..., split: ..., columns: [...]}",
    "dataset_splits": "use dataset_train_split and dataset_test_split, or datasets: [{path: ..., split: ...}]",
    "dataset_configs": "use dataset_config, or datasets: [{path: ..., name: ...}]",
    "preprocessing_num_workers": "it is called dataset_num_proc now",
    "max_prompt_length": "remove it; filter long prompts out of the data, max_length counts prompt and answer",
    "max_completion_length": "remove it; max_length counts prompt and answer",
    "max_target_length": "remove it; max_length counts prompt and answer",
    "label_pad_token_id": "remove it",
    "padding_value": "remove it; the tokenizer's pad token is used",
    "is_encoder_decoder": "remove it; causal language models only",
    # DPO
    "rpo_alpha": "use loss_type: dpo_nll with dpo_nll_weight, or loss_type: [sigmoid, sft] with loss_weights",
    "dpo_alpha": "use loss_type: dpo_nll with dpo_nll_weight",
    "average_log_prob": "use loss_type: sigmoid_norm (or simpo, ipo)",
    "gamma_beta_ratio": "it is called simpo_gamma_beta_ratio",
    "generate_during_eval": "remove it",
    "precompute_ref_eval_batch_size": "it is called precompute_ref_batch_size now",
    "ref_model_init_kwargs": "remove it; the reference is loaded with model_init_kwargs",
    "force_use_ref_model": "pass ref_model to the trainer",
    "model_adapter_name": "remove it; a given adapter is trained",
    "ref_adapter_name": "remove it; a frozen copy of a given adapter is the reference",
    "use_logits_to_keep": "remove it; only completion tokens are scored",
    "use_liger_loss": "remove it; full logits are never built",
}


def unknown_key_problems(keys: Iterable[str], known: Iterable[str]) -> list[str]:
    """One line for each key that is not known: what it is called now, or the nearest known key."""
    known = set(known)
    problems = []
    for key in keys:
        if key in known:
            continue
        near = difflib.get_close_matches(key, known, n=1)
        if key in OLD_KEYS:
            problems.append(f"{key} is a key of older recipes: {OLD_KEYS[key]}.")
        else:
            problems.append(f"Unknown key {key}." + (f" Did you mean {near[0]}?" if near else ""))
    return problems
