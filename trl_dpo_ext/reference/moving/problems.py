"""What keeps a reference from being moved toward the policy, known before training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..._trl import adapter_kind, planned_engine
from ..model.quantization import is_quantized

Shapes = Mapping[str, tuple[int, ...]]
"""Parameters by name."""


def moving_reference_problems(args: Any, reference: Any, adapter: Any) -> list[str]:
    """Return why the reference that a trainer's arguments ask for cannot move.

    Args:
        args: the configuration.
        reference: the model or description that was given; None for the policy's start.
        adapter: the configuration of the adapter that trains; None for full fine-tuning.
    """
    if adapter is None:
        quantized = reference is not None and hasattr(reference, "config") and is_quantized(reference)
        return [_QUANTIZED] if quantized else []
    if reference is not None:
        return [
            "sync_ref_model=True cannot move another model toward an adapter: the reference has to be the adapter's "
            "start. Remove ref_model and the ref_* options, or merge the adapter and train all weights."
        ]
    return _adapter_problems(adapter, args)


_QUANTIZED = (
    "sync_ref_model=True cannot be used with a quantized ref_model: the policy's weights cannot be copied into "
    "quantized ones. Pass it unquantized; bfloat16 saves memory too."
)


def _adapter_problems(adapter: Any, args: Any) -> list[str]:
    kind = adapter_kind(adapter)
    if adapter.is_prompt_learning or adapter.is_adaption_prompt:
        return [f"sync_ref_model=True cannot be used with {kind}: virtual tokens cannot be mixed. Use LoRA."]
    problems = []
    bias = getattr(adapter, "bias", "none")
    if bias not in ("none", None, False, True):
        problems.append(
            f"sync_ref_model=True cannot be used with bias={bias!r}, which trains the base's biases in place, so that "
            "the reference would move at every step. Set bias='none'."
        )
    if getattr(adapter, "target_parameters", None):
        problems.append(
            "sync_ref_model=True cannot be used with target_parameters, of which not every version of peft can keep a "
            "second adapter. Use target_modules."
        )
    if args.ref_model_mixup_alpha == 1:
        return problems
    if kind != "LORA":
        problems.append(
            f"sync_ref_model=True with ref_model_mixup_alpha={args.ref_model_mixup_alpha} cannot be used with {kind}: "
            "only LoRA's weight changes are mixed. Set ref_model_mixup_alpha=1, or use LoRA."
        )
    elif getattr(adapter, "use_dora", False):
        problems += variant_problems(["DoRA"], args.ref_model_mixup_alpha)
    return [*problems, *split_problems(planned_engine(args).splits_weights, args.ref_model_mixup_alpha)]


def split_problems(split: bool, alpha: float) -> list[str]:
    """Return one problem if an adapter that is split over processes is to be mixed softly."""
    if not split or alpha == 1:
        return []
    return [
        f"ref_model_mixup_alpha={alpha} cannot be used with an adapter under FSDP and ZeRO-3: the rank of the mixed "
        "adapter grows, and weights that are split over processes cannot. Set ref_model_mixup_alpha=1, or use DDP or "
        "ZeRO-2."
    ]


def variant_problems(variants: list[str], alpha: float) -> list[str]:
    """Return one problem if a variant of LoRA cannot be mixed softly."""
    if not variants or alpha == 1:
        return []
    return [
        f"sync_ref_model=True with ref_model_mixup_alpha={alpha} cannot be used with {', '.join(variants)}, whose "
        "weight changes are not low-rank products, so that mixing two of them is not an adapter. Set "
        "ref_model_mixup_alpha=1, or use plain LoRA."
    ]


def mismatches(policy: Shapes, reference: Shapes) -> list[str]:
    """Return one problem if policy and reference do not have the same weights, by name and shape."""
    different = sorted(n for n in policy.keys() | reference.keys() if policy.get(n) != reference.get(n))
    if not different:
        return []
    first = different[0]
    return [
        f"sync_ref_model=True needs a reference with the policy's architecture: {len(different)} weights differ "
        f"(first: {first}, {policy.get(first, 'absent')} in the policy and {reference.get(first, 'absent')} in the "
        "reference). Leave ref_model out, or remove sync_ref_model."
    ]
