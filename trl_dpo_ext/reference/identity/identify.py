"""Identify a reference model: hash its weights, and name its configuration, adapter, quantization and precision."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..._trl import active_inside, without_adapter
from .files import commit_of, weight_files, weight_files_hash
from .identity import Identity, canonical
from .weights import adapter_hash, adapters_alter_base, base_tensors, weights_hash

# Fields of a model's configuration that do not change the log-probs of a given sequence: names, kernels, what only
# generation, training or another output uses. Every other field counts, so that a new one is not overlooked.
_NOT_THE_FORWARD = {
    "architectures", "attn_implementation", "auto_map", "bos_token_id", "chunk_size_feed_forward", "cls_token_id",
    "decoder_start_token_id", "dtype", "eos_token_id", "experts_implementation", "finetuning_task",
    "gradient_checkpointing", "id2label", "initializer_factor", "initializer_range", "label2id", "mask_token_id",
    "name_or_path", "num_labels", "output_attentions", "output_hidden_states", "output_router_logits",
    "pad_token_id", "prefix", "problem_type", "quantization_config", "return_dict", "router_aux_loss_coef",
    "sep_token_id", "task_specific_params", "tokenizer_class", "torch_dtype", "transformers_version",
    "unk_token_id", "use_cache",
}  # fmt: skip


def forward_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a model's configuration that change its log-probs: sizes, rope, scaling, soft caps ..."""
    kept = {
        str(name): forward_config(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if not str(name).startswith("_") and name not in _NOT_THE_FORWARD and not _is_dropout(str(name))
    }
    return json.loads(json.dumps(kept, default=str))


def _is_dropout(name: str) -> bool:  # the reference runs in evaluation mode
    return "dropout" in name or name.endswith("_pdrop")


def quantization_fingerprint(config: Any) -> str:
    """Name a quantization, the same for equal settings: `"nf4 double bfloat16"`, `"int8"`, `"none"`.

    The spelling is part of every store's identity and must not change.
    """
    if config is None:
        return "none"
    values = dict(config) if isinstance(config, Mapping) else config.to_dict()
    skipped = values.get("llm_int8_skip_modules")
    kept = f" except {','.join(sorted(skipped))}" if skipped else ""
    if values.get("load_in_4bit"):
        double = " double" if values.get("bnb_4bit_use_double_quant") else ""
        compute = dtype_name(values.get("bnb_4bit_compute_dtype", "float32"))
        return f"{values.get('bnb_4bit_quant_type', 'fp4')}{double} {compute}{kept}"
    if values.get("load_in_8bit"):
        threshold = float(values.get("llm_int8_threshold", 6.0))
        return f"int8{'' if threshold == 6.0 else f' threshold {threshold}'}{kept}"
    named = json.loads(json.dumps(values, default=str))
    return f"{named.pop('quant_method', 'quantized')} {canonical(named)}"


def _adapter(model: nn.Module, adapter: str | None) -> str:
    """Name the adapter that computes: of a `PeftModel` the given one; one inside a transformers model always does."""
    computing = active_inside(model) if adapter is None else [adapter]
    return "+".join(adapter_hash(model, name) for name in computing) or "none"


def dtype_name(dtype: torch.dtype | str) -> str:
    """Return `"bfloat16"` for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")


def _is_float_parameter(value: Any) -> bool:
    return isinstance(value, nn.Parameter) and value.is_floating_point()


def identify(
    causal_model: nn.Module,
    *,
    source: str | None = None,
    revision: str | None = None,
    adapter: str | None = None,
    compute_dtype: str = "float32",
) -> Identity:
    """Identify a reference model. Call this before FSDP or DeepSpeed casts the parameters.

    Args:
        causal_model: a transformers model, or a `PeftModel` around one.
        source: folder or name that the weights were loaded from, if they are unaltered since: its files are hashed once
            and the hash is cached. None hashes the weights in memory, in every process.
        revision: of `source`, if that is a name.
        adapter: the adapter that is active when the reference computes; None for adapters off.
        compute_dtype: of the forward, such as `"bfloat16"` under bf16 autocast.

    Raises:
        InputError: the model has no such adapter, or its weights are on the meta device.
    """
    tensors = base_tensors(causal_model)
    config = getattr(without_adapter(causal_model), "config", None)
    files = None
    if source is not None and not adapters_alter_base(causal_model):
        files = weight_files(source, revision)
    return Identity(
        weights=f"files:{weight_files_hash(files)}" if files else f"memory:{weights_hash(causal_model)}",
        config=canonical(forward_config(config.to_dict())) if config is not None else "{}",
        adapter=_adapter(causal_model, adapter),
        quantization=quantization_fingerprint(getattr(config, "quantization_config", None)),
        dtype="+".join(sorted({dtype_name(t.dtype) for t in tensors.values() if _is_float_parameter(t)})),
        compute_dtype=compute_dtype,
        source=source or getattr(config, "_name_or_path", None) or None,
        revision=(commit_of(files) if files else None) or revision,
        attention=getattr(config, "_attn_implementation", None),
    )
