"""Commands and configurations of ms-swift's `swift rlhf` with `--rlhf_type dpo`, `cpo`, `simpo`, or `orpo`."""

from __future__ import annotations

import re

from ..errors import InputError
from .adapters import modules, put_lora
from .data import Source, hold_out, put_sources
from .draft import (
    Draft,
    Rule,
    Tool,
    by_length,
    gone,
    of_the_launcher,
    one_of,
    parallelism,
    refuse_other_training,
    renamed,
    warmup,
)
from .losses import put_loss, put_smoothing

_TITLE = "ms-swift"
_TOWER = "choose the trained modules with lora_target_modules"
_TOGETHER = frozenset(
    {
        *("rlhf_type", "beta", "loss_type", "loss_weights", "label_smoothing", "rpo_alpha", "cpo_alpha", "simpo_gamma"),
        *("tuner_type", "train_type", "sft_type", "lora_rank", "lora_alpha", "lora_dropout", "target_modules"),
        *("modules_to_save", "adapters", "dataset", "val_dataset", "split_dataset_ratio", "learning_rate"),
    }
)

_RULES: dict[str, Rule] = {
    "model": renamed("model_name_or_path"),
    "torch_dtype": renamed("dtype"),
    "attn_impl": one_of(
        "attn_implementation",
        {
            "flash_attn": "flash_attention_2",
            "flash_attention_2": "flash_attention_2",
            "flash_attention_3": "flash_attention_3",
            "sdpa": "sdpa",
            "eager": "eager",
        },
    ),
    "ref_model": renamed("ref_model_name_or_path"),
    "warmup_ratio": warmup,
    "split_dataset_ratio": hold_out,
    "quant_bits": lambda draft, key, value: draft.put("load_in_4bit" if value == 4 else "load_in_8bit", True),
    "system": gone("write the system message into the rows, or map a column: dataset_columns: {system: COLUMN}"),
    "template": gone("the chat template of the tokenizer renders the rows"),
    "load_from_cache_file": gone("the cache is keyed by content", unless=(True,)),
    "deepspeed": of_the_launcher,
    "fsdp": of_the_launcher,
    "sequence_parallel_size": parallelism,
    "packing": gone("pairs are not packed by cutting them: padding_free and share_prompt save the padding"),
    "freeze_vit": gone(_TOWER),
    "freeze_aligner": gone(_TOWER),
    "freeze_llm": gone(_TOWER),
    "vit_gradient_checkpointing": gone("gradient_checkpointing holds for the whole model"),
    "max_completion_length": gone("max_length counts prompt and answer"),
    "truncation_strategy": gone("rows are cut at their end, or dropped and counted if the prompt alone is too long"),
    "model_author": gone("it is said to the model in its data alone"),
    "model_name": gone("it is said to the model in its data alone"),
    "use_hf": gone("datasets and models come from the Hugging Face Hub", unless=(True, 1)),
    "use_chat_template": gone("set a chat template in the tokenizer", unless=(True,)),
    "remove_unused_columns": gone("columns that nothing reads are ignored"),
    "columns": lambda draft, key, value: draft.put("dataset_columns", {ours: theirs for theirs, ours in value.items()}),
    "save_safetensors": gone("checkpoints are always safetensors", unless=(True,)),
    "cached_val_dataset": gone("tokenized rows are cached by content"),
    "cached_dataset": gone("tokenized rows are cached by content"),
    "group_by_length": by_length,
}

_METHODS = {"dpo": "sigmoid", "cpo": "cpo", "simpo": "simpo", "orpo": "orpo"}


_MEGATRON = ("tensor_model_parallel_size", "recompute_granularity", "global_batch_size")


def _finish(draft: Draft) -> None:
    if any(key in draft.given for key in _MEGATRON):
        raise InputError(
            "This is a command of ms-swift's Megatron trainer, whose options have no counterpart here. Translate the "
            "`swift rlhf` command of the same run."
        )
    _put_loss(draft)
    _put_adapter(draft)
    _put_data(draft)
    if "gradient_accumulation_steps" not in draft.given:
        draft.differs("Without gradient_accumulation_steps, ms-swift chooses it for 16 pairs in a step over all GPUs.")


def _put_loss(draft: Draft) -> None:
    given = draft.given
    kind = given.get("rlhf_type", "dpo")
    if kind not in _METHODS:
        refuse_other_training(f"rlhf_type: {kind}", _TITLE)
    if kind == "simpo":
        # its SimPO is TRL's CPO trainer, whose likelihood term has the weight 1 unless it is switched off
        alpha = given.get("cpo_alpha", 1.0)
        put_loss(draft, "simpo", beta=given.get("beta", 2.0), gamma=given.get("simpo_gamma", 1.0), likelihood=alpha)
        if alpha:
            draft.differs("ms-swift adds the chosen answer's likelihood to SimPO unless cpo_alpha is 0: kept here.")
    elif kind == "cpo":
        put_loss(draft, "cpo", beta=given.get("beta", 0.1), likelihood=given.get("cpo_alpha", 1.0))
    elif kind == "orpo":
        put_loss(draft, "orpo", beta=given.get("beta", 0.1))
    else:
        named = given.get("loss_type", "sigmoid")
        if isinstance(named, list):
            draft.put("loss_type", named)
            draft.put("beta", given.get("beta", 0.1))
            if given.get("loss_weights"):
                draft.put("loss_weights", given["loss_weights"])
        else:
            put_loss(draft, named, beta=given.get("beta", 0.1), likelihood=given.get("rpo_alpha"))
        put_smoothing(draft, given.get("label_smoothing"))


def _put_adapter(draft: Draft) -> None:
    given = draft.given
    kind = next((given[key] for key in ("tuner_type", "train_type", "sft_type") if key in given), "lora")
    draft.put("learning_rate", given.get("learning_rate", 1e-5 if kind == "full" else 1e-4))
    if given.get("adapters"):
        draft.put("model_name_or_path", given["adapters"], "an adapter, which is trained further from a frozen copy")
    elif kind == "lora":
        put_lora(
            draft,
            lora_r=given.get("lora_rank", 8),
            lora_alpha=given.get("lora_alpha", 32),
            lora_dropout=given.get("lora_dropout", 0.05),
            lora_target_modules=modules(given.get("target_modules", "all-linear")),
            lora_modules_to_save=modules(given.get("modules_to_save")),
        )
    elif kind != "full":
        draft.drop("tuner_type", f"{kind!r} is not offered: train with LoRA, or all weights")


def _put_data(draft: Draft) -> None:
    given = draft.given
    named = given.get("dataset") or []
    sources = [_source(each) for each in ([named] if isinstance(named, str) else named)]
    if sources:
        put_sources(draft, sources)
        draft.differs(
            "Datasets come from ModelScope in ms-swift, with columns that it renames: write the Hub id or the file, "
            "and look at some rows with `trl-dpo-ext inspect --config`."
        )
    if given.get("split_dataset_ratio"):
        draft.put("test_split_size", given["split_dataset_ratio"])
        draft.put("eval_strategy", "steps" if given.get("eval_steps") else "epoch")
    if given.get("val_dataset"):
        draft.drop("val_dataset", "name the split for evaluation with dataset_test_split, or hold rows out")


def _source(text: str) -> Source:
    """A dataset as ms-swift writes it: `path`, `path:subset`, `path#rows`, or all of it."""
    match = re.fullmatch(r"(?:(?:HF|MS)::)?(?P<path>[^:#]+)(?::(?P<name>[^#]+))?(?:#(?P<rows>\d+))?", str(text))
    if match is None:
        return Source(str(text))
    return Source(match["path"], name=match["name"], share=int(match["rows"]) if match["rows"] else None)


SWIFT = Tool(
    "swift",
    _TITLE,
    frozenset({"rlhf_type", "tuner_type", "train_type", "split_dataset_ratio", "attn_impl"}),
    _RULES,
    _TOGETHER,
    _finish,
    {
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.1,
        "adam_beta2": 0.95,
        "per_device_train_batch_size": 1,
        "bf16": True,
    },
)
