"""Load a reference that differs from a plain copy of the policy: quantized, in another dtype, another checkpoint.

A reference only runs forward, so it is loaded frozen, in evaluation mode, and unsharded on its process's device.
`skipped_layers` says what is never quantized.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..._trl import without_adapter
from ..._trl.unsharded import shards_while_loading, unsharded_loading
from ...checks.configuration import model_class, read_configuration
from ...errors import InputError
from ..config import DTYPES, QUANTIZATIONS
from ..correction.fit import check
from ..correction.sequences import of_rows, within_memory
from ..correction.weights import correct
from ..identity.files import loads_files_as_they_are
from ..identity.unchanged import checksums
from .clone import from_memory
from .memory import describe_quantization
from .quantization import bnb_config, disable_cpu_repacking, is_quantized, mute_int8_casts, skipped_layers

_SOURCE = "_reference_source"


@dataclass(frozen=True, slots=True)
class Source:
    """The origin of a reference: a checkpoint by name, or the weights of a model in memory."""

    name: str | None = None
    revision: str | None = None
    instance: Any = None
    """Weak reference to the model in memory."""
    checksums: Any = None
    """Of the weights of a checkpoint, as they were loaded."""
    by_files: bool = True
    """Whether the checkpoint's weight files hold the weights as they are."""

    def is_start_of(self, policy: Any, revision: str | None) -> bool:
        """Whether a policy, given by name or as an instance, starts from the same weights."""
        if isinstance(policy, str):
            return policy == self.name and revision == self.revision
        return self.instance is not None and self.instance() is policy


def source_of(reference: Any) -> Source | None:
    """The origin of a model that `load_reference` made; None for any other model."""
    return getattr(reference, _SOURCE, None)


def files_of(reference: Any) -> tuple[str | None, str | None]:
    """Name and revision of the checkpoint that holds a model's weights as they are now; None where none does.

    Call this before an engine moves the weights.
    """
    source = source_of(reference)
    if source is None or source.name is None or not source.by_files or source.checksums != checksums(reference):
        return None, None
    return source.name, source.revision


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
    correction_rank: int = 0,
    correction_data: Iterable[Any] | None = None,
    **from_pretrained: Any,
) -> Any:
    """A frozen reference model, quantized or not; hand it to `DPOExtTrainer` as `ref_model`.

    Args:
        model: a hub id or folder, or a model in memory, whose weights as they are now are copied (an adapter is merged
            into the copy).
        quantization: `nf4` or `fp4` (4 bits per weight of the linear layers), `int8`, or None.
        double_quant: quantize the scales of a 4-bit model too.
        compute_dtype: dtype in which a 4-bit model multiplies; that of its other weights by default.
        skip_modules: linear layers to leave as they are, by name or its end. The output layer always is left, and so is
            all that stands outside the language model of a model of images (vision tower, projector).
        dtype: dtype of all weights that are not quantized; float32, or that of the instance, by default.
        revision: of the checkpoint.
        device: where it goes, whole; this process's device by default.
        correction_rank: rank of the term beside each quantized layer that corrects its error; 0 for none, 40 is usual.
        correction_data: what the terms are fitted on: sequences of token ids such as answers after their prompts, rows
            with `input_ids`, or rows of a preference dataset that TRL has tokenized.
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
        config, kind = model.config, type(without_adapter(model))
    problems = [*_setting_problems(quantization, dtype, compute_dtype), *_quantized_again(model, config, quantization)]
    problems += [
        *_device_problems(quantization, place),
        *_correction_problems(quantization, correction_rank, correction_data),
    ]
    if problems:
        raise InputError(*problems)
    plain = as_dtype(dtype) or (torch.float32 if by_name else without_adapter(model).dtype)
    settings = {"dtype": plain, **from_pretrained}
    if not shards_while_loading():  # which spreads an unquantized model by itself
        settings["device_map"] = {"": place}
    if quantization:
        skipped = skipped_layers(kind, config, skip_modules, "skip_modules")
        settings["device_map"] = {"": place}
        settings["quantization_config"] = bnb_config(
            quantization, double_quant, as_dtype(compute_dtype) or plain, skipped
        )
    with unsharded_loading() if quantization else contextlib.nullcontext():
        if by_name:
            reference = kind.from_pretrained(model, revision=revision, **settings)
            source = Source(name=model, revision=revision, by_files=loads_files_as_they_are(from_pretrained))
        else:
            reference = from_memory(kind, model, settings)
            source = Source(instance=weakref.ref(model))
    loaded = checksums(reference) if source.name is not None else None
    setattr(reference, _SOURCE, dataclasses.replace(source, checksums=loaded))
    if quantization:
        _warn_of_the_rest(reference, quantization)
    freeze(reference)
    if correction_rank:
        rows = within_memory(of_rows(correction_data or ()))
        check(reference, correction_rank, sum(map(len, rows)), "correction_rank", "Pass more correction_data")
        start = model
        if by_name or hasattr(model, "peft_config"):
            with unsharded_loading():
                start = load_reference(model, dtype=plain, revision=revision, device="cpu", **from_pretrained)
        correct(reference, start, correction_rank, rows)
    return reference


def _warn_of_the_rest(reference: Any, quantization: str) -> None:
    """Warn if most weights are outside linear layers, as in models that fuse their experts into one tensor."""
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
            f"{quantization} leaves {rest / (rest + layers):.0%} of the weights unquantized, besides embeddings: "
            f"bitsandbytes quantizes linear layers only, and {type(reference).__name__} keeps most weights elsewhere, "
            "outside its language model, or in modules that are skipped. This saves little memory; a stored reference "
            "(precompute_ref_log_probs) needs none.",
            stacklevel=3,
        )


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A torch dtype, given by name or as a dtype; None stays None."""
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def freeze(reference: Any) -> Any:
    """Turn off gradients and dropout of a reference."""
    reference.requires_grad_(False)
    disable_cpu_repacking(reference)
    mute_int8_casts()
    return reference.eval()


def _correction_problems(quantization: str | None, rank: int, data: Any) -> list[str]:
    if rank < 0:
        return [f"correction_rank must be 0 (no correction) or more; got {rank}."]
    if not rank:
        return [] if data is None else ["correction_data has no effect without correction_rank. Pass both."]
    problems = []
    if quantization is None:
        problems.append(f"correction_rank={rank} has no error to correct: set quantization to nf4, fp4 or int8.")
    if data is None:
        problems.append(
            f"correction_rank={rank} needs correction_data. Pass sequences of token ids like those that will be scored."
        )
    return problems


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
        "reference (ref_dtype) instead of quantization, or precompute_ref_log_probs."
    ]


def checkpoint(name: str, revision: str | None, from_pretrained: Mapping[str, Any]) -> tuple[Any, Any]:
    """The configuration and the class of a checkpoint, without loading its weights."""
    try:
        config = read_configuration(name, from_pretrained, revision)
    except (OSError, ValueError) as error:
        raise InputError(f"The reference {name} could not be found: {error}") from error
    return config, model_class(config)
