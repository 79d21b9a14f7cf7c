"""Which options of a run do not go with its losses."""

from __future__ import annotations

import math
from typing import Any

from .core.mixture import LossMixture
from .core.pairs import NEEDS, Need
from .core.registry import list_losses
from .core.transforms import F_DIVERGENCES


def loss_option_problems(args: Any, mixture: LossMixture) -> list[str]:
    """Return what is wrong with the options that change what losses read, given the losses."""
    return [
        *_divergence_problems(args, mixture),
        *_ld_alpha_problems(args, mixture),
        *_weighting_problems(args, mixture),
        *_reference_problems(args, mixture),
    ]


def _divergence_problems(args: Any, mixture: LossMixture) -> list[str]:
    kind = args.f_divergence_type
    if kind not in F_DIVERGENCES:
        return [f"Unknown f_divergence_type {kind!r}; one of {', '.join(F_DIVERGENCES)}."]
    problems = []
    variants = [term.variant for term in mixture.terms]
    if kind == "forward_kl_linear" and mixture.host_names:
        problems.append(
            f"f_divergence_type={kind!r} cannot be used with losses left to TRL ({', '.join(mixture.host_names)}): TRL "
            "does not have it. Name them without trl:."
        )
    if kind != "reverse_kl":
        # The divergence leaves a term beta * log Z(prompt) that cancels in a difference of scores and nowhere else.
        refused = [v.name for v in variants if v.needs_reference and not v.f_divergence]
        if refused:
            able = ", ".join(v.name for v in list_losses() if v.f_divergence)
            problems.append(
                f"f_divergence_type={kind!r} cannot be used with {', '.join(refused)}: only losses of the difference "
                f"of two scores support it ({able}). Remove it, or choose one of these."
            )
        elif not mixture.host_names and not any(v.f_divergence for v in variants):
            problems.append(
                f"f_divergence_type={kind!r} is not used by any chosen loss: none reads a reference. Remove it."
            )
    coefficient, default = args.f_alpha_divergence_coef, args.__dataclass_fields__["f_alpha_divergence_coef"].default
    if kind != "alpha_divergence" and coefficient != default:
        problems.append(
            f"f_alpha_divergence_coef={coefficient} has no effect without "
            "f_divergence_type='alpha_divergence'. Set that, or remove it."
        )
    if not math.isfinite(coefficient):
        problems.append(f"f_alpha_divergence_coef must be finite; got {coefficient}.")
    return problems


def _ld_alpha_problems(args: Any, mixture: LossMixture) -> list[str]:
    problems, variants = [], [term.variant for term in mixture.terms]
    if args.ld_alpha is not None and not 0 <= args.ld_alpha <= 1:
        problems.append(
            f"ld_alpha must be between 0 and 1; got {args.ld_alpha} (weight of the tokens beyond the shorter side's "
            "length)."
        )
    # ld_alpha weights the sum over tokens, which a loss of single tokens does not take.
    sums = [v.name for v in variants if Need.TOKENS not in v.needs or Need.REFERENCE in v.needs]
    if args.ld_alpha is not None and not sums and not mixture.host_names:
        problems.append(
            f"ld_alpha={args.ld_alpha} is not used by any chosen loss: {', '.join(v.name for v in variants)} read "
            "single tokens, not summed log-probs. Remove it."
        )
    return problems


def _weighting_problems(args: Any, mixture: LossMixture) -> list[str]:
    problems = []
    if args.label_smoothing_factor:
        problems.append(
            f"label_smoothing_factor={args.label_smoothing_factor} has no effect: it belongs to transformers' own "
            "loss, which DPO replaces. Set label_smoothing with a loss that takes it, such as cdpo, or remove it."
        )
    chosen = [name for name in ("use_weighting", "weight_column") if getattr(args, name)]
    sorted_losses = [term.variant.name for term in mixture.terms if not term.variant.order_preserving]
    if chosen and sorted_losses:
        problems.append(
            f"{' and '.join(chosen)} cannot be used with {', '.join(sorted_losses)}, which sorts the batch: a weight "
            "would apply to another pair's loss. Remove one of the two."
        )
    if args.wpo_clamp and not args.use_weighting:
        problems.append("wpo_clamp=True has no effect without use_weighting=True. Set that, or remove it.")
    if args.weight_column and mixture.host_names:
        problems.append(
            "weight_column cannot be used with losses left to TRL "
            f"({', '.join(mixture.host_names)}). Name them without trl:."
        )
    return problems


def _reference_problems(args: Any, mixture: LossMixture) -> list[str]:
    problems = []
    chosen = ", ".join(args.loss_type)
    reads = any(term.variant.needs_reference for term in mixture.terms) or bool(mixture.host_names)
    if args.reference_free and mixture.host_names:
        problems.append(
            "reference_free=True cannot be used with losses left to TRL "
            f"({', '.join(mixture.host_names)}). Name them without trl:."
        )
    elif args.reference_free and not reads:
        problems.append(f"reference_free=True has no effect: {chosen} needs no reference. Remove it.")
    if not mixture.needs_reference:
        for name in ("precompute_ref_log_probs", "sync_ref_model"):
            if getattr(args, name):
                problems.append(f"{name}=True has no effect: this run of {chosen} needs no reference. Remove it.")
    return [*problems, *_live_reference_problems(args, mixture)]


def _live_reference_problems(args: Any, mixture: LossMixture) -> list[str]:
    """Return the problems of losses that need more of the reference than stored log-probs, or than zeros."""
    problems = []
    for need, words in ((need, info.live) for need, info in NEEDS.items() if info.live):
        names = ", ".join(term.variant.name for term in mixture.terms if need in term.variant.needs)
        if names and args.precompute_ref_log_probs and not args.reference_free:
            problems.append(
                f"precompute_ref_log_probs=True cannot be used with {names}: the store holds token log-probs, and "
                f"{names} needs {words}. Remove one of the two."
            )
        if names and args.reference_free:
            problems.append(
                f"reference_free=True cannot be used with {names}, which needs {words}. Remove one of the two."
            )
    return problems
