"""Quantization by bitsandbytes: what is quantized, and what its layers do that a reference must not."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch

from ..._trl import outside_language_model
from ...errors import InputError
from ..config import FOUR_BIT


def is_quantized(model: Any) -> bool:
    """Return True if a model's linear layers are quantized, by any method."""
    return bool(getattr(model, "is_quantized", False) or getattr(model.config, "quantization_config", None))


def bnb_config(quantization: str, double_quant: bool, compute_dtype: torch.dtype, skipped: list[str]) -> Any:
    """The quantization configuration for transformers."""
    from transformers import BitsAndBytesConfig

    if quantization not in FOUR_BIT:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization,
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=skipped,
    )


def skipped_layers(kind: Any, config: Any, wanted: Sequence[str], option: str) -> list[str]:
    """Return what is not quantized, in the form that transformers takes.

    The output layer, because TRL scores tokens with its plain weights; what stands outside the language model of a
    model of images, whose error reaches every token of an answer and which is small beside it
    (`benchmarks/vision_towers.py`); and the requested layers.

    Args:
        kind: the class of the model.
        config: its configuration.
        wanted: the requested layers, by full name or suffix.
        option: what errors call them, which the caller was given under that name.

    Raises:
        InputError: a name matches no linear layer, or no linear layer is left to quantize.
    """
    from transformers.quantizers.quantizers_utils import should_convert_module

    skeleton = _skeleton(kind, config)
    head = skeleton.get_output_embeddings()
    heads = [name for name, module in skeleton.named_modules() if module is head]
    layers = [name for name, module in skeleton.named_modules() if _is_linear(module)]
    problems = [
        f"{option}: {name!r} matches no linear layer of {kind.__name__}, by full name or suffix; it has "
        f"{', '.join(dict.fromkeys(layer.rsplit('.', 1)[-1] for layer in layers))}. Name one of these."
        for name in wanted
        if all(should_convert_module(layer, [name]) for layer in layers)
    ]
    outside = [
        name for name, module in outside_language_model(skeleton).items() if any(map(_is_linear, module.modules()))
    ]
    skipped = [*heads, *outside, *wanted]
    if not problems and not any(should_convert_module(layer, skipped) for layer in layers):
        problems.append(
            f"{kind.__name__} has no linear layer left to quantize. Remove the quantization, or skip fewer modules."
        )
    if problems:
        raise InputError(*problems)
    return skipped


def quantized_shapes(kind: Any, config: Any, wanted: Sequence[str]) -> list[tuple[int, int]]:
    """The shapes of the layers that are quantized, each (out, in), up to their order."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    skipped = skipped_layers(kind, config, wanted, "ref_skip_modules")
    return [
        (module.weight.size(0), module.weight.size(1))
        for name, module in _skeleton(kind, config).named_modules()
        if _is_linear(module) and should_convert_module(name, skipped)
    ]


def _skeleton(kind: Any, config: Any) -> Any:
    """A model without weights."""
    make = getattr(kind, "from_config", kind)  # an auto class is not called
    with torch.device("meta"):
        return make(copy.deepcopy(config))


def _is_linear(module: Any) -> bool:
    return type(module) is torch.nn.Linear or type(module).__name__ == "Conv1D"  # GPT-2's


def disable_cpu_repacking(model: Any) -> None:
    """Keep bitsandbytes from repacking the 4-bit weights of a CPU model.

    On CPUs with AVX512-BF16, bitsandbytes repacks them in place in the first evaluation forward: it then multiplies in
    bfloat16 whatever compute dtype was asked for, fails on widths that are no multiple of 32, and a QLoRA policy gets
    gradients of zero from there on.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


class _NoCastNotes(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "inputs will be cast" not in record.getMessage()


def mute_int8_casts() -> None:
    """Silence the note that bitsandbytes logs at every int8 layer of every forward."""
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    if not any(isinstance(existing, _NoCastNotes) for existing in logger.filters):
        logger.addFilter(_NoCastNotes())
