"""Options of a reference that follows the policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...option_docs import document_options

if TYPE_CHECKING:
    from ...core.mixture import LossMixture


@document_options
@dataclass(kw_only=True)
class MovingReferenceOptions:
    """Options of `DPOExtConfig` for a reference that follows the policy (TR-DPO). The fields are TRL's.

    Args:
        > Moving reference

        sync_ref_model: Move the reference toward the policy during training (TR-DPO). With LoRA, the reference is a
            second, frozen copy of the adapter. What has moved is saved in checkpoints and restored on resume.
        ref_model_mixup_alpha: Share of the policy in the new reference, above 0 and at most 1: alpha * policy +
            (1 - alpha) * reference. LoRA's weight changes are mixed exactly, which raises the rank of the reference's
            adapter at each move; 1 copies the adapter.
        ref_model_sync_steps: Number of optimizer steps between two moves of the reference.
    """

    sync_ref_model: bool = False
    ref_model_mixup_alpha: float = 0.6
    ref_model_sync_steps: int = 512


def moving_option_problems(args: Any, mixture: LossMixture) -> list[str]:
    """Return what is wrong with the options of a moving reference, given the losses."""
    if not args.sync_ref_model or not mixture.needs_reference:
        return []
    problems, alpha, every = [], args.ref_model_mixup_alpha, args.ref_model_sync_steps
    if not 0 < alpha <= 1:
        problems.append(
            f"ref_model_mixup_alpha must be above 0 and at most 1, which replaces the reference by the policy; got "
            f"{alpha}."
        )
    if every < 1:
        problems.append(f"ref_model_sync_steps must be at least 1; got {every}.")
    if args.precompute_ref_log_probs:
        problems.append(
            "precompute_ref_log_probs=True cannot be used with sync_ref_model=True: the reference would change, "
            "but not its stored log-probs. Remove one of the two."
        )
    if args.ref_quantization:
        problems.append(
            "sync_ref_model=True cannot be used with ref_quantization: the policy's weights cannot be copied into "
            "quantized ones. Remove ref_quantization; ref_dtype='bfloat16' saves memory too and can be synchronized."
        )
    elif args.ref_calibrate:
        problems.append(
            "ref_calibrate=True cannot be used with sync_ref_model=True: the shift is measured once, and changes when "
            "the reference moves. Remove ref_calibrate."
        )
    return problems


def unused_options(args: Any) -> list[str]:
    """Return one warning if options of a moving reference are set for one that stays."""
    fields = MovingReferenceOptions.__dataclass_fields__
    changed = [
        f"{name}={getattr(args, name)}" for name, field in fields.items() if getattr(args, name) != field.default
    ]
    if args.sync_ref_model or not changed:
        return []
    verb = "has" if len(changed) == 1 else "have"
    return [f"{' and '.join(changed)} {verb} no effect without sync_ref_model=True."]
