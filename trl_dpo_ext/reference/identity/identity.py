"""Which reference a log-prob was computed with: what is compared, and what is only written down."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn

from .files import commit_of, weight_files, weight_files_hash
from .weights import adapter_hash, adapters_alter_base, base_tensors, weights_hash, without_peft_model

# How a run is made to agree with a store, for each field that may differ.
_REMEDIES = {
    "quantization": "--ref_quantization",
    "compute_dtype": "--bf16 or --fp16",
    "dtype": "--dtype",
    "weights": "the model that the store was made with",
    "config": "the model's configuration as it was",
    "adapter": "the adapter that the store was made with",
}


@dataclass(frozen=True)
class Identity:
    """A reference model, as far as its log-probs depend on it.

    Attributes:
        weights (`str`): Hash of the content of the weight files, or of the weights in memory.
        config (`str`): JSON of the configuration's fields that change the forward.
        adapter (`str`): Hash of the adapter that is on, or `"none"`.
        quantization (`str`): Such as `"nf4 double bfloat16"`, or `"none"`.
        dtype (`str`): Of the parameters.
        compute_dtype (`str`): Of the forward, under autocast.
        source, revision, attention, versions: Written down, never compared: the same weights under another name, with
            another attention kernel or by newer libraries are the same reference.

    Example:
        >>> import dataclasses
        >>> ours = Identity(weights="f00d", config="{}", quantization="none", dtype="bfloat16")
        >>> ours.differences(dataclasses.replace(ours, quantization="nf4 double bfloat16", source="elsewhere"))
        ['quantization is nf4 double bfloat16 in the store and none in this run (--ref_quantization)']
    """

    weights: str
    config: str
    adapter: str = "none"
    quantization: str = "none"
    dtype: str = "float32"
    compute_dtype: str = "float32"
    source: str | None = field(default=None, compare=False)
    revision: str | None = field(default=None, compare=False)
    attention: str | None = field(default=None, compare=False)
    versions: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def keyed(self) -> dict[str, Any]:
        """The fields that are compared, readable."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.compare}
        return {**values, "config": json.loads(self.config)}

    @property
    def recorded(self) -> dict[str, Any]:
        """The fields that are only written down."""
        return {f.name: getattr(self, f.name) for f in fields(self) if not f.compare}

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits, equal where nothing that is compared differs."""
        return hashlib.blake2b(canonical(self.keyed).encode(), digest_size=16).hexdigest()

    @property
    def _named_weights(self) -> str:
        return self.weights + (f" ({self.source})" if self.source else "")

    @classmethod
    def from_json(cls, keyed: Mapping[str, Any], recorded: Mapping[str, Any]) -> Identity:
        """What `keyed` and `recorded` were made of.

        Raises:
            KeyError, TypeError: When they were made of something else.
        """
        values = {f.name: keyed[f.name] for f in fields(cls) if f.compare}
        known = {f.name for f in fields(cls) if not f.compare}
        return cls(**{**values, "config": canonical(keyed["config"])}, **{k: recorded[k] for k in known & {*recorded}})

    def differences(self, store: Identity) -> list[str]:
        """In words, what is compared and differs between this run and a store; empty for the same reference."""
        theirs, ours = ({**one.keyed, "weights": one._named_weights} for one in (store, self))
        found = [
            f"{name} is {theirs[name]} in the store and {ours[name]} in this run ({_REMEDIES[name]})"
            for name in ours
            if name != "config" and getattr(store, name) != getattr(self, name)
        ]
        return found + _config_differences(theirs["config"], ours["config"])


def canonical(value: Any) -> str:
    """JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _config_differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], path: str = "config") -> list[str]:
    found = []
    for name in sorted({*theirs, *ours}):
        their, our = theirs.get(name), ours.get(name)
        if isinstance(their, Mapping) and isinstance(our, Mapping):
            found += _config_differences(their, our, f"{path}.{name}")
        elif their != our:
            said = [canonical(value) if value is not None else "not set" for value in (their, our)]
            found.append(f"{path}.{name} is {said[0]} in the store and {said[1]} in this run")
    return found


# Fields of a model's configuration that leave the log-probs of a given sequence as they are: names, kernels, what only
# generation, training or another output uses. Any field that is not here counts, so that a new one is not overlooked.
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
    """The fields of a model's configuration that change its log-probs: sizes, rope, scaling, soft caps ..."""
    kept = {
        str(name): forward_config(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if not str(name).startswith("_") and name not in _NOT_THE_FORWARD and not _is_dropout(str(name))
    }
    return json.loads(json.dumps(kept, default=str))


def _is_dropout(name: str) -> bool:  # the reference runs in evaluation mode
    return "dropout" in name or name.endswith("_pdrop")


def quantization_fingerprint(config: Any) -> str:
    """A quantization in words, the same for the same one: `"nf4 double bfloat16"`, `"int8"`, `"none"`."""
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
    named = json.loads(json.dumps(values, default=str))  # the spelling below is part of every store's identity
    return f"{named.pop('quant_method', 'quantised')} {canonical(named)}"


def dtype_name(dtype: torch.dtype | str) -> str:
    """`"bfloat16"` for `torch.bfloat16`."""
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
    """Which reference this model is. Call it before an engine (FSDP, DeepSpeed) casts the parameters.

    Args:
        causal_model (`nn.Module`): A transformers model, or a `PeftModel` around one.
        source (`str`): The folder or the name that the weights were loaded from and are unaltered since: its files are
            hashed, once, and their hash is remembered. None: the weights in memory are hashed, in every process.
        revision (`str`): Of `source`, where it is a name.
        adapter (`str`): The adapter that is on when the reference computes; None for adapters off.
        compute_dtype (`str`): Of the forward, such as `"bfloat16"` under bf16 autocast.

    Raises:
        InputError: When the model has no such adapter, or no values.
    """
    tensors = base_tensors(causal_model)
    config = getattr(without_peft_model(causal_model), "config", None)
    files = None
    if source is not None and not adapters_alter_base(causal_model):
        files = weight_files(source, revision)
    return Identity(
        weights=f"files:{weight_files_hash(files)}" if files else f"memory:{weights_hash(causal_model)}",
        config=canonical(forward_config(config.to_dict())) if config is not None else "{}",
        adapter=adapter_hash(causal_model, adapter) if adapter is not None else "none",
        quantization=quantization_fingerprint(getattr(config, "quantization_config", None)),
        dtype="+".join(sorted({dtype_name(t.dtype) for t in tensors.values() if _is_float_parameter(t)})),
        compute_dtype=compute_dtype,
        source=source or getattr(config, "_name_or_path", None) or None,
        revision=(commit_of(files) if files else None) or revision,
        attention=getattr(config, "_attn_implementation", None),
    )
