"""A reference that is no plain second copy of the policy: 4-bit, 8-bit, another dtype, another checkpoint.

A reference only runs forward, so it is loaded frozen, in evaluation mode, and whole on its process's device. Its output
layer is never quantized: TRL scores tokens with that layer's weights as they are.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import InputError
from ..config import DTYPES, FOUR_BIT, QUANTIZATIONS
from .clone import from_memory, plain_model
from .memory import describe_quantization

_SOURCE = "_reference_source"


@dataclass(frozen=True, slots=True)
class Source:
    """What a reference was made of: a checkpoint by name, or the weights of a model in memory."""

    name: str | None = None
    revision: str | None = None
    instance: Any = None
    """Weak reference to the model in memory."""

    def is_start_of(self, policy: Any, revision: str | None) -> bool:
        """Whether a policy, given by name or as an instance, starts from the same weights."""
        if isinstance(policy, str):
            return policy == self.name and revision == self.revision
        return self.instance is not None and self.instance() is policy


def source_of(reference: Any) -> Source | None:
    """What `load_reference` made a model of; None for a model that was made elsewhere."""
    return getattr(reference, _SOURCE, None)


def load_reference(
    model: Any,
    *,
    quantization: str | None = None,
    double_quant: bool = False,
    compute_dtype: str | torch.dtype | None = None,
    skip_modules: Sequence[str] = (),
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    device: str | torch.device | None = None,
    **from_pretrained: Any,
) -> Any:
    """A frozen reference model, quantized or not; hand it to `DPOExtTrainer` as `ref_model`.

    Args:
        model: a hub id or folder, or a model in memory, whose weights as they are now are copied (an adapter is merged
            into the copy).
        quantization: `nf4` or `fp4` (4 bits per weight of the linear layers), `int8`, or None.
        double_quant: quantize the scales of a 4-bit model too.
        compute_dtype: dtype in which a 4-bit model multiplies; that of its other weights by default.
        skip_modules: linear layers to leave as they are, by name or its end. The output layer always is left.
        dtype: dtype of all weights that are not quantized; float32, or that of the instance, by default.
        revision: of the checkpoint.
        device: where it goes, whole; this process's device by default.
        **from_pretrained: what else transformers' `from_pretrained` takes (`attn_implementation`, ...).

    Raises:
        InputError: (a ValueError) the settings, the checkpoint or the device cannot give such a reference; said before
            weights are read.

    Example:
        >>> from trl_dpo_ext import load_reference
        >>> reference = load_reference("Qwen/Qwen2.5-7B-Instruct", quantization="nf4")  # doctest: +SKIP
    """
    from accelerate import PartialState

    place = torch.device(device if device is not None else str(PartialState().device))
    by_name = isinstance(model, str)
    if by_name:
        config, kind = checkpoint(model, revision, from_pretrained)
    else:
        config, kind = model.config, type(plain_model(model))
    problems = [*_setting_problems(quantization, dtype, compute_dtype), *_quantized_again(model, config, quantization)]
    problems += _device_problems(quantization, place)
    if problems:
        raise InputError(*problems)
    plain = as_dtype(dtype) or (torch.float32 if by_name else plain_model(model).dtype)
    settings = {"dtype": plain, **from_pretrained}
    if not _is_zero3():  # which spreads an unquantized model by itself
        settings["device_map"] = {"": place}
    if quantization:
        skipped = skipped_layers(kind, config, skip_modules)
        settings["device_map"] = {"": place}
        settings["quantization_config"] = bnb_config(
            quantization, double_quant, as_dtype(compute_dtype) or plain, skipped
        )
    with unsharded_loading() if quantization else contextlib.nullcontext():
        if by_name:
            reference = kind.from_pretrained(model, revision=revision, **settings)
            source = Source(name=model, revision=revision)
        else:
            reference = from_memory(kind, model, settings)
            source = Source(instance=weakref.ref(model))
    setattr(reference, _SOURCE, source)
    if quantization:
        _warn_of_the_rest(reference, quantization)
    return freeze(reference)


def _warn_of_the_rest(reference: Any, quantization: str) -> None:
    """Say so where most weights are in no linear layer, as in models that fuse their experts into one tensor."""
    outer = (reference.get_input_embeddings(), reference.get_output_embeddings())
    embeddings = {id(layer.weight) for layer in outer if layer is not None}
    rest = sum(p.numel() for p in reference.parameters() if p.is_floating_point() and id(p) not in embeddings)
    layers = sum(
        module.in_features * module.out_features
        for module in reference.modules()
        if isinstance(module, torch.nn.Linear) and not module.weight.is_floating_point()
    )
    if rest > layers:
        warnings.warn(
            f"{quantization} leaves {rest / (rest + layers):.0%} of the weights as they are, besides embeddings: "
            f"bitsandbytes quantizes linear layers, and {type(reference).__name__} keeps most weights elsewhere, or "
            "ref_skip_modules names most. Memory falls little; a stored reference (precompute_ref_log_probs) "
            "takes none.",
            stacklevel=3,
        )


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A torch dtype by name or as it is; None stays None."""
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def is_quantized(model: Any) -> bool:
    """Whether a model's linear layers are quantized, by whatever method."""
    return bool(getattr(model, "is_quantized", False) or getattr(model.config, "quantization_config", None))


def freeze(reference: Any) -> Any:
    """The model without gradients, in evaluation mode, so without dropout."""
    reference.requires_grad_(False)
    disable_cpu_repacking(reference)
    _mute_int8_casts()
    return reference.eval()


def disable_cpu_repacking(model: Any) -> None:
    """Keep 4-bit weights of a CPU model as they are.

    On CPUs with AVX512-BF16, bitsandbytes repacks them in place in the first evaluation forward: it then multiplies in
    bfloat16 whatever compute dtype was asked for, fails on widths that are no multiple of 32, and a QLoRA policy gets
    gradients of zero from there on.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _setting_problems(quantization: str | None, *dtypes: str | torch.dtype | None) -> list[str]:
    problems = []
    if quantization not in (None, *QUANTIZATIONS):
        problems.append(f"Unknown quantization {quantization!r}; one of {', '.join(QUANTIZATIONS)}.")
    allowed = [*DTYPES, *(getattr(torch, name) for name in DTYPES), None]
    problems += [f"Unknown dtype {dtype!r}; one of {', '.join(DTYPES)}." for dtype in dtypes if dtype not in allowed]
    if quantization == "int8" and dtypes[-1] is not None:
        problems.append(
            f"compute_dtype={dtypes[-1]} cannot be used with int8, which multiplies 8-bit integers made from float16. "
            "Remove it, or use nf4."
        )
    return problems


def _quantized_again(model: Any, config: Any, quantization: str | None) -> list[str]:
    if quantization is None or not (
        getattr(config, "quantization_config", None) or (not isinstance(model, str) and is_quantized(model))
    ):
        return []
    which = repr(model) if isinstance(model, str) else "the model"
    return [
        f"{which} is already quantized ({describe_quantization(config.quantization_config)}) and cannot be quantized "
        f"again to {quantization}. Leave out the reference's quantization, or name the unquantized checkpoint."
    ]


def _device_problems(quantization: str | None, device: torch.device) -> list[str]:
    if quantization is None:
        return []
    import bitsandbytes

    supported = getattr(bitsandbytes, "supported_torch_devices", {"cuda", "cpu"})
    if device.type in supported:
        return []
    return [
        f"bitsandbytes has no kernels for {device.type} ({', '.join(sorted(supported))}): use dtype='bfloat16' for the "
        "reference (ref_dtype) in the place of quantization, or precompute_ref_log_probs."
    ]


def bnb_config(quantization: str, double_quant: bool, compute_dtype: torch.dtype, skipped: list[str]) -> Any:
    """What transformers is to quantize with."""
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


def skipped_layers(kind: Any, config: Any, wanted: Sequence[str]) -> list[str]:
    """The output layer and the layers that were asked for, as transformers takes them.

    Raises:
        InputError: a name fits no linear layer, or none is left to quantize.
    """
    from transformers.quantizers.quantizers_utils import should_convert_module

    make = getattr(kind, "from_config", kind)  # an auto class is not called
    with torch.device("meta"):
        skeleton = make(copy.deepcopy(config))
    head = skeleton.get_output_embeddings()
    heads = [name for name, module in skeleton.named_modules() if module is head]
    layers = [
        name for name, module in skeleton.named_modules() if type(module) is torch.nn.Linear or _is_conv1d(module)
    ]
    problems = [
        f"ref_skip_modules: {name!r} is the name or the end of no linear layer of {kind.__name__}; it has "
        f"{', '.join(dict.fromkeys(layer.rsplit('.', 1)[-1] for layer in layers))}."
        for name in wanted
        if all(should_convert_module(layer, [name]) for layer in layers)
    ]
    skipped = [*heads, *wanted]
    if not problems and not any(should_convert_module(layer, skipped) for layer in layers):
        problems.append(f"{kind.__name__} has no linear layer left to quantize; leave the quantization out.")
    if problems:
        raise InputError(*problems)
    return skipped


def _is_conv1d(module: Any) -> bool:
    return type(module).__name__ == "Conv1D"


def checkpoint(name: str, revision: str | None, from_pretrained: Mapping[str, Any]) -> tuple[Any, Any]:
    """Configuration and class of a checkpoint, without its weights."""
    import transformers

    passed = ("trust_remote_code", "token", "cache_dir", "subfolder", "local_files_only", "code_revision")
    settings = {key: from_pretrained[key] for key in passed if key in from_pretrained}
    try:
        config = transformers.AutoConfig.from_pretrained(name, revision=revision, **settings)
    except (OSError, ValueError) as error:
        raise InputError(f"The reference {name} could not be found: {error}") from error
    kind = getattr(transformers, (config.architectures or [""])[0], None)
    return config, kind or transformers.AutoModelForCausalLM


@contextlib.contextmanager
def unsharded_loading() -> Iterator[None]:
    """Inside, transformers loads all weights of a model on every process, whatever FSDP or ZeRO-3 are to spread."""
    from transformers.integrations import deepspeed

    zero, lean = deepspeed._hf_deepspeed_config_weak_ref, os.environ.get(_LEAN)
    deepspeed._hf_deepspeed_config_weak_ref = None
    os.environ[_LEAN] = "false"
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = zero
        os.environ.pop(_LEAN)
        if lean is not None:
            os.environ[_LEAN] = lean


def _is_zero3() -> bool:
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    return is_deepspeed_zero3_enabled()


_LEAN = "FSDP_CPU_RAM_EFFICIENT_LOADING"


class _NoCastNotes(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "inputs will be cast" not in record.getMessage()


def _mute_int8_casts() -> None:
    # bitsandbytes says so at every layer of every forward, and it is how int8 works.
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    if not any(isinstance(existing, _NoCastNotes) for existing in logger.filters):
        logger.addFilter(_NoCastNotes())
