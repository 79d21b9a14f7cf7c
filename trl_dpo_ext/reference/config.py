"""Options of the reference: the store of its log-probs, and the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.registry import get_loss
from ..option_docs import document_options

if TYPE_CHECKING:
    from ..core.mixture import LossMixture

QUANTIZATIONS = ("nf4", "fp4", "int8")
FOUR_BIT = ("nf4", "fp4")
DTYPES = ("float32", "bfloat16", "float16")
FEWEST_PAIRS = 4
"""Smallest number of pairs to fit a calibration or a correction on."""


@document_options
@dataclass(kw_only=True)
class StoreOptions:
    """Options of `DPOExtConfig` for the reference store, used with TRL's `precompute_ref_log_probs`.

    Args:
        > Reference store

        ref_store: Directory of the store that `precompute_ref_log_probs` reads and fills. Default: one directory per
            reference under the datasets cache.
        precompute_ref_max_tokens: Largest number of token positions in one batch of the reference pass. Default:
            chosen from the free memory.
    """

    ref_store: str | None = None
    precompute_ref_max_tokens: int | None = None


def store_problems(args: Any, mixture: LossMixture) -> list[str]:
    """Return what is wrong with the store's options, given the losses."""
    problems = []
    limit = args.precompute_ref_max_tokens
    if not args.precompute_ref_log_probs:
        unused = {"ref_store": args.ref_store, "precompute_ref_max_tokens": limit}
        problems += [
            f"{name}={value!r} has no effect without precompute_ref_log_probs=True. Set that, or remove it."
            for name, value in unused.items()
            if value is not None
        ]
    if limit is not None and limit < 1:
        problems.append(f"precompute_ref_max_tokens must be at least 1; got {limit}.")
    return problems


@document_options
@dataclass(kw_only=True)
class ReferenceModelOptions:
    """Options of `DPOExtConfig` for the reference model.

    Args:
        > Reference model

        ref_quantization: Quantize the reference with bitsandbytes: nf4, fp4 or int8. The LM head is never quantized.
            The quantization error is measured before the first step and logged as reference/drift_*.
        ref_double_quant: Quantize the scales of a 4-bit reference too, which saves 0.4 bits per weight.
        ref_compute_dtype: Dtype in which a 4-bit reference multiplies: float32, bfloat16 or float16. Default: the
            mixed-precision dtype if there is one, else the dtype of its unquantized layers.
        ref_skip_modules: Modules of the reference to leave unquantized, by full name or suffix. The LM head is never
            quantized.
        ref_dtype: Dtype of the reference's unquantized weights: float32, bfloat16 or float16. Default: the policy's.
        ref_model_name_or_path: Another model as the reference (Hub id or directory), with the policy's vocabulary.
            Default: the initial policy.
        ref_model_revision: Revision of the reference's checkpoint. Default: the policy's revision if the checkpoint is
            the same.
        ref_drift_num_pairs: Number of pairs on which a reference with `ref_quantization` or `ref_dtype` is compared
            with the original weights before the first step; 0 skips the measurement.
        ref_correction_rank: Correct the error of a reference with `ref_quantization` by a low-rank term beside each
            quantized layer, fitted before the first step; 0 turns it off, 40 is usual.
        ref_correction_pairs: Number of training pairs that `ref_correction_rank` is fitted on: those after the first
            `ref_drift_num_pairs`, on which the remaining error is measured.
        ref_calibrate: Remove the shift measured on `ref_drift_num_pairs` pairs from the reference log-probs.
        verify_reference: Before the first step, compare the log-probs of policy and reference if the reference is the
            policy's start, live or stored; a difference is an error.
    """

    ref_quantization: str | None = None
    ref_double_quant: bool = False
    ref_compute_dtype: str | None = None
    ref_skip_modules: list[str] | None = None
    ref_dtype: str | None = None
    ref_model_name_or_path: str | None = None
    ref_model_revision: str | None = None
    ref_drift_num_pairs: int = 16
    ref_correction_rank: int = 0
    ref_correction_pairs: int = 32
    ref_calibrate: bool = False
    verify_reference: bool = True

    @property
    def describes_reference(self) -> bool:
        """Whether any option asks for a reference that TRL would not load by itself."""
        return bool(self.ref_quantization or self.ref_dtype or self.changes_checkpoint)

    @property
    def changes_checkpoint(self) -> bool:
        """Whether the reference has a checkpoint of another name or revision than the policy's."""
        return bool(self.ref_model_name_or_path or self.ref_model_revision)


def reference_model_problems(args: Any, mixture: LossMixture) -> list[str]:
    """Return what is wrong with the reference model's options, given the losses."""
    if not mixture.needs_reference:
        chosen = ", ".join(args.loss_type)
        return [
            f"{name}={getattr(args, name)} has no effect: this run of {chosen} needs no reference. Remove it."
            for name, unset in _UNSET.items()
            if getattr(args, name) != unset
        ]
    problems = [*_precision_problems(args), *_drift_problems(args), *_correction_problems(args)]
    measured = args.ref_correction_rank > 0 and args.ref_drift_num_pairs >= FEWEST_PAIRS
    if args.ref_quantization and not args.ref_calibrate and not measured:
        problems += absolute_reward_problems(mixture, f"ref_quantization={args.ref_quantization!r}")
    return problems


_UNSET = {
    name: option.default
    for name, option in ReferenceModelOptions.__dataclass_fields__.items()
    if name not in ("ref_drift_num_pairs", "ref_correction_pairs", "verify_reference")  # which are simply not used
}


def _precision_problems(args: Any) -> list[str]:
    kind, problems = args.ref_quantization, []
    if kind is not None and kind not in QUANTIZATIONS:
        problems.append(f"Unknown ref_quantization {kind!r}; one of {', '.join(QUANTIZATIONS)}.")
    for name in ("ref_dtype", "ref_compute_dtype"):
        if getattr(args, name) not in (None, *DTYPES):
            problems.append(f"Unknown {name} {getattr(args, name)!r}; one of {', '.join(DTYPES)}.")
    for name in ("ref_double_quant", "ref_compute_dtype"):
        value = getattr(args, name)
        if value and kind == "int8":
            problems.append(
                f"{name}={value} cannot be used with ref_quantization='int8', which multiplies 8-bit integers made "
                "from float16. Remove it, or use nf4."
            )
        elif value and kind is None:
            problems.append(
                f"{name}={value} is for a 4-bit reference; set ref_quantization to nf4 or fp4, or remove it."
            )
    if args.ref_skip_modules and kind is None:
        problems.append(
            f"ref_skip_modules={args.ref_skip_modules} is for a quantized reference; set ref_quantization, or "
            "remove it."
        )
    return problems


def _drift_problems(args: Any) -> list[str]:
    problems = []
    if args.ref_drift_num_pairs < 0:
        problems.append(f"ref_drift_num_pairs must be 0 (no measurement) or more; got {args.ref_drift_num_pairs}.")
    if args.ref_calibrate and not (args.ref_quantization or args.ref_dtype):
        problems.append("ref_calibrate=True has no error to remove: set ref_quantization or ref_dtype, or remove it.")
    elif args.ref_calibrate and args.ref_drift_num_pairs < FEWEST_PAIRS:
        problems.append(
            f"ref_calibrate=True needs ref_drift_num_pairs >= {FEWEST_PAIRS}; got "
            f"{args.ref_drift_num_pairs}. Raise it, or remove ref_calibrate."
        )
    return problems


def _correction_problems(args: Any) -> list[str]:
    rank, pairs = args.ref_correction_rank, args.ref_correction_pairs
    if rank < 0:
        return [f"ref_correction_rank must be 0 (no correction) or more; got {rank}."]
    if not rank:
        return []
    problems = []
    if not args.ref_quantization:
        problems.append(
            f"ref_correction_rank={rank} has no error to correct: set ref_quantization to nf4, fp4 or int8, or remove "
            "it."
        )
    if pairs < FEWEST_PAIRS:
        problems.append(
            f"ref_correction_rank={rank} needs pairs to fit it to: set ref_correction_pairs to {FEWEST_PAIRS} or more; "
            f"got {pairs}."
        )
    return problems


def absolute_reward_problems(mixture: LossMixture, reference: str, remedy: str = "Set ref_calibrate=True") -> list[str]:
    """Return one problem if the mixture has losses that read absolute rewards, which quantization shifts.

    Args:
        mixture: the run's losses.
        reference: the quantized reference, as the error names it.
        remedy: how to have the shift removed.
    """
    absolute = [term.variant.name for term in mixture.terms if not term.variant.shift_invariant]
    absolute += [f"trl:{name}" for name in mixture.host_names if not _is_shift_invariant(name)]
    if not absolute or mixture.reference_free:
        return []
    return [
        f"{reference} cannot be used with {', '.join(absolute)} without calibration: these losses read each side's "
        "reward, which quantization shifts by several nats (most of the shift cancels in a difference of two rewards). "
        f"{remedy} to remove the measured shift, or use the stored log-probs of an unquantized reference "
        "(precompute_ref_log_probs)."
    ]


def _is_shift_invariant(name: str) -> bool:
    """Return True if a loss of TRL's is known to be unmoved by a shift of the reference that both sides share."""
    try:
        return get_loss(name).shift_invariant
    except ValueError:
        return False
