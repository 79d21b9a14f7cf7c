"""The reference of a run as a card shows it: which model it is, and how its log-probs were made."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..reference.config import ReferenceModelOptions
from ..reference.dataset_source import DatasetReference
from ..reference.source import NoReference
from .names import Named, named, without_paths

_SHOWN_APART = ("ref_model_name_or_path", "ref_model_revision", "ref_drift_num_pairs")


def reference_lines(trainer: Any) -> list[str]:
    """Describe the reference, without paths of this machine."""
    if trainer.mixture.reference_free:
        return ["None: reference log-probs are read as zero (`reference_free`)."]
    if isinstance(trainer.reference, NoReference):
        return ["None: no loss of this run reads a reference."]
    stored = getattr(trainer.reference, "stored", None)
    identity = stored.store.identity if stored is not None else None
    lines = [f"- Model: {_model(trainer, identity)}", f"- Log-probs: {_log_probs(trainer)}"]
    if identity is not None:
        lines.append(
            f"- Stored for: weights in {identity.dtype}, computed in {identity.compute_dtype}, quantization "
            f"{identity.quantization}, fingerprint `{identity.fingerprint}`"
        )
    options = _options(trainer.args)
    return [*lines, f"- Options: {options}"] if options else lines


def _model(trainer: Any, identity: Any) -> str:
    args = trainer.args
    if isinstance(trainer.reference, DatasetReference):
        return "the one that made the dataset's columns, which do not name it"
    if args.sync_ref_model:
        return f"the policy before training, mixed with the policy every {args.ref_model_sync_steps} steps"
    if trainer.reference.is_initial_policy or (args.describes_reference and not args.changes_checkpoint):
        return "the policy before training"
    revision = args.ref_model_revision
    name = args.ref_model_name_or_path
    if name is None and identity is not None:
        name = identity.source
    if name is None:
        name = getattr(getattr(trainer.ref_model, "config", None), "_name_or_path", None)
    found: Named | None = named(name, "model", f"revision `{revision}`" if revision else "", revision)
    return found.markdown() if found else "a model that was given as an instance"


def _log_probs(trainer: Any) -> str:
    """What `describe_reference` says, with the name of the store's folder in place of its path."""
    text = trainer.describe_reference()
    stored = getattr(trainer.reference, "stored", None)
    if stored is not None:
        folder = stored.store.folder
        text = text.replace(str(folder), f"`{Path(folder).resolve().name}`").replace(f" ({stored.stats})", "")
    if not trainer.reference.is_stored:
        text = f"computed during training by {text}"
    return without_paths(re.sub(r", [^,]* of weights on this process", "", text))


def _options(args: Any) -> str:
    defaults = {name: option.default for name, option in ReferenceModelOptions.__dataclass_fields__.items()}
    changed = {
        name: getattr(args, name)
        for name, default in defaults.items()
        if name not in _SHOWN_APART and getattr(args, name) != default
    }
    return ", ".join(f"`{name}={value}`" for name, value in changed.items())
