"""Configurations of axolotl with `rl: dpo`, `ipo`, `orpo`, or `simpo`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .adapters import ALL_LINEAR, modules, put_lora
from .data import Source, hold_out, put_sources
from .draft import (
    Draft,
    Rule,
    Tool,
    by_length,
    flash_attention,
    gone,
    of_the_launcher,
    parallelism,
    refuse_other_training,
    renamed,
    switch,
    warmup,
)
from .losses import put_loss, put_smoothing

_TITLE = "axolotl"
_TOGETHER = frozenset(
    {
        *("rl", "rl_beta", "dpo_beta", "trl", "orpo_alpha", "simpo_gamma", "cpo_alpha", "rpo_alpha"),
        *("dpo_label_smoothing", "dpo_norm_loss", "dpo_loss_type", "dpo_loss_weights"),
        *("adapter", "lora_model_dir", "lora_r", "lora_alpha", "lora_dropout", "lora_target_linear"),
        *("lora_target_modules", "lora_modules_to_save", "datasets", "test_datasets", "num_epochs"),
        *("evals_per_epoch", "saves_per_epoch", "wandb_project", "wandb_mode", "use_wandb", "use_swanlab"),
    }
)


_RULES: dict[str, Rule] = {
    "base_model": renamed("model_name_or_path"),
    "revision_of_model": renamed("model_revision"),
    "base_model_config": gone("the configuration comes from the model"),
    "model_type": gone("the class comes from the model's configuration"),
    "tokenizer_type": gone("the class comes from the tokenizer's configuration"),
    "tokenizer_config": gone("save the tokenizer in the model's folder"),
    "sequence_len": renamed("max_length"),
    "micro_batch_size": renamed("per_device_train_batch_size"),
    "eval_batch_size": renamed("per_device_eval_batch_size"),
    "optimizer": renamed("optim"),
    "lr_scheduler": renamed("lr_scheduler_type"),
    "cosine_min_lr_ratio": lambda draft, key, value: draft.put("lr_scheduler_kwargs", {"min_lr_rate": value}),
    "warmup_ratio": warmup,
    "val_set_size": hold_out,
    "dataset_processes": renamed("dataset_num_proc"),
    "bf16": lambda draft, key, value: draft.put("bf16", value in ("auto", "full", True)),
    "fp16": lambda draft, key, value: draft.put("fp16", True) if value is True else None,
    "flash_attention": flash_attention,
    "sdp_attention": switch("attn_implementation", "sdpa"),
    "eager_attention": switch("attn_implementation", "eager"),
    "flex_attention": switch("attn_implementation", "flex_attention"),
    "peft_use_dora": renamed("use_dora"),
    "peft_use_rslora": renamed("use_rslora"),
    "dpo_padding_free": renamed("padding_free"),
    "dpo_use_weighting": renamed("use_weighting"),
    "dpo_use_liger_kernel": renamed("use_liger_kernel"),
    "dpo_use_logits_to_keep": gone("only completion tokens are scored"),
    "dpo_generate_during_eval": gone("`watch` samples answers while a run trains"),
    "wandb_name": renamed("run_name"),
    "wandb_run_id": gone("set the environment variable WANDB_RUN_ID"),
    "wandb_entity": gone("set the environment variable WANDB_ENTITY"),
    "wandb_watch": gone("set the environment variable WANDB_WATCH"),
    "wandb_log_model": gone("set the environment variable WANDB_LOG_MODEL"),
    "chat_template": lambda draft, key, value: (
        None
        if value == "tokenizer_default"
        else draft.drop(
            key, f"the chat template of the tokenizer renders the rows: save {value!r} there if it is another"
        )
    ),
    "special_tokens": lambda draft, key, value: (
        draft.drop(key, "save a tokenizer that has them in the model's folder") if value else None
    ),
    "tokens": gone("save a tokenizer that has them in the model's folder"),
    "eot_tokens": gone("the chat template ends turns: `trl-dpo-ext inspect` says whether an answer loses its end"),
    "sample_packing": gone("pairs are not packed by cutting them: padding_free and share_prompt save the padding"),
    "pad_to_sequence_len": gone("rows are padded to the longest of their batch"),
    "dataset_prepared_path": gone("tokenized rows are cached by content"),
    "shuffle_merged_datasets": gone("rows are shuffled in every epoch", unless=(True,)),
    "strict": gone("options are always strict", unless=(True,)),
    "fsdp": of_the_launcher,
    "fsdp_config": of_the_launcher,
    "fsdp_version": of_the_launcher,
    "deepspeed": of_the_launcher,
    "dp_shard_size": of_the_launcher,
    "dp_replicate_size": of_the_launcher,
    "tensor_parallel_size": parallelism,
    "context_parallel_size": parallelism,
    "loss_watchdog_threshold": gone("use watch: its alarms can end a run (stop_on)"),
    "loss_watchdog_patience": gone("use watch: its alarms can end a run (stop_on)"),
    "gpu_memory_limit": gone("use precompute_ref_max_tokens and per_device_train_batch_size"),
    "lora_fan_in_fan_out": gone("PEFT finds it out"),
    "lora_mlp_kernel": gone("its kernels are axolotl's"),
    "lora_qkv_kernel": gone("its kernels are axolotl's"),
    "lora_o_kernel": gone("its kernels are axolotl's"),
    "experimental_skip_move_to_device": gone("the launcher places the weights"),
    "use_onebitllms": gone("1-bit weights are not trained"),
    "plugins": gone("plug-ins are axolotl's"),
    "use_kernels": gone("kernels are axolotl's"),
    "use_scattermoe": gone("kernels are axolotl's"),
    "use_sonicmoe": gone("kernels are axolotl's"),
    "dataset_exact_deduplication": gone("`trl-dpo-ext inspect` counts repeated rows and says how to drop them"),
    "group_by_length": by_length,
}

_COLUMNS = {
    "intel": {"prompt": "question"},
    "icr": {"prompt": "input"},
    "argilla": {"prompt": "instruction", "chosen": "chosen_response", "rejected": "rejected_response"},
}
"""Columns of axolotl's `type`s, where they are called otherwise than here; the part behind the template's name."""
_FIELDS = {"field_messages": "prompt", "field_chosen": "chosen", "field_rejected": "rejected", "field_prompt": "prompt"}


def _finish(draft: Draft) -> None:
    for key in [key for key in draft.left_out if key.startswith("swanlab_")]:
        draft.drop(key, "set report_to: swanlab, and SwanLab's environment variables")
    _put_loss(draft)
    _put_adapter(draft)
    _put_intervals(draft)
    _put_data(draft)
    tracked = draft.given.get("wandb_project") or draft.given.get("use_wandb")
    if draft.given.get("use_swanlab"):
        draft.put("report_to", "swanlab")
    else:
        draft.put("report_to", "wandb" if tracked else "none")


def _put_loss(draft: Draft) -> None:
    given = draft.given
    kind = given.get("rl")
    if kind not in ("dpo", "ipo", "orpo", "simpo"):
        refuse_other_training(f"rl: {kind}", _TITLE)
    shared: Mapping[str, Any] = given["trl"] if isinstance(given.get("trl"), Mapping) else {}
    beta = next((v for v in (shared.get("beta"), given.get("rl_beta"), given.get("dpo_beta")) if v is not None), None)
    if kind == "orpo":
        put_loss(draft, "orpo", beta=given.get("orpo_alpha", beta if beta is not None else 0.1))
    elif kind == "simpo":
        alpha = given.get("cpo_alpha", 1.0)
        put_loss(draft, "simpo", beta=0.1 if beta is None else beta, gamma=given.get("simpo_gamma"), likelihood=alpha)
        if alpha and "cpo_alpha" not in given:
            draft.differs("TRL's CPO trainer adds the chosen answer's likelihood to SimPO unless cpo_alpha is 0.")
    else:
        name = "ipo" if kind == "ipo" else "sigmoid_norm" if given.get("dpo_norm_loss") else "sigmoid"
        named = given.get("dpo_loss_type")
        put_loss(draft, name, beta=beta, likelihood=given.get("rpo_alpha"))
        if named:
            draft.put("loss_type", named)
            if given.get("dpo_loss_weights"):
                draft.put("loss_weights", given["dpo_loss_weights"])
        put_smoothing(draft, given.get("dpo_label_smoothing"))


def _put_adapter(draft: Draft) -> None:
    given = draft.given
    folder = given.get("lora_model_dir")
    if folder:
        draft.put("model_name_or_path", folder, "an adapter, which is trained further from a frozen copy as reference")
    elif given.get("adapter") in ("lora", "qlora"):
        named = modules(given.get("lora_target_modules"))
        put_lora(
            draft,
            lora_r=given.get("lora_r"),
            lora_alpha=given.get("lora_alpha"),
            lora_dropout=given.get("lora_dropout", 0.0),
            lora_target_modules=[ALL_LINEAR] if given.get("lora_target_linear") else named,
            lora_modules_to_save=modules(given.get("lora_modules_to_save")),
        )
    elif given.get("adapter"):
        draft.drop("adapter", f"{given['adapter']!r} is not offered: train with LoRA, or all weights")


def _put_intervals(draft: Draft) -> None:
    """Evaluations and saves per epoch are shares of all steps here."""
    given = draft.given
    epochs = given.get("num_epochs", 1)
    draft.put("num_train_epochs", epochs)
    for key, kind in (("evals_per_epoch", "eval"), ("saves_per_epoch", "save")):
        count = given.get(key)
        if count == 1:
            draft.put(f"{kind}_strategy", "epoch")
        elif count:
            draft.put(f"{kind}_strategy", "steps")
            draft.put(f"{kind}_steps", round(1 / (count * epochs), 6), f"a share of all steps: {count} per epoch")
    if given.get("val_set_size") and "eval_strategy" not in draft.keys:
        draft.put("eval_strategy", "epoch")
    if not given.get("val_set_size") and not given.get("test_datasets"):
        draft.put("eval_strategy", "no")
        draft.keys.pop("eval_steps", None)


def _put_data(draft: Draft) -> None:
    given, columns = draft.given, {}
    for entry in given.get("datasets") or ():
        kind = str(entry.get("type", "")).rpartition(".")[2]
        columns |= _COLUMNS.get(kind, {})
        columns |= {ours: entry[theirs] for theirs, ours in _FIELDS.items() if entry.get(theirs) not in (None, ours)}
    sources = [Source(each["path"], each.get("split"), each.get("name")) for each in given.get("datasets") or ()]
    if sources:
        put_sources(draft, sources)
        kinds = sorted({str(each.get("type")) for each in given["datasets"] if each.get("type")})
        draft.differs(
            f"Rows were rendered by axolotl's {', '.join(kinds) or 'default'}; here the chat template of the tokenizer "
            "renders them. Look at some rows with `trl-dpo-ext inspect --config`."
        )
    if columns:
        draft.put("dataset_columns", columns)
    if given.get("test_datasets"):
        draft.drop("test_datasets", "name the split for evaluation with dataset_test_split, or hold rows out")


AXOLOTL = Tool(
    "axolotl",
    _TITLE,
    frozenset({"base_model", "rl", "micro_batch_size", "sequence_len", "lora_target_linear"}),
    _RULES,
    _TOGETHER,
    _finish,
    {"gradient_checkpointing": False, "bf16": False},
)
