"""Flags of the reference model: its checkpoint, its precision, its quantization, how its error is measured."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..core.registry import get_loss

if TYPE_CHECKING:
    from ..core.mixture import LossMixture

QUANTIZATIONS = ("nf4", "fp4", "int8")
FOUR_BIT = ("nf4", "fp4")
DTYPES = ("float32", "bfloat16", "float16")
FEWEST_PAIRS = 4
"""Fewest measured pairs that a calibration is fitted on."""


def _flag(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(kw_only=True)
class ReferenceModelOptions:
    """Fields of `DPOExtConfig` about the reference model."""

    ref_quantization: str | None = _flag(
        None,
        f"Keep the reference quantized by bitsandbytes: {', '.join(QUANTIZATIONS)}. Its output layer never is. How far "
        "it is from the policy's start is measured and logged as reference/drift_*.",
    )
    ref_double_quant: bool = _flag(False, "Quantize the scales of a 4-bit reference too: 0.4 bits per weight less.")
    ref_compute_dtype: str | None = _flag(
        None,
        "Precision in which a 4-bit reference multiplies. Default: that of mixed precision, else that of its "
        "unquantized layers.",
    )
    ref_skip_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "Layers of a quantized reference that stay unquantized, by name or its end; the output "
            "layer always does."
        },
    )
    ref_dtype: str | None = _flag(
        None, f"Precision of the reference's unquantized weights: {', '.join(DTYPES)}. Default: the policy's."
    )
    ref_model_name_or_path: str | None = _flag(
        None,
        "Another model as reference (a hub id or a folder), with the policy's vocabulary. Default: the policy's start.",
    )
    ref_model_revision: str | None = _flag(
        None, "Revision of the reference's checkpoint. Default: the policy's where the checkpoint is the same."
    )
    ref_drift_num_pairs: int = _flag(
        16, "Number of pairs on which a quantized reference, or one of ref_dtype, is compared with what it stands for."
    )
    ref_calibrate: bool = _flag(
        False, "Remove from the reference's log-probs the shift that is measured on ref_drift_num_pairs."
    )

    @property
    def describes_reference(self) -> bool:
        """Whether any flag asks for another reference than TRL would load by itself."""
        return bool(self.ref_quantization or self.ref_dtype or self.changes_checkpoint)

    @property
    def changes_checkpoint(self) -> bool:
        """Whether the reference comes from another checkpoint than the policy."""
        return bool(self.ref_model_name_or_path or self.ref_model_revision)


def reference_model_problems(args: Any, mixture: LossMixture) -> list[str]:
    """What is wrong with these flags, given the losses."""
    if not mixture.needs_reference:
        chosen = ", ".join(args.loss_type)
        return [
            f"{flag}={getattr(args, flag)} has nothing to do: {chosen} needs no reference here. Remove it."
            for flag, unset in _UNSET.items()
            if getattr(args, flag) != unset
        ]
    problems = [*_precision_problems(args), *_drift_problems(args)]
    if args.ref_quantization in QUANTIZATIONS and importlib.util.find_spec("bitsandbytes") is None:
        problems.append(f"ref_quantization={args.ref_quantization!r} needs bitsandbytes: pip install bitsandbytes.")
    if args.ref_quantization and args.sync_ref_model:
        problems.append(
            "sync_ref_model=True copies the policy's weights into the reference, and quantized weights cannot take "
            "them. Leave out ref_quantization; ref_dtype='bfloat16' saves memory and can be synchronized."
        )
    if args.ref_quantization and not args.ref_calibrate:
        problems += absolute_reward_problems(mixture, f"ref_quantization={args.ref_quantization!r}")
    return problems


_UNSET = {
    name: flag.default
    for name, flag in ReferenceModelOptions.__dataclass_fields__.items()
    if name not in ("ref_drift_num_pairs",)  # its default is a number that is simply not used
}


def _precision_problems(args: Any) -> list[str]:
    kind, problems = args.ref_quantization, []
    if kind is not None and kind not in QUANTIZATIONS:
        problems.append(f"Unknown ref_quantization {kind!r}; one of {', '.join(QUANTIZATIONS)}.")
    for flag in ("ref_dtype", "ref_compute_dtype"):
        if getattr(args, flag) not in (None, *DTYPES):
            problems.append(f"Unknown {flag} {getattr(args, flag)!r}; one of {', '.join(DTYPES)}.")
    for flag in ("ref_double_quant", "ref_compute_dtype"):
        value = getattr(args, flag)
        if value and kind == "int8":
            problems.append(
                f"{flag}={value} cannot be used with ref_quantization 'int8', which multiplies 8-bit integers made "
                "from float16. Remove it, or use nf4."
            )
        elif value and kind is None:
            problems.append(
                f"{flag}={value} is for a 4-bit reference; set ref_quantization to nf4 or fp4, or remove it."
            )
    if args.ref_skip_modules and kind is None:
        problems.append(f"ref_skip_modules={args.ref_skip_modules} is for a quantized reference; set ref_quantization.")
    return problems


def _drift_problems(args: Any) -> list[str]:
    problems = []
    if args.ref_drift_num_pairs < 0:
        problems.append(f"ref_drift_num_pairs must be 0 (do not measure) or more; got {args.ref_drift_num_pairs}.")
    if args.ref_calibrate and not (args.ref_quantization or args.ref_dtype):
        problems.append(
            "ref_calibrate=True has no error to remove: set ref_quantization or ref_dtype, or leave it out."
        )
    elif args.ref_calibrate and args.ref_drift_num_pairs < FEWEST_PAIRS:
        problems.append(
            f"ref_calibrate=True needs ref_drift_num_pairs >= {FEWEST_PAIRS}; got {args.ref_drift_num_pairs}."
        )
    return problems


def absolute_reward_problems(mixture: LossMixture, reference: str, remedy: str = "Set ref_calibrate=True") -> list[str]:
    """Losses that a shift common to both sides moves, as quantization does.

    Args:
        mixture: the run's losses.
        reference: what is used, in words.
        remedy: how to have the shift removed.
    """
    absolute = [term.variant.name for term in mixture.terms if not term.variant.shift_invariant]
    absolute += [f"trl:{name}" for name in mixture.host_names if not _is_shift_invariant(name)]
    if not absolute or mixture.reference_free:
        return []
    return [
        f"{reference} cannot be used with {', '.join(absolute)} as it is: they read each side's reward, which "
        "quantization shifts by several nats (in a difference of two rewards most of that cancels). "
        f"{remedy} to remove the shift that is measured, or store an unquantized reference "
        "(precompute_ref_log_probs)."
    ]


def _is_shift_invariant(name: str) -> bool:
    """Return True if a loss of TRL's is known to be unmoved by a shift of the reference that both sides share."""
    try:
        return get_loss(name).shift_invariant
    except ValueError:
        return False
