"""The configuration of a run: TRL's `DPOConfig`, this package's options, and the losses' hyperparameters."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from trl import DPOConfig

from ._trl import default_output_dir, rename_checkpointing, temporarily, trainer_arguments, without_devices
from .checks.machine import precision_problems
from .config_fields import LossHyperparameters
from .core.hyperparameters import SHARED
from .core.loss_spec import LossSpec
from .core.mixture import LossMixture, MixtureParser
from .core.pairs import NEEDS, Need
from .core.registry import list_losses
from .core.transforms import F_DIVERGENCES
from .data.config import DataOptions, dataset_column_problems
from .errors import InputError, collecting
from .estimate.config import PitfallOptions, pitfall_problems
from .forward.config import ForwardOptions, forward_problems
from .hyperparameter_fields import make_plugin_fields, owned_hyperparameters
from .legacy_keys import explain_unknown_arguments
from .option_docs import document_options
from .policy.config import PolicyOptions
from .reference.config import ReferenceModelOptions, StoreOptions, reference_model_problems, store_problems
from .reference.moving.config import MovingReferenceOptions, moving_option_problems

_DEFAULTS = {f.name: f.default for f in dataclasses.fields(DPOConfig)}

if TYPE_CHECKING:

    class PluginHyperparameters:
        """Fields that exist at run time only: hyperparameters of installed plug-ins."""

    class _LossTypes:
        """`loss_type` as type checkers see it: the constructor takes more forms than the list that it keeps."""

        def __get__(self, config: Any, owner: Any = None) -> list[str]: ...

        def __set__(self, config: Any, value: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]) -> None: ...

else:
    PluginHyperparameters = make_plugin_fields({f.name for f in dataclasses.fields(LossHyperparameters)}, __name__)


# What users write into a configuration, and means something elsewhere.
_OF_THE_TRAINER = dict.fromkeys(trainer_arguments(), "is an argument of DPOExtTrainer")
_OF_LOADING = dict.fromkeys(
    ("dtype", "attn_implementation", "model_revision"),
    "is a flag of the command; in Python, use model_init_kwargs",
)


class _MixtureSettings(NamedTuple):
    """What `loss_mixture` is parsed from."""

    specs: list[str]
    weights: list[float] | None
    values: dict[str, Any]
    reference_free: bool


@functools.partial(explain_unknown_arguments, elsewhere={**_OF_THE_TRAINER, **_OF_LOADING})
@document_options
@dataclass
class DPOExtConfig(
    MovingReferenceOptions,  # in front: these are TRL's fields too
    DPOConfig,
    DataOptions,
    PolicyOptions,
    StoreOptions,
    ReferenceModelOptions,
    ForwardOptions,
    PitfallOptions,
    LossHyperparameters,
    PluginHyperparameters,
):
    """Configuration of [`DPOExtTrainer`]: everything in TRL's `DPOConfig`, and the options below.

    Each hyperparameter of a loss variant is an option too, named `<variant>_<word>`, for instance `dpop_lambda`;
    `trl-dpo-ext losses` lists them with their defaults. TRL's `beta`, `label_smoothing` and `discopop_tau` are shared
    by the losses that take them; changing one that no chosen loss takes is an error. Hyperparameters of plug-ins become
    options when this class is first imported: register a variant before that, or by an entry point.

    Args:
        > Losses

        loss_type: One or several losses by name; `trl-dpo-ext losses` lists them. A loss can have its own
            hyperparameters, `sigmoid:beta=1.0` or in YAML `- sigmoid: {beta: 1.0}`. `trl:<name>` leaves a loss to TRL's
            code.
        f_divergence_type: Divergence between policy and reference, for losses of the difference of two scores:
            reverse_kl, forward_kl, js_divergence, alpha_divergence, forward_kl_linear. The last one is TRL's forward_kl
            with a gradient that neither overflows nor vanishes.
        reference_free: Read the reference log-probs as zero; no reference is loaded.
        wpo_clamp: With `use_weighting`, limit the weight of a pair to 1, as WPO's authors do and TRL does not.
        weight_column: Dataset column whose value multiplies the loss of each pair.

    Raises:
        TypeError: an argument is unknown; the message names its successor or the nearest one.
        InputError: (a ValueError) lists everything that is wrong with the options, before a model is loaded.

    Example:
        >>> from trl_dpo_ext import DPOExtConfig
        >>> config = DPOExtConfig(output_dir="out", loss_type=["sigmoid:beta=1.0", "dpop"], dpop_lambda=5.0, bf16=False)
        >>> config.loss_mixture().describe()
        '1 x sigmoid(beta=1.0) + 1 x dpop(beta=0.1, dpop_lambda=5.0)'
    """

    # TRL's fields, with help for what they can be here.
    if TYPE_CHECKING:
        loss_type: _LossTypes = _LossTypes()
    else:
        loss_type: list[str] = field(default_factory=lambda: ["sigmoid"])
    f_divergence_type: str = "reverse_kl"
    reference_free: bool = False
    wpo_clamp: bool = False
    weight_column: str | None = None

    def __post_init__(self) -> None:
        self._kept: _MixtureSettings | None = None
        given: Any = self.loss_type
        specs: Any = [LossSpec.of(spec) for spec in ([given] if isinstance(given, (str, Mapping)) else given)]
        # TRL declares a list alone, and pyright compares the declarations here.
        self.loss_type = specs  # pyright: ignore[reportIncompatibleVariableOverride]
        mixture, problems = self._parse_losses()
        if mixture:
            problems = self._stage_problems(mixture)
        problems += precision_problems(self)
        rename_checkpointing(self)
        if not problems:
            super().__post_init__()
            return
        # Whatever TRL and transformers refuse beside that is listed with it.
        valid: dict[str, Any] = {"bf16": False, "bf16_full_eval": False, "loss_weights": None}
        with collecting(problems, ValueError), temporarily(self, **valid), without_devices(self):
            super().__post_init__()
        raise InputError(*problems)

    @classmethod
    def for_model(cls, args: DPOExtConfig | None, model: Any) -> DPOExtConfig:
        """Return `args`, or the defaults with TRL's output directory for `model` if `args` is None.

        Raises:
            TypeError: `args` is a plain `DPOConfig`.
        """
        if args is None:
            return cls(default_output_dir(model))
        if not isinstance(args, DPOExtConfig):
            raise TypeError(f"args must be a DPOExtConfig, got {type(args).__name__}. It takes the same arguments.")
        return args

    def loss_mixture(self) -> LossMixture:
        """Return the mixture that the fields describe, with fresh running states."""
        mixture, problems = self._parse_losses()
        if mixture is None:
            raise InputError(*problems)
        return mixture

    @contextlib.contextmanager
    def keep_mixture(self) -> Iterator[None]:
        """Inside, `loss_mixture` gives what the fields describe on entry, even while TRL is shown other losses."""
        before = self._kept
        self._kept = before or self._mixture_settings()
        try:
            yield
        finally:
            self._kept = before

    def _parse_losses(self) -> tuple[LossMixture | None, list[str]]:
        specs, weights, values, reference_free = self._kept or self._mixture_settings()
        parser = MixtureParser(specs, weights, values, {name: _DEFAULTS[name] for name in SHARED})
        return parser.parse(reference_free), parser.problems

    def _mixture_settings(self) -> _MixtureSettings:
        values = {name: getattr(self, name, None) for name in (*SHARED, *owned_hyperparameters())}
        return _MixtureSettings(list(self.loss_type), self.loss_weights, values, self.reference_free)

    def _stage_problems(self, mixture: LossMixture) -> list[str]:
        """Return what is wrong with the other options, given these losses."""
        return [
            *_divergence_problems(self, mixture),
            *_ld_alpha_problems(self, mixture),
            *_weighting_problems(self, mixture),
            *_reference_problems(self, mixture),
            *store_problems(self, mixture),
            *reference_model_problems(self, mixture),
            *moving_option_problems(self, mixture),
            *forward_problems(self, mixture),
            *pitfall_problems(self),
            *dataset_column_problems(self),
        ]


_OF_THE_CONFIGURATION = {
    option.name: f"is an option of the configuration: pass args=DPOExtConfig({option.name}=...)"
    for option in dataclasses.fields(DPOExtConfig)
}
explain_trainer_arguments = functools.partial(explain_unknown_arguments, elsewhere=_OF_THE_CONFIGURATION)
"""Decorator of the trainer; see `explain_unknown_arguments`."""


def _divergence_problems(args: DPOExtConfig, mixture: LossMixture) -> list[str]:
    kind = args.f_divergence_type
    if kind not in F_DIVERGENCES:
        return [f"Unknown f_divergence_type {kind!r}; one of {', '.join(F_DIVERGENCES)}."]
    problems = []
    variants = [term.variant for term in mixture.terms]
    if kind == "forward_kl_linear" and mixture.host_names:
        problems.append(
            f"f_divergence_type={kind!r} cannot be used with losses left to TRL ({', '.join(mixture.host_names)}): TRL "
            "does not have it."
        )
    if kind != "reverse_kl":
        # The divergence leaves a term beta * log Z(prompt) that cancels in a difference of scores and nowhere else.
        refused = [v.name for v in variants if v.needs_reference and not v.f_divergence]
        if refused:
            able = ", ".join(v.name for v in list_losses() if v.f_divergence)
            problems.append(
                f"f_divergence_type={kind!r} cannot be used with {', '.join(refused)}: only losses of the difference "
                f"of two scores support it ({able})."
            )
        elif not mixture.host_names and not any(v.f_divergence for v in variants):
            problems.append(
                f"f_divergence_type={kind!r} is not used by any chosen loss: none reads a reference. Remove it."
            )
    coefficient = args.f_alpha_divergence_coef
    if kind != "alpha_divergence" and coefficient != _DEFAULTS["f_alpha_divergence_coef"]:
        problems.append(
            f"f_alpha_divergence_coef={coefficient} has no effect without f_divergence_type='alpha_divergence'."
        )
    if not math.isfinite(coefficient):
        problems.append(f"f_alpha_divergence_coef must be finite; got {coefficient}.")
    return problems


def _ld_alpha_problems(args: DPOExtConfig, mixture: LossMixture) -> list[str]:
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


def _weighting_problems(args: DPOExtConfig, mixture: LossMixture) -> list[str]:
    problems = []
    chosen = [name for name in ("use_weighting", "weight_column") if getattr(args, name)]
    sorted_losses = [term.variant.name for term in mixture.terms if not term.variant.order_preserving]
    if chosen and sorted_losses:
        problems.append(
            f"{' and '.join(chosen)} cannot be used with {', '.join(sorted_losses)}, which sorts the batch: a weight "
            "would apply to another pair's loss."
        )
    if args.wpo_clamp and not args.use_weighting:
        problems.append("wpo_clamp=True has no effect without use_weighting=True.")
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
        problems.append(f"reference_free=True has no effect: {chosen} needs no reference. Remove it.")
    if not mixture.needs_reference:
        for name in ("precompute_ref_log_probs", "sync_ref_model"):
            if getattr(args, name):
                problems.append(f"{name}=True has no effect: this run of {chosen} needs no reference. Remove it.")
    return [*problems, *_live_reference_problems(args, mixture)]


def _live_reference_problems(args: DPOExtConfig, mixture: LossMixture) -> list[str]:
    """Return the problems of losses that need more of the reference than stored log-probs, or than zeros."""
    problems = []
    for need, words in ((need, info.live) for need, info in NEEDS.items() if info.live):
        names = ", ".join(term.variant.name for term in mixture.terms if need in term.variant.needs)
        if names and args.precompute_ref_log_probs and not args.reference_free:
            problems.append(
                f"precompute_ref_log_probs=True cannot be used with {names}: the store holds token log-probs, and "
                f"{names} needs {words}."
            )
        if names and args.reference_free:
            problems.append(f"reference_free=True cannot be used with {names}, which needs {words}.")
    return problems
