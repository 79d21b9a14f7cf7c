"""Configurations and commands of open-instruct's DPO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .adapters import ALL_LINEAR, put_lora
from .data import Source, put_sources
from .draft import Draft, Rule, Tool, flash_attention, gone, of_the_launcher, parallelism, renamed, warmup
from .losses import put_loss, put_smoothing

_TITLE = "open-instruct"
_MIXERS = ("dataset_mixer", "dataset_mixer_list", "mixer_list")
_TOGETHER = frozenset(
    {
        *(*_MIXERS, "dataset_mixer_list_splits", "dataset_name", "dataset_config_name", "max_train_samples"),
        *("loss_type", "beta", "gamma_beta_ratio", "label_smoothing", "model_name_or_path"),
        *("tokenizer_name", "tokenizer_name_or_path", "use_lora", "use_qlora"),
        *("lora_rank", "lora_alpha", "lora_dropout"),
        *("use_8bit_optimizer", "dpo_use_paged_optimizer"),
    }
)
_AI2 = "belongs to the cluster of its authors"
_CACHE = "set precompute_ref_log_probs, which stores the reference's log-probs in ref_store"


def _tracking(draft: Draft, key: str, value: Any) -> None:
    draft.put("report_to", "wandb" if value else "none")


def _checkpoints(draft: Draft, key: str, value: Any) -> None:
    if value == "epoch":
        draft.put("save_strategy", "epoch")
    else:
        draft.put("save_strategy", "steps")
        draft.put("save_steps", int(value))


def _adds_bos(draft: Draft, key: str, value: Any) -> None:
    if value:
        draft.differs("add_bos: the tokenizer decides whether rows begin with BOS; `trl-dpo-ext inspect` shows it.")


_RULES: dict[str, Rule] = {
    "max_seq_length": renamed("max_length"),
    "preprocessing_num_workers": renamed("dataset_num_proc"),
    "num_epochs": renamed("num_train_epochs"),
    "max_train_steps": renamed("max_steps"),
    "warmup_ratio": warmup,
    "keep_last_n_checkpoints": renamed("save_total_limit"),
    "checkpointing_steps": _checkpoints,
    "with_tracking": _tracking,
    "clip_grad_norm": renamed("max_grad_norm"),
    "exp_name": renamed("run_name"),
    "hf_repo_id": renamed("hub_model_id"),
    "hf_entity": gone("name it in hub_model_id: entity/name"),
    "packing": renamed("padding_free"),
    "add_bos": _adds_bos,
    "concatenated_forward": gone("both sides are always fed together", unless=(True,)),
    "use_slow_tokenizer": gone("tokenizers are fast ones", unless=(True,)),
    "use_flash_attn": flash_attention,
    "attn_backend": gone("set attn_implementation", unless=("auto",)),
    "chat_template_name": gone("the chat template of the tokenizer renders the rows: save one there"),
    "tokenizer_revision": gone("the tokenizer comes from the model's revision", unless=("main",)),
    "cache_logprobs_only": gone(_CACHE),
    "reference_logprobs_cache_path": gone(_CACHE),
    "zero_stage": of_the_launcher,
    "offload_optimizer": of_the_launcher,
    "offload_param": of_the_launcher,
    "zero_hpz_partition_size": of_the_launcher,
    "fsdp_shard_degree": of_the_launcher,
    "fsdp_num_replicas": of_the_launcher,
    "tensor_parallel_degree": parallelism,
    "context_parallel_degree": parallelism,
    "activation_memory_budget": gone("gradient checkpointing recomputes all layers", unless=(1.0, 1)),
    "compile_model": renamed("torch_compile"),
    "load_balancing_loss": lambda draft, key, value: (
        draft.put("model_init_kwargs", {"output_router_logits": True}) if value else None
    ),
    "load_balancing_weight": gone("set router_aux_loss_coef in model_init_kwargs"),
    "low_cpu_mem_usage": gone("weights are always loaded so"),
    "do_not_randomize_output_dir": gone("output_dir is used as it is written", unless=(True,)),
    "wandb_entity": gone("set the environment variable WANDB_ENTITY"),
    "wandb_project": gone("set the environment variable WANDB_PROJECT"),
    "wandb_project_name": gone("set the environment variable WANDB_PROJECT"),
    "transform_fn": gone("rows are brought to one layout by their columns"),
    "dataset_skip_cache": gone("the cache is keyed by content", unless=(True,)),
    "cache_dataset_only": gone("run `trl-dpo-ext inspect`, which tokenizes alone"),
    "config_name": gone("the configuration comes from the model"),
    "skip_cache": gone("the cache is keyed by content", unless=(True,)),
    "log_grad_norm": gone("the gradient's norm is always logged", unless=(True,)),
    "activation_checkpointing_mode": gone("set gradient_checkpointing"),
    "profiling": gone("use torch's profiler"),
    "timeout": renamed("ddp_timeout"),
    **{
        key: gone(_AI2)
        for key in (
            *("try_launch_beaker_eval_jobs", "try_auto_save_to_beaker", "gs_bucket_path", "oe_eval_tasks"),
            *("oe_eval_max_length", "oe_eval_gpu_multiplier", "eval_workspace", "eval_priority", "hf_metadata_dataset"),
            *("send_slack_alerts", "checkpoint_state_dir", "checkpoint_state_freq", "wandb_group"),
        )
    },
}


def _finish(draft: Draft) -> None:
    given = draft.given
    model = given.get("model_name_or_path")
    draft.put("model_name_or_path", model)
    for key in ("tokenizer_name", "tokenizer_name_or_path"):
        if given.get(key, model) != model:
            draft.drop(key, f"save the tokenizer {given[key]} in the model's folder")
    _put_loss(draft)
    if draft.keys.get("padding_free") and draft.keys.pop("torch_compile", False):
        draft.drop("compile_model", "packed rows are not compiled; remove packing to compile")
    if given.get("use_lora") or given.get("use_qlora"):
        put_lora(
            draft,
            lora_r=given.get("lora_rank", 64),
            lora_alpha=given.get("lora_alpha", 16),
            lora_dropout=given.get("lora_dropout", 0.1),
            lora_target_modules=[ALL_LINEAR],
            load_in_4bit=True if given.get("use_qlora") else None,
        )
    if given.get("use_8bit_optimizer"):
        draft.put("optim", "paged_adamw_8bit" if given.get("dpo_use_paged_optimizer") else "adamw_bnb_8bit")
    elif given.get("dpo_use_paged_optimizer"):
        draft.put("optim", "paged_adamw_32bit")
    _put_data(draft)


_LOSSES = {"dpo": "sigmoid", "dpo_norm": "sigmoid_norm", "simpo": "simpo"}


def _put_loss(draft: Draft) -> None:
    given = draft.given
    name = given.get("loss_type", "dpo_norm")
    if name == "wpo":
        draft.put("use_weighting", True, "WPO")
        name = "dpo"
    if name not in _LOSSES:
        draft.drop("loss_type", f"{name!r} has no counterpart here; see `trl-dpo-ext losses`")
        return
    put_loss(draft, _LOSSES[name], beta=given.get("beta", 5.0))
    if name == "simpo":
        draft.put("simpo_gamma_beta_ratio", given.get("gamma_beta_ratio", 0.3))
        if given.get("label_smoothing"):
            draft.put("simpo_label_smoothing", given["label_smoothing"])
    else:
        put_smoothing(draft, given.get("label_smoothing"))


def _put_data(draft: Draft) -> None:
    given = draft.given
    mixer = next((given[key] for key in _MIXERS if key in given), None)
    most = given.get("max_train_samples")
    if mixer is None:
        if given.get("dataset_name"):
            put_sources(draft, [Source(given["dataset_name"], name=given.get("dataset_config_name"), share=most)])
        return
    shares: Sequence[Any]
    if isinstance(mixer, Mapping):
        shares = [*mixer.items()]
    else:
        parts = mixer.split() if isinstance(mixer, str) else [*mixer]
        shares = [*zip(parts[::2], parts[1::2], strict=True)]
    # A whole number is a number of rows, even 1; with a point, it is a share.
    sources = [Source(path, share=_share(share)) for path, share in shares]
    if len(sources) == 1 and sources[0].is_whole:
        sources[0].share = most
    put_sources(draft, sources)
    if most is not None and len(sources) > 1:
        draft.drop("max_train_samples", "slice the splits of the mixture instead")


def _share(share: Any) -> float | int:
    text = str(share)
    return float(text) if "." in text else int(text)


OPEN_INSTRUCT = Tool(
    "open-instruct",
    _TITLE,
    frozenset({*_MIXERS[1:], "max_seq_length", "with_tracking", "num_epochs", "checkpointing_steps"}),
    _RULES,
    _TOGETHER,
    _finish,
    {
        "learning_rate": 2e-5,
        "num_train_epochs": 1,
        "warmup_steps": 0.1,
        "max_length": 4096,
        "max_grad_norm": 0.0,
        "gradient_checkpointing": False,
    },
)
