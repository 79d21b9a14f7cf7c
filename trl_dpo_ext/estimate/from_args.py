"""From a run's flags to what the formulas and the checks read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .formulas import BYTES, Quantized, Reference, Training
from .pitfalls import RunContext
from .strategy import ParallelStrategy

DEFAULT_TOKENS = 2048


def training_from_args(args: Any, model: Any, mixture: Any, config: Any) -> Training:
    """How the flags say the model is trained.

    Args:
        args: a `DPOExtConfig`.
        model: TRL's `ModelConfig`.
        mixture: the losses.
        config: the model's transformers configuration, for a `dtype` of "auto" and a `max_length` of None.
    """
    dtype = _dtype(model.dtype, config)
    return Training(
        dtype=dtype,
        adapter=model.use_peft,
        adapter_dropout=model.lora_dropout > 0,
        quantized=_policy_quantized(model),
        optimizer=str(getattr(args.optim, "value", args.optim)),
        pairs=args.per_device_train_batch_size,
        tokens=args.max_length or getattr(config.get_text_config(), "max_position_embeddings", DEFAULT_TOKENS),
        accumulates=args.gradient_accumulation_steps > 1,
        checkpointing=args.gradient_checkpointing,
        eager_attention=model.attn_implementation == "eager",
        reference=_reference(args, model, mixture, dtype),
    )


def _dtype(given: str | None, config: Any) -> str:
    if given in BYTES:
        return given
    declared = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return declared if given == "auto" and declared in BYTES else "float32"


def _policy_quantized(model: Any) -> Quantized | None:
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
    return Reference("loaded", args.ref_dtype or dtype, quantized)


def strategy_for(engine: ParallelStrategy, args: Any) -> ParallelStrategy:
    """The engine with the precision that the flags ask for, which wins over the accelerate configuration's."""
    return replace(engine, half=bool(args.bf16 or args.fp16))


def context_from_args(
    args: Any, mixture: Any, training: Training, engine: ParallelStrategy, published_batch: int | None
) -> RunContext:
    """What the checks look at."""
    per_device, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    return RunContext(
        training=training,
        engine=engine,
        learning_rate=args.learning_rate,
        losses=tuple((term.variant.name, dict(term.hyper)) for term in mixture.terms),
        batch=per_device * accumulation * engine.processes,
        published_batch=published_batch,
        per_device=per_device,
        accumulation=accumulation,
    )
