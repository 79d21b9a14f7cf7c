"""Configurations of LLaMA-Factory with `stage: dpo`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .adapters import modules, put_lora
from .data import Source, hold_out, put_sources
from .dataset_info import differing
from .draft import Draft, Rule, Tool, gone, of_the_launcher, one_of, refuse_other_training, renamed, warmup
from .losses import put_loss, put_smoothing

_TITLE = "LLaMA-Factory"
_TOGETHER = frozenset(
    {
        *("stage", "finetuning_type", "lora_rank", "lora_alpha", "lora_dropout", "lora_target", "additional_target"),
        *("pref_beta", "pref_loss", "pref_ftx", "simpo_gamma", "dpo_label_smoothing", "pref_bco_weight"),
        *("dataset", "dataset_dir", "eval_dataset", "max_samples", "model_name_or_path", "adapter_name_or_path"),
        *("ref_model_adapters",),
    }
)
_DISPLAY = "shows something or names files, and trains nothing"


def _quantization(draft: Draft, key: str, value: Any) -> None:
    if value in (4, 8):
        draft.put("load_in_4bit" if value == 4 else "load_in_8bit", True)
    else:
        draft.drop(key, f"{value} bits are not offered; 4 and 8 are")


def _reference_bits(draft: Draft, key: str, value: Any) -> None:
    draft.put("ref_quantization", "int8" if value == 8 else "nf4")


_RULES: dict[str, Rule] = {
    "template": lambda draft, key, value: draft.differs(
        f"Rows were rendered with {_TITLE}'s template {value!r}; here the chat template of the tokenizer renders them. "
        "Look at some rows with `trl-dpo-ext inspect --config`."
    ),
    "cutoff_len": renamed("max_length"),
    "preprocessing_num_workers": renamed("dataset_num_proc"),
    "val_size": hold_out,
    "flash_attn": one_of(
        "attn_implementation",
        {"fa2": "flash_attention_2", "sdpa": "sdpa", "disabled": "eager", "auto": None, True: "flash_attention_2"},
    ),
    "quantization_bit": _quantization,
    "ref_model": renamed("ref_model_name_or_path"),
    "ref_model_quantization_bit": _reference_bits,
    "enable_liger_kernel": renamed("use_liger_kernel"),
    "disable_gradient_checkpointing": lambda draft, key, value: draft.put("gradient_checkpointing", not value),
    "use_reentrant_gc": lambda draft, key, value: draft.put("gradient_checkpointing_kwargs", {"use_reentrant": value}),
    "warmup_ratio": warmup,
    "deepspeed": of_the_launcher,
    "fsdp": of_the_launcher,
    "fsdp_config": of_the_launcher,
    "overwrite_output_dir": gone("output_dir is always written to", unless=(True,)),
    "overwrite_cache": gone("the cache is keyed by content", unless=(True,)),
    "plot_loss": gone("run `trl-dpo-ext report OUTPUT_DIR --plot PNG` afterwards", unless=(True,)),
    "media_dir": gone(_DISPLAY),
    "image_max_pixels": gone("set the size of images in the processor that lies in the model's folder"),
    "video_max_pixels": gone("videos are not trained on"),
    "packing": gone("pairs are not packed by cutting them: padding_free and share_prompt save the padding"),
    "upcast_layernorm": gone("weights are kept in float32 unless dtype says otherwise"),
    "freeze_vision_tower": gone("choose the trained modules with lora_target_modules"),
    "mask_history": gone("the answer's turns are trained, the prompt's never are", unless=(True,)),
    "use_unsloth": gone("Unsloth replaces the trainer"),
    "loraplus_lr_ratio": gone("TRL has no LoRA+"),
    "pissa_init": gone("pass init_lora_weights in peft_config, from Python"),
    "default_system": gone("write the system message into the rows, or map a column (dataset_columns)"),
    "mix_strategy": gone("rows of all datasets are shuffled together", unless=("concat",)),
    "interleave_probs": gone("set the share of each dataset: datasets: [{path: ..., fraction: ...}]"),
    "tokenized_path": gone("tokenized rows are cached by content"),
    "download_dir": gone("set the environment variable HF_HOME"),
    "hf_hub_token": gone("log in with `hf auth login`"),
    "print_param_status": gone(_DISPLAY),
    "include_effective_tokens_per_second": gone(_DISPLAY),
    "predict_with_generate": gone("no answers are generated in evaluation; `watch` samples them"),
}

_LOSSES = ("sigmoid", "hinge", "ipo", "kto_pair", "orpo", "simpo")


def _finish(draft: Draft) -> None:
    given = draft.given
    if given.get("stage", "dpo") != "dpo":
        refuse_other_training(f"stage: {given['stage']}", _TITLE)
    _put_model(draft)
    _put_loss(draft)
    _put_adapter(draft)
    _put_data(draft)


def _put_model(draft: Draft) -> None:
    given = draft.given
    draft.put("model_name_or_path", given.get("model_name_or_path"))
    adapter = given.get("adapter_name_or_path")
    if adapter:
        draft.put("model_name_or_path", adapter, "an adapter, which is trained further")
        draft.differs(
            f"{_TITLE} takes the adapter's base as the reference; here the reference is a frozen copy of the adapter, "
            f"which the run starts from. For the other: merge nothing, and set ref_model_name_or_path: "
            f"{given.get('model_name_or_path')}."
        )
    if given.get("ref_model_adapters"):
        draft.drop(
            "ref_model_adapters", "merge the adapter into ref_model, and pass the result as ref_model_name_or_path"
        )


def _put_loss(draft: Draft) -> None:
    given = draft.given
    name = given.get("pref_loss", "sigmoid")
    if name not in _LOSSES:
        draft.drop("pref_loss", f"{name!r} has no counterpart here; see `trl-dpo-ext losses`")
        return
    put_loss(draft, name, beta=given.get("pref_beta", 0.1), gamma=given.get("simpo_gamma", 0.5))
    put_smoothing(draft, given.get("dpo_label_smoothing"))
    weight = given.get("pref_ftx")
    if weight and name == "sigmoid":
        draft.put("loss_type", "dpo_nll", f"averages over each answer's tokens, as {_TITLE} does")
        draft.put("dpo_nll_weight", weight)
    elif weight:
        put_loss(draft, name, beta=given.get("pref_beta", 0.1), likelihood=weight)
        draft.differs(f"{_TITLE} averages the likelihood over each answer's tokens, `sft` over those of the batch.")
    if given.get("pref_bco_weight"):
        draft.drop(
            "pref_bco_weight", "write the mixture by hand: loss_type [sigmoid, bco_pair_delta] with loss_weights"
        )


def _put_adapter(draft: Draft) -> None:
    given = draft.given
    kind = given.get("finetuning_type", "lora")
    if kind == "lora" and not given.get("adapter_name_or_path"):
        rank = given.get("lora_rank", 8)
        put_lora(
            draft,
            lora_r=rank,
            lora_alpha=given.get("lora_alpha") or 2 * rank,
            lora_dropout=given.get("lora_dropout", 0.0),
            lora_target_modules=modules(given.get("lora_target", "all")),
            lora_modules_to_save=modules(given.get("additional_target")),
        )
    elif kind not in ("lora", "full"):
        draft.drop("finetuning_type", f"{kind!r} is not offered: train with LoRA, or all weights")


def _put_data(draft: Draft) -> None:
    given = draft.given
    names = modules(given.get("dataset")) or []
    if given.get("eval_dataset"):
        draft.drop("eval_dataset", "name the split for evaluation with dataset_test_split, or hold rows out")
    if not names:
        return
    if draft.datasets is not None:
        _put_described(draft, names)
        return
    put_sources(draft, [Source(name, share=given.get("max_samples")) for name in names])
    draft.differs(
        f"Datasets are named by {_TITLE}'s dataset_info.json ({', '.join(names)}), which was not found: pass it with "
        "--dataset_info, or write the Hub id or the file that it lists for each, and map columns that are called "
        "otherwise (dataset_columns: {prompt: COLUMN})."
    )


def _put_described(draft: Draft, names: Sequence[str]) -> None:
    """Set the datasets as the table describes them; what has no counterpart is left out with the reason."""
    assert draft.datasets is not None
    described = [draft.datasets.describe(name, draft.given.get("max_samples")) for name in names]
    sources = [one.source for one in described if one.source is not None]
    if sources:
        put_sources(draft, sources)
    reasons = [reason for one in described for reason in one.reasons]
    if differing(described):
        reasons.append("the columns have other names in each dataset, and dataset_columns holds for all: rename them")
    elif described[0].columns:
        draft.put("dataset_columns", described[0].columns)
    for effect in (effect for one in described for effect in one.effects):
        draft.differs(effect)
    if reasons:
        draft.drop("dataset", "; ".join(reasons))


LLAMAFACTORY = Tool(
    "llamafactory",
    _TITLE,
    frozenset({"pref_beta", "pref_loss", "pref_ftx", "finetuning_type", "cutoff_len", "stage"}),
    _RULES,
    _TOGETHER,
    _finish,
    {"learning_rate": 5e-5, "max_length": 2048, "bf16": False, "optim": "adamw_torch"},
)
