"""The configuration of a scoring run: a run's data and precision, without training, and one loss with a reference."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import _trl
from ..config import DPOExtConfig
from ..core.hyperparameters import SHARED
from ..data.findings import NAMES
from ..data.lists.choice import LIST_OPTIONS
from ..hyperparameter_fields import owned_hyperparameters
from ..reference.config import ReferenceModelOptions, StoreOptions
from ..reference.moving.config import MovingReferenceOptions

_OF_THE_TEXT = {
    "layout",
    "torn",
    "prompt_guessed",
    "prompt_repeated",
    "prompt_not_prefix",
    "prompt_ends_open",
    "last_turn",
    "double_bos",
    "template_drops",
}
"""Findings that tell what is scored; the others are about what training would make of the data."""

_WITHOUT_TRAINING = {
    "loss_type": ["sigmoid"],
    "loss_weights": None,
    "reference_free": False,
    "merge_adapter": False,
    "use_weighting": False,
    "wpo_clamp": False,
    "weight_column": None,
    "ld_alpha": None,
    "f_divergence_type": "reverse_kl",
    "share_prompt": False,
    "padding_free": False,
    "gradient_checkpointing": False,
    "do_eval": False,
    "eval_on_start": False,
    "load_best_model_at_end": False,
    "metric_for_best_model": None,
    "resume_from_checkpoint": None,
    "push_to_hub": False,
    "report_to": [],
    "precompute_ref_log_probs": True,
    "precompute_ref_batch_size": None,
}
_REFERENCE_OPTIONS = [
    field
    for options in (ReferenceModelOptions, MovingReferenceOptions, StoreOptions)
    for field in dataclasses.fields(options)
]


def beta_of(args: DPOExtConfig) -> float:
    """Return the beta of a run: that of its losses where they agree on one, else the option."""
    betas = {term.hyper["beta"] for term in args.loss_mixture().terms if "beta" in term.hyper}
    return float(betas.pop() if len(betas) == 1 else args.beta)


def scoring_config(args: DPOExtConfig, folder: Path, **reference: Any) -> DPOExtConfig:
    """Return a configuration that runs a model over a run's data, and trains nothing.

    Args:
        args: the run's configuration; it is not changed.
        folder: where the run may write.
        **reference: options of the reference; those that are not given have their defaults.
    """
    made = copy.copy(args)
    defaults = {name: field.default for name, field in DPOExtConfig.__dataclass_fields__.items()}
    off: dict[str, Any] = {name: defaults[name] for name in (*SHARED, *owned_hyperparameters(), *_ALPHA, *_OF_LISTS)}
    off |= {field.name: field.default for field in _REFERENCE_OPTIONS if field.name != "precompute_ref_max_tokens"}
    off |= {"ref_drift_num_pairs": 0, "verify_reference": False, **_WITHOUT_TRAINING}
    ignored = [name for name in NAMES if name not in _OF_THE_TEXT or name in args.ignore_findings]
    off |= {"output_dir": str(folder), "ignore_findings": ignored, "dataset_columns": _columns(args)}
    off |= {name: type(getattr(args, name))("no") for name in ("eval_strategy", "save_strategy")}
    if hasattr(args, "activation_checkpointing"):  # the name that newer versions of transformers read
        off["activation_checkpointing"] = False
    for name, value in {**off, "beta": beta_of(args), **reference}.items():
        setattr(made, name, value)
    return made


_ALPHA = ("f_alpha_divergence_coef",)
_OF_LISTS = ("gather_lists", *LIST_OPTIONS)


def _columns(args: DPOExtConfig) -> Mapping[str, str] | None:
    """The names of columns, without those of reference log-probs: a dataset's own are not read."""
    named = args.dataset_columns
    return named and {name: source for name, source in named.items() if name not in _trl.REFERENCE_COLUMNS}
