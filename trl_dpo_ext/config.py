"""The configuration of a run: TRL's `DPOConfig`, and a field for each hyperparameter that a loss variant declares."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trl import DPOConfig

from .core.hyperparameters import SHARED, DeclaredHyper
from .core.loss_spec import LossSpec
from .core.mixture import LossMixture, MixtureParser
from .core.pairs import NEEDS, Need
from .core.registry import list_losses
from .core.transforms import F_DIVERGENCES
from .errors import InputError
from .estimate.config import PitfallOptions, pitfall_problems
from .forward.config import ForwardOptions, forward_problems
from .reference.config import ReferenceModelOptions, reference_model_problems
from .reference.store_flags import StoreOptions, store_problems


def owned_hyperparameters() -> dict[str, tuple[DeclaredHyper, list[str]]]:
    """Every owned hyperparameter by name, with the variants that take it."""
    found: dict[str, tuple[DeclaredHyper, list[str]]] = {}
    for variant in list_losses():
        for parameter in variant.owned:
            found.setdefault(parameter.name, (parameter, []))[1].append(variant.name)
    return found


def _field_of(parameter: DeclaredHyper) -> tuple[str, Any, Any]:
    # None means "not set": the variant's own default applies, and setting it without using the variant is an error.
    return (parameter.name, parameter.type | None, field(default=None, metadata={"help": _escaped(parameter.summary)}))


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


_VariantFields = dataclasses.make_dataclass(
    "_VariantFields",
    [_field_of(parameter) for parameter, _ in owned_hyperparameters().values()],
    namespace={"__module__": __name__},
    kw_only=True,  # so that DPOExtConfig("out") is DPOConfig("out")
)

_DEFAULTS = {f.name: f.default for f in dataclasses.fields(DPOConfig)}


@dataclass
class DPOExtConfig(DPOConfig, _VariantFields, StoreOptions, ReferenceModelOptions, ForwardOptions, PitfallOptions):  # type: ignore[misc, valid-type]
    """Configuration of [`DPOExtTrainer`]: everything in TRL's `DPOConfig`, and what is listed here.

    Each hyperparameter that a loss variant declares is a field too, named `<variant>_<word>`, for instance
    `dpop_lambda`; `trl-dpo-ext losses` lists them with their defaults.

    Args:
        loss_type: one or several losses by name. A loss can carry hyperparameters of its own, `"sigmoid:beta=1.0"` or
            in YAML `- sigmoid: {beta: 1.0}`. `trl:<name>` leaves the loss to TRL's own code.
        reference_free: read the reference log-probs as zero; no reference is loaded.
        wpo_clamp: with `use_weighting`, limit the weight of a pair to 1, as WPO's authors do and TRL does not.
        weight_column: dataset column whose value multiplies the loss of each pair.

    Raises:
        InputError: (a ValueError) listing everything that is wrong with the losses at once, before a model is loaded.

    Example:
        >>> from trl_dpo_ext import DPOExtConfig
        >>> config = DPOExtConfig(output_dir="out", loss_type=["sigmoid:beta=1.0", "dpop"], dpop_lambda=5.0, bf16=False)
        >>> config.loss_mixture().describe()
        '1 x sigmoid(beta=1.0) + 1 x dpop(beta=0.1, dpop_lambda=5.0)'
    """

    # TRL's fields, with help that names what is here and not only what is there.
    loss_type: list[str] = field(
        default_factory=lambda: ["sigmoid"],
        metadata={
            "help": "One or several losses by name; `trl-dpo-ext losses` lists them. `name:beta=1.0,...` gives one "
            "hyperparameters of its own, `trl:name` leaves one to TRL's own code."
        },
    )
    f_divergence_type: str = field(
        default="reverse_kl",
        metadata={
            "help": "Divergence between policy and reference, for losses of the difference of two scores: "
            f"{', '.join(F_DIVERGENCES)}."
        },
    )
    reference_free: bool = field(
        default=False, metadata={"help": "Read the reference log-probs as zero; no reference is loaded."}
    )
    wpo_clamp: bool = field(
        default=False,
        metadata={"help": "With use_weighting, limit a pair's weight to 1, as WPO's authors do and TRL does not."},
    )
    weight_column: str | None = field(
        default=None, metadata={"help": "Dataset column whose value multiplies the loss of each pair."}
    )

    def __post_init__(self) -> None:
        specs: Any = self.loss_type
        self.loss_type = [LossSpec.of(spec) for spec in ([specs] if isinstance(specs, (str, Mapping)) else specs)]
        mixture, problems = self._parse_losses()
        if mixture:
            problems = self._stage_problems(mixture)
        if problems:
            raise InputError(*problems)
        super().__post_init__()

    def loss_mixture(self) -> LossMixture:
        """The mixture that the fields describe, with fresh running states."""
        mixture, problems = self._parse_losses()
        if mixture is None:
            raise InputError(*problems)
        return mixture

    def _parse_losses(self) -> tuple[LossMixture | None, list[str]]:
        values = {name: getattr(self, name, None) for name in (*SHARED, *owned_hyperparameters())}
        shared_defaults = {name: _DEFAULTS[name] for name in SHARED}
        parser = MixtureParser(self.loss_type, self.loss_weights, values, shared_defaults)
        return parser.parse(self.reference_free), parser.problems

    def _stage_problems(self, mixture: LossMixture) -> list[str]:
        """What is wrong with how reference, divergence and weighting go together with these losses."""
        return [
            *_divergence_problems(self, mixture),
            *_weighting_problems(self, mixture),
            *_reference_problems(self, mixture),
            *store_problems(self, mixture),
            *reference_model_problems(self, mixture),
            *forward_problems(self, mixture),
            *pitfall_problems(self),
        ]


def _divergence_problems(args: DPOExtConfig, mixture: LossMixture) -> list[str]:
    kind = args.f_divergence_type
    if kind not in F_DIVERGENCES:
        return [f"Unknown f_divergence_type {kind!r}; one of {', '.join(F_DIVERGENCES)}."]
    problems = []
    variants = [term.variant for term in mixture.terms]
    if kind == "forward_kl_linear" and mixture.host_names:
        problems.append(
            f"f_divergence_type={kind!r} cannot be used with losses left to TRL: TRL does not know it "
            f"({', '.join(mixture.host_names)})."
        )
    if kind != "reverse_kl":
        # The divergence leaves a term beta * log Z(prompt) that cancels in a difference of scores and nowhere else.
        refused = [v.name for v in variants if v.needs_reference and not v.f_divergence]
        if refused:
            able = ", ".join(v.name for v in list_losses() if v.f_divergence)
            problems.append(
                f"f_divergence_type={kind!r} cannot be used with {', '.join(refused)}: only losses of the difference "
                f"of two scores take it ({able})."
            )
        elif not mixture.host_names and not any(v.f_divergence for v in variants):
            problems.append(f"f_divergence_type={kind!r} is not used by any chosen loss: none reads a reference.")
    coefficient = args.f_alpha_divergence_coef
    if kind != "alpha_divergence" and coefficient != _DEFAULTS["f_alpha_divergence_coef"]:
        problems.append(
            f"f_alpha_divergence_coef={coefficient} is used with f_divergence_type 'alpha_divergence' only."
        )
    if not math.isfinite(coefficient):
        problems.append(f"f_alpha_divergence_coef must be finite; got {coefficient}.")
    if args.ld_alpha is not None and not 0 <= args.ld_alpha <= 1:
        problems.append(
            f"ld_alpha must be between 0 and 1; got {args.ld_alpha} (weight of the tokens beyond both lengths)."
        )
    # A loss that reads tokens and no sum has nothing for it to weigh.
    sums = [v.name for v in variants if Need.TOKENS not in v.needs or Need.REFERENCE in v.needs]
    if args.ld_alpha is not None and not sums and not mixture.host_names:
        problems.append(
            f"ld_alpha={args.ld_alpha} is not used by any chosen loss: {', '.join(v.name for v in variants)} reads "
            "single tokens, not their sum."
        )
    return problems


def _weighting_problems(args: DPOExtConfig, mixture: LossMixture) -> list[str]:
    problems = []
    flags = [name for name in ("use_weighting", "weight_column") if getattr(args, name)]
    sorted_losses = [term.variant.name for term in mixture.terms if not term.variant.order_preserving]
    if flags and sorted_losses:
        problems.append(
            f"{' and '.join(flags)} cannot be used with {', '.join(sorted_losses)}: it sorts its batch, so a weight "
            "would meet another pair's loss."
        )
    if args.wpo_clamp and not args.use_weighting:
        problems.append("wpo_clamp=True limits the weights of use_weighting=True, which is off.")
    if args.weight_column and mixture.host_names:
        problems.append(f"weight_column cannot be used with losses left to TRL ({', '.join(mixture.host_names)}).")
    return problems


def _reference_problems(args: DPOExtConfig, mixture: LossMixture) -> list[str]:
    problems = []
    chosen = ", ".join(args.loss_type)
    reads = any(term.variant.needs_reference for term in mixture.terms) or bool(mixture.host_names)
    if args.reference_free and mixture.host_names:
        problems.append(
            f"reference_free=True cannot be used with losses left to TRL ({', '.join(mixture.host_names)})."
        )
    elif args.reference_free and not reads:
        problems.append(f"reference_free=True changes nothing for {chosen}: it reads no reference.")
    if not mixture.needs_reference:
        for flag in ("precompute_ref_log_probs", "sync_ref_model"):
            if getattr(args, flag):
                problems.append(f"{flag}=True has nothing to do: {chosen} needs no reference here. Remove it.")
    return [*problems, *_live_reference_problems(args, mixture)]


def _live_reference_problems(args: DPOExtConfig, mixture: LossMixture) -> list[str]:
    """Losses that read more of the reference than what is stored, or than zeros can stand for."""
    problems = []
    for need, words in ((need, info.live) for need, info in NEEDS.items() if info.live):
        names = ", ".join(term.variant.name for term in mixture.terms if need in term.variant.needs)
        if names and args.precompute_ref_log_probs and not args.reference_free:
            problems.append(f"precompute_ref_log_probs=True stores log-probs of tokens, and {names} needs {words}.")
        if names and args.reference_free:
            problems.append(f"reference_free=True cannot be used with {names}: it needs {words}.")
    return problems
