"""Resolve which reference the options ask for, and check it before weights are read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from ..._trl import is_peft_model, planned_engine, without_adapter
from ...errors import InputError
from ..config import absolute_reward_problems
from .loading import checkpoint
from .quantization import is_quantized
from .spec import ReferenceSpec

# Of what the policy is loaded with, what holds for a reference of another checkpoint too.
_GENERAL = ("attn_implementation", "trust_remote_code", "token", "cache_dir", "local_files_only", "use_kernels")


def resolve_reference(args: Any, policy: Any, given: Any, keywords: Mapping[str, Any]) -> ReferenceSpec | None:
    """Return the reference that the options describe, not loaded yet; None if they describe none.

    Args:
        args: the run's configuration.
        policy: the policy, a model or its name.
        given: the `ref_model` that the trainer was given, or None.
        keywords: the trainer's other arguments, of which `peft_config` and `processing_class` count.

    Raises:
        InputError: listing everything wrong with that, before the weights of a model are read.
    """
    adapted = keywords.get("peft_config") is not None or hasattr(policy, "peft_config")
    problems = [*_given_problems(args, given), *storage_problems(args, keywords.get("quantization_config"))]
    problems += _zero3_problems(args)
    if problems:
        raise InputError(*problems)
    if not args.describes_reference:
        return None
    if adapted and not args.changes_checkpoint:
        warnings.warn(
            "The policy trains an adapter, and its base model with the adapter off is a reference that needs no extra "
            "memory: here ref_quantization and ref_dtype load a second model. Remove them, or filter this warning.",
            stacklevel=4,
        )
    problems = checkpoint_problems(args, policy, keywords.get("processing_class"))
    if problems:
        raise InputError(*problems)
    settings = reference_settings(args, policy)
    spec = ReferenceSpec(
        {
            "quantization": args.ref_quantization,
            "double_quant": args.ref_double_quant,
            "compute_dtype": args.ref_compute_dtype or _mixed_precision(args) if _is_4bit(args) else None,
            "skip_modules": args.ref_skip_modules or (),
            "device": reference_device(args),
            **settings,
        }
    )
    if args.ref_skip_modules:
        spec.quantized_shapes()  # raises for names that match nothing, before weights are read
    return spec


def reference_settings(args: Any, policy: Any) -> dict[str, Any]:
    """Return the arguments of `load_reference`, except those of quantization."""
    load = dict(args.model_init_kwargs or {})
    for name in ("quantization_config", "device_map"):
        load.pop(name, None)
    dtype = args.ref_dtype
    if not isinstance(policy, str):
        if not args.changes_checkpoint:
            return {"model": policy, "dtype": dtype}
        load = {"attn_implementation": policy.config._attn_implementation}
        dtype = dtype or without_adapter(policy).dtype
    dtype = dtype or load.pop("dtype", None) or "float32"
    load.pop("dtype", None)
    load.setdefault("trust_remote_code", args.trust_remote_code)
    name = args.ref_model_name_or_path or _name_of(policy)
    revision = args.ref_model_revision
    if args.ref_model_name_or_path in (None, _name_of(policy)):
        revision = revision or load.pop("revision", None)
    else:
        load = {key: value for key, value in load.items() if key in _GENERAL}
    load.pop("revision", None)
    if dtype == "auto":
        dtype = checkpoint(name, revision, load)[0].dtype
    return {"model": name, "revision": revision, "dtype": dtype, **load}


def _name_of(policy: Any) -> str:
    return policy if isinstance(policy, str) else policy.config._name_or_path


def _is_4bit(args: Any) -> bool:
    return args.ref_quantization in ("nf4", "fp4")


def _mixed_precision(args: Any) -> str | None:
    return "bfloat16" if args.bf16 else "float16" if args.fp16 else None


def reference_device(args: Any) -> Any:
    """Return the device to load a reference on: its own, or the CPU if FSDP or DeepSpeed take it from there."""
    placed = planned_engine(args).places_models
    return "cpu" if placed and not args.ref_quantization else args.device


def _given_problems(args: Any, given: Any) -> list[str]:
    """Return the problems of a `ref_model` that the user passed."""
    if given is None:
        return []
    if args.describes_reference:
        flags = ("ref_quantization", "ref_dtype", "ref_model_name_or_path", "ref_model_revision")
        named = ", ".join(flag for flag in flags if getattr(args, flag))
        return [
            f"ref_model was passed together with {named}, which loads another reference. Remove one of them, or pass "
            "load_reference(...) with these settings as ref_model."
        ]
    if is_peft_model(given):
        return [
            "ref_model is a PeftModel, on which TRL cannot compute log-probs. Pass load_reference(ref_model), which "
            "merges the adapter into a copy, or ref_model.merge_and_unload()."
        ]
    if is_quantized(given):
        remedy = "Leave it out and set ref_quantization with ref_calibrate=True"
        return absolute_reward_problems(args.loss_mixture(), "A quantized ref_model", remedy)
    return []


def is_replicated(args: Any, reference: Any) -> bool:
    """Whether a reference is kept unsharded by FSDP and ZeRO: a quantized one, and under ZeRO-1 and 2 (which would not
    shard it but cast it to the policy's dtype) one with a dtype of its own."""
    if reference is None:
        return False
    quantized = reference.quantized if isinstance(reference, ReferenceSpec) else is_quantized(reference)
    return quantized or bool(args.ref_dtype and planned_engine(args).zero_stage in (1, 2))


def _zero3_problems(args: Any) -> list[str]:
    dtype = _mixed_precision(args) or "float32"
    if planned_engine(args).zero_stage != 3 or args.ref_quantization or args.ref_dtype in (None, dtype):
        return []
    return [
        f"ref_dtype={args.ref_dtype!r} is not possible under ZeRO-3, which keeps sharded weights in the dtype of the "
        f"computation ({dtype}). Remove ref_dtype, or use ref_quantization, which keeps the reference unsharded."
    ]


def storage_problems(args: Any, quantization: Any) -> list[str]:
    """Return why FSDP1 cannot shard a QLoRA policy: it flattens a layer's weights into one tensor of one dtype."""
    if not getattr(quantization, "load_in_4bit", False) or planned_engine(args).fsdp_version != 1:
        return []
    dtype = str((args.model_init_kwargs or {}).get("dtype") or "float32").removeprefix("torch.")
    storage = str(quantization.bnb_4bit_quant_storage).removeprefix("torch.")
    if (dtype, storage) == ("bfloat16", "bfloat16"):
        return []
    return [
        f"FSDP1 can shard a 4-bit policy only if its weights have one dtype, and TRL keeps the adapter in bfloat16. "
        f"Got dtype={dtype} and bnb_4bit_quant_storage={storage}. Set both to bfloat16, or use FSDP2 "
        "(fsdp_version: 2)."
    ]


def checkpoint_problems(args: Any, policy: Any, tokenizer: Any) -> list[str]:
    """Return why another checkpoint cannot be the reference, from configurations and tokenizers alone."""
    if not args.changes_checkpoint:
        return []
    settings = reference_settings(args, policy)
    name, revision = settings["model"], settings["revision"]
    if not name:
        return [
            "ref_model_revision needs ref_model_name_or_path: the policy was not loaded from a "
            "named checkpoint. Set ref_model_name_or_path too."
        ]
    config = checkpoint(name, revision, settings)[0]
    theirs = config.get_text_config().vocab_size
    load = args.model_init_kwargs or {}
    if isinstance(policy, str):
        ours = checkpoint(policy, load.get("revision"), load)[0].get_text_config().vocab_size
        tokenizer = tokenizer or _tokenizer(policy, load.get("revision"))
    else:
        ours = policy.config.get_text_config().vocab_size
    problems = []
    if getattr(config, "quantization_config", None) and not args.ref_quantization:
        remedy = "Name the unquantized checkpoint and set ref_quantization with ref_calibrate=True"
        problems += absolute_reward_problems(args.loss_mixture(), f"The quantized checkpoint {name}", remedy)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
    other = _tokenizer(name, revision)
    if tokenizer is not None and other is not None:
        problems += _token_problems(name, tokenizer.get_vocab(), other.get_vocab(), theirs)
    elif ours != theirs:
        problems.append(f"The reference {name} has {theirs} tokens and the policy {ours}. {_FIX}")
    return problems


def vocabulary_problems(name: str, revision: str | None, tokenizer: Any, other: Any = None, size: int = 0) -> list[str]:
    """Return why a checkpoint cannot score the tokens of another model's tokenizer.

    Args:
        name: of the checkpoint.
        revision: of the checkpoint.
        tokenizer: of the other model, or its processor.
        other: the checkpoint's tokenizer; None to load it.
        size: how many tokens the checkpoint has at least, if its embedding grows when it is loaded.
    """
    theirs = max(checkpoint(name, revision, {})[0].get_text_config().vocab_size, size)
    tokenizer, other = (getattr(each, "tokenizer", each) for each in (tokenizer, other or _tokenizer(name, revision)))
    if other is None:
        return []
    return _token_problems(name, tokenizer.get_vocab(), other.get_vocab(), theirs)


_FIX = "Use a reference with the policy's vocabulary: log-probs of different tokens cannot be compared."


def _token_problems(name: str, ours: Mapping[str, int], theirs: Mapping[str, int], size: int) -> list[str]:
    beyond = sum(index >= size for index in ours.values())
    if beyond:
        return [f"The reference {name} has {size} tokens, but {beyond} of the policy's token ids are larger. {_FIX}"]
    by_index = {index: token for token, index in theirs.items()}
    wrong = [
        (i, token) for token, i in sorted(ours.items(), key=lambda item: item[1]) if by_index.get(i, token) != token
    ]
    if not wrong:
        return []
    index, token = wrong[0]
    return [
        f"The reference {name} has another vocabulary: token id {index} is {by_index[index]!r} there and {token!r} for "
        f"the policy ({len(wrong)} token ids differ). {_FIX}"
    ]


def _tokenizer(name: str, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError, KeyError):  # there is none, or none that loads without its own code
        return None
