"""Decide which model a policy's rewards are relative to, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from .. import _trl
from ..config import DPOExtConfig
from ..distributed.checkpoints import list_checkpoints
from ..distributed.resumption import RUN_FILE, recorded_given, recorded_models
from ..errors import InputError, collecting
from ..policy.adapter import SavedAdapter
from ..reference.checkpointed import SYNCED_REFERENCE
from ..reference.config import ReferenceModelOptions
from ..reference.identity.files import weight_files, weight_files_hash
from ..reference.model.instance import Instance
from ..reference.model.resolve import vocabulary_problems
from ..reference.store.manifest import check_folder
from ..run_files import read_json
from .passes import Model

MOVED = (
    "The run moved its reference toward the policy while it trained (sync_ref_model). Rewards are relative to the "
    "reference as it was when the run started, so they show what the whole run has changed."
)
_DESCRIBING = [
    option.name
    for option in fields(ReferenceModelOptions)
    if option.name.startswith("ref_") and "drift" not in option.name
]
NO_REFERENCE = (
    "No reference: the policy is a full model, and its folder does not record the model that the run started from. Set "
    "--ref_model_name_or_path to that model, --ref_store to a store of its log-probs, or --reference_free mean to "
    "score without a reference."
)


@dataclass(frozen=True)
class Reference:
    """The reference of a scoring run."""

    described: str
    """What the summary says."""
    model: Model | None = None
    """To be run; None for the policy with its adapter off, for a store alone, and for no reference."""
    adapter_off: bool = False
    """Whether it is the policy with its adapter off."""
    store: Path | None = None
    """That the user has named; None for one in the work folder."""
    is_none: bool = False
    note: str | None = None
    """What a reader of the rewards needs to know of it."""


@dataclass(frozen=True)
class Wanted:
    """What the caller says of the reference."""

    model: Any = None
    """A model, or the name of a model or of an adapter."""
    adapter: str | None = None
    """The adapter that the run started from, frozen."""
    store: str | None = None
    free: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    """Options of `ReferenceModelOptions` that are set."""

    @property
    def is_named(self) -> bool:
        """Whether the caller says which model it is."""
        return any((self.options.get("ref_model_name_or_path"), self.model is not None, self.adapter))

    @classmethod
    def of(cls, args: DPOExtConfig, **given: Any) -> Wanted:
        """Take what is given, and what a run's configuration says beside it."""
        defaults = {option.name: option.default for option in fields(ReferenceModelOptions)}
        options = {name: getattr(args, name) for name in _DESCRIBING if getattr(args, name) != defaults[name]}
        for fitted in ("ref_calibrate", "ref_correction_rank", "ref_correction_pairs"):  # on the run's pairs
            options.pop(fitted, None)
        return cls(options=options, **{**given, "store": given.get("store") or args.ref_store})


def find_reference(policy: Model, args: DPOExtConfig, wanted: Wanted, tokenizer: Any) -> Reference:
    """Decide which reference is meant.

    Args:
        policy: the scored model.
        args: the run's configuration.
        wanted: what the caller says.
        tokenizer: the policy's.

    Raises:
        InputError: there is none, it is the policy itself, or it has another vocabulary.
    """
    if wanted.free:
        return Reference("none", is_none=True)
    problems = [*_conflicts(wanted)]
    if wanted.store:
        with collecting(problems):
            check_folder(Path(wanted.store))
    if problems:
        raise InputError(*problems)
    store = Path(wanted.store) if wanted.store else None
    note = MOVED if not wanted.is_named and isinstance(policy.given, str) and _has_moved(Path(policy.given)) else None
    named = _named(policy, args, wanted)
    if named is None and _is_adapted(policy):
        base = f"base {policy.adapter.base}" if policy.adapter is not None else "the policy's base"
        return Reference(f"{base} with the adapter off", adapter_off=True, store=store, note=note)
    if named is None:
        if store is None:
            raise InputError(NO_REFERENCE + _needs_none(args))
        return Reference(f"the store {store}", store=store)
    described, model = named
    problems = [*_same(policy, model, args), *_other_vocabulary(model, tokenizer)]
    if problems:
        raise InputError(*problems)
    return Reference(described, model, store=store, note=note)


def _needs_none(args: DPOExtConfig) -> str:
    mixture = args.loss_mixture()
    return "" if mixture.needs_reference else f" The run's loss, {mixture.describe()}, needs none either."


def _conflicts(wanted: Wanted) -> list[str]:
    named = {
        "--ref_model_name_or_path": wanted.options.get("ref_model_name_or_path"),
        "reference": wanted.model,
        "--ref_adapter": wanted.adapter,
    }
    given = [name for name, value in named.items() if value is not None]
    if len(given) > 1:
        return [f"{' and '.join(given)} name two references. Set one of them."]
    described = [name for name in wanted.options if name != "ref_model_name_or_path"]
    if described and (wanted.adapter is not None or (wanted.model is not None and not isinstance(wanted.model, str))):
        return [f"{', '.join(described)} cannot be used with {given[0]}, which is run as it is. Remove them."]
    return []


def _named(policy: Model, args: DPOExtConfig, wanted: Wanted) -> tuple[str, Model] | None:
    """The reference that is a model apart, in words and to be run; None without one."""
    name, origin = wanted.options.get("ref_model_name_or_path") or wanted.model or wanted.adapter, ""
    recorded: dict[str, Any] = {}
    if name is None:
        name, origin, recorded = _of_the_run(policy, wanted)
    if name is None:
        return None
    if not isinstance(name, str):
        return "the given model", Model(name)
    adapter = SavedAdapter.find(name, {"trust_remote_code": args.trust_remote_code})
    if wanted.adapter is not None and adapter is None:
        raise InputError(
            f"--ref_adapter {name} is not an adapter: it has no adapter_config.json. Set the folder of the "
            "adapter that the run started from, or --ref_model_name_or_path for a model."
        )
    if adapter is not None:
        return f"{adapter.base} with the adapter {name}{origin}", Model(name, adapter, quantization=policy.quantization)
    options = {**recorded, **wanted.options, "ref_model_name_or_path": name}
    details = [f"{option.removeprefix('ref_')}={value}" for option, value in options.items() if value != name]
    return name + (f" ({', '.join(details)})" if details else "") + origin, Model(name, options=options)


def _of_the_run(policy: Model, wanted: Wanted) -> tuple[str | None, str, dict[str, Any]]:
    """The model that the policy's run had as its reference, how that is known, and how it was loaded.

    There is no name if that is the policy's base, or if nothing is known.

    Raises:
        InputError: it was passed in Python, and cannot be loaded.
    """
    base = policy.adapter.base if policy.adapter is not None else None
    start = recorded_reference(policy.given) if isinstance(policy.given, str) else None
    if isinstance(start, Instance):
        if wanted.store is not None:
            return None, "", {}
        problem = start.problem()
        if problem is not None:
            raise InputError(_unloadable(start, problem))
        return start.name, ", as the run has recorded", start.options
    if start is not None and start != base:
        return start, ", as the run has recorded", {}
    if base is not None:
        return (base, "", {}) if wanted.options else (None, "", {})
    named = _base_of_card(policy.given) if isinstance(policy.given, str) else None
    return named, ", by the model card" if named else "", {}


def _unloadable(given: Instance, problem: str) -> str:
    return (
        f"The run's reference was passed in Python as a model ({given.described}), and {problem}. Save that model with "
        "save_pretrained and set --ref_model_name_or_path to its folder, set --ref_store to a store of its log-probs, "
        "pass it to score_preferences(reference=...), or set --reference_free mean to score without a reference."
    )


def _base_of_card(name: str) -> str | None:
    """The one base model that the card in a folder names; None without one."""
    file = Path(name) / "README.md"
    if not file.is_file():
        return None
    try:
        base = ModelCard.load(file).data.get("base_model")
    except (OSError, ValueError):
        return None
    return base if isinstance(base, str) and base else None


def _is_adapted(policy: Model) -> bool:
    if isinstance(policy.given, str):
        return policy.adapter is not None
    return _trl.is_peft_model(policy.given) or _trl.has_adapter_inside(policy.given)


def recorded_reference(name: str) -> str | Instance | None:
    """The reference of a run, or what it started from, as its folder or a checkpoint records it; None where none does.

    An `Instance` stands for a model that was passed in Python.

    A frozen copy of the adapter that training started from lies in the folder `ref` of a checkpoint.

    Args:
        name: a run's folder, or one of its checkpoints.
    """
    folder = Path(name)
    if not folder.is_dir():
        return None
    for place in (folder, *list_checkpoints(folder)):
        models, given = recorded_models(place), recorded_given(place)
        instances = {what: found for what in given if (found := Instance.read(given[what])) is not None}
        for found in (models.get("reference"), instances.get("reference")):
            if found is not None:
                return found
        if (place / _trl.FROZEN / "adapter_config.json").is_file():
            return str(place / _trl.FROZEN)
        for found in (models.get("start"), instances.get("start")):
            if found is not None:
                return found
    return None


def _has_moved(folder: Path) -> bool:
    """Whether a run, of which this is the folder or a checkpoint, moved its reference."""
    for place in (folder, *list_checkpoints(folder)):
        record = (read_json(place / RUN_FILE) or {}).get("record")
        settings = record.get("settings") if isinstance(record, dict) else None
        if isinstance(settings, dict) and settings.get("sync_ref_model"):
            return True
        if (place / SYNCED_REFERENCE).is_file():
            return True
    return False


def _same(policy: Model, model: Model, args: DPOExtConfig) -> list[str]:
    """Whether the reference is the policy itself."""
    same = policy.given is model.given
    changes = _changes(model.options) or _changes(policy.options)
    if isinstance(policy.given, str) and isinstance(model.given, str) and not changes:
        same = policy.given == model.given or _content(policy, args) == _content(model, args) is not None
    if not same:
        return []
    return [
        f"Policy and reference are the same model ({model.given if isinstance(model.given, str) else 'in memory'}): "
        "every reward is 0. Set --ref_model_name_or_path to the model that the run started from."
    ]


def _changes(options: dict[str, Any]) -> bool:
    return any(options.get(name) for name in ("ref_quantization", "ref_dtype", "ref_model_revision"))


def _content(model: Model, args: DPOExtConfig) -> str | None:
    """A hash of the files of a model; of an adapter, of its weights. None where they are not on this machine."""
    if model.adapter is not None:
        folder = Path(model.adapter.name)
        files = [
            file for file in (folder / "adapter_model.safetensors", folder / "adapter_model.bin") if file.is_file()
        ]
        return weight_files_hash(files) if files else None
    files = weight_files(model.given, model.options.get("ref_model_revision"))
    return weight_files_hash(files) if files else None


def _other_vocabulary(model: Model, tokenizer: Any) -> list[str]:
    """Whether the reference has other tokens than the policy."""
    if tokenizer is None or not isinstance(model.given, str):
        return []
    adapter = model.adapter
    if adapter is None:
        return vocabulary_problems(model.given, model.options.get("ref_model_revision"), tokenizer)
    own, size = adapter.processing_class, adapter.vocabulary
    return vocabulary_problems(adapter.base, adapter.base_revision, tokenizer, own, size)
