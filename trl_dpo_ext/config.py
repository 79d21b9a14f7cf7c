"""The configuration of a run: TRL's `DPOConfig`, this package's options, and the losses' hyperparameters."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from trl import DPOConfig

from ._trl import default_output_dir, rename_checkpointing, temporarily, trainer_arguments, without_devices
from .checks.machine import precision_problems
from .config_fields import LossHyperparameters
from .core.hyperparameters import SHARED
from .core.loss_spec import LossSpec
from .core.mixture import LossMixture
from .core.mixture_parser import MixtureParser
from .data.config import DataOptions, dataset_column_problems, list_option_problems, truncation_problems
from .errors import InputError, collecting
from .estimate.config import PitfallOptions, pitfall_problems
from .forward.config import ForwardOptions, forward_problems
from .hyperparameter_fields import make_plugin_fields, owned_hyperparameters
from .legacy_keys import explain_unknown_arguments
from .loss_options import loss_option_problems
from .mapping_options import read_mappings
from .option_docs import document_options
from .policy.config import PolicyOptions
from .reference.config import ReferenceModelOptions, StoreOptions, reference_model_problems, store_problems
from .reference.moving.config import MovingReferenceOptions, moving_option_problems
from .watch.config import WatchOptions, watch_problems

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
    WatchOptions,
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
        wrong = read_mappings(self)
        given: Any = self.loss_type
        specs: Any = [LossSpec.of(spec) for spec in ([given] if isinstance(given, (str, Mapping)) else given or [])]
        # TRL declares a list alone, and pyright compares the declarations here.
        self.loss_type = specs  # pyright: ignore[reportIncompatibleVariableOverride]
        mixture, problems = self._parse_losses()
        if mixture:
            problems = self._stage_problems(mixture)
        problems += [*wrong, *precision_problems(self)]
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
            *loss_option_problems(self, mixture),
            *store_problems(self, mixture),
            *reference_model_problems(self, mixture),
            *moving_option_problems(self, mixture),
            *forward_problems(self, mixture),
            *pitfall_problems(self),
            *dataset_column_problems(self),
            *truncation_problems(self),
            *list_option_problems(self),
            *watch_problems(self),
        ]


_OF_THE_CONFIGURATION = {
    option.name: f"is an option of the configuration: pass args=DPOExtConfig({option.name}=...)"
    for option in dataclasses.fields(DPOExtConfig)
}
explain_trainer_arguments = functools.partial(explain_unknown_arguments, elsewhere=_OF_THE_CONFIGURATION)
"""Decorator of the trainer; see `explain_unknown_arguments`."""
