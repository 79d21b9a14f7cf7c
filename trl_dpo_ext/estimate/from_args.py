"""Conversion of a run's flags into the inputs of the formulas and of the pitfall checks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .formulas import BYTES, Quantized, Reference, Training
from .pitfalls import RunContext
from .strategy import ParallelStrategy

DEFAULT_TOKENS = 2048


def training_from_args(
    args: Any, model: Any, mixture: Any, config: Any, completions: int | None = None, image_tokens: int = 0
) -> Training:
    """Return how the flags say the model is trained.

    Args:
        args: a `DPOExtConfig`.
        model: TRL's `ModelConfig`.
        mixture: the losses.
        config: the model's transformers configuration, for a `dtype` of "auto" and a `max_length` of None.
        completions: of a prompt of the data, at most; None for what `max_completions` keeps, or pairs.
        image_tokens: tokens of a row that stand for images.
    """
    longest = getattr(config.get_text_config(), "max_position_embeddings", DEFAULT_TOKENS)
    if image_tokens:  # no row of images comes near to the limits of today's models
        longest = min(longest, DEFAULT_TOKENS + image_tokens)
    dtype = _dtype(model.dtype, config)
    return Training(
        dtype=dtype,
        adapter=model.use_peft,
        adapter_dropout=model.lora_dropout > 0,
        quantized=_quantized_policy(model),
        optimizer=str(getattr(args.optim, "value", args.optim)),
        pairs=args.per_device_train_batch_size,
        completions=min(filter(None, (completions, args.max_completions)), default=2),
        tokens=args.max_length or longest,
        image_tokens=min(image_tokens, args.max_length or longest),
        accumulates=args.gradient_accumulation_steps > 1,
        checkpointing=args.gradient_checkpointing,
        eager_attention=model.attn_implementation == "eager",
        masked_attention=model.attn_implementation in (None, "sdpa") and not (args.share_prompt or args.padding_free),
        reference=_reference(args, model, mixture, dtype),
    )


def _dtype(given: str | None, config: Any) -> str:
    if given in BYTES:
        return given
    declared = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return declared if given == "auto" and declared in BYTES else "float32"


def _quantized_policy(model: Any) -> Quantized | None:
    if model.load_in_4bit:
        return Quantized(4, model.use_bnb_nested_quant, shardable=model.bnb_4bit_quant_storage in BYTES)
    return Quantized(8) if model.load_in_8bit else None


def _reference(args: Any, model: Any, mixture: Any, dtype: str) -> Reference:
    if not mixture.needs_reference:
        return Reference("none")
    if args.precompute_ref_log_probs:
        return Reference("stored")
    if model.use_peft and not args.describes_reference:
        return Reference("adapter off")
    kind = args.ref_quantization
    quantized = Quantized(8 if kind == "int8" else 4, args.ref_double_quant) if kind else None
    return Reference("loaded", args.ref_dtype or dtype, quantized, args.ref_correction_rank if kind else 0)


def completion_warnings(args: Any, mixture: Any, completions: int | None) -> list[str]:
    """Say that lists were counted as pairs, where the options ask for lists of unknown length."""
    chosen = args.list_pairs != args.__dataclass_fields__["list_pairs"].default
    if not (mixture.reads_lists or args.gather_lists or chosen) or completions or args.max_completions:
        return []
    return [
        "Two completions were counted for each prompt, because the data is not read. Set --completions to the largest "
        "number of completions that a list has, or max_completions."
    ]


def with_precision_from_args(strategy: ParallelStrategy, args: Any) -> ParallelStrategy:
    """Return the strategy with the precision of the flags, which override the accelerate configuration."""
    return replace(strategy, half_precision=bool(args.bf16 or args.fp16))


def context_from_args(
    args: Any, mixture: Any, training: Training, strategy: ParallelStrategy, published_pairs_per_step: int | None
) -> RunContext:
    """Return the facts that the pitfall checks read."""
    per_device, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    return RunContext(
        training=training,
        strategy=strategy,
        learning_rate=args.learning_rate,
        losses=tuple((term.variant.name, dict(term.hyper)) for term in mixture.terms),
        pairs_per_step=per_device * accumulation * strategy.processes,
        published_pairs_per_step=published_pairs_per_step,
        per_device=per_device,
        accumulation=accumulation,
    )
