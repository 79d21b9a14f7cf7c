"""Whether a checkpoint belongs to the run that resumes from it: its weights, adapter, optimizer, losses and data."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .. import _trl
from ..errors import InputError
from ..run_files import read_json

RUN_FILE = "trl_dpo_ext_run.json"
"""File of a checkpoint that tells which run has written it."""
GIVEN = "given"
"""Its key for the models that were passed in Python."""
_WHOLE = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")
_SAMPLED_ROWS = 8
_OPTIONS = (
    *("reference_free", "f_divergence_type", "f_alpha_divergence_coef", "ld_alpha"),
    *("use_weighting", "wpo_clamp", "weight_column"),
    *("list_pairs", "list_reduction", "max_completions", "gather_lists"),
    *("max_length", "truncation_mode", "seed", "data_seed"),
)
"""Options that change what is trained or drawn, which neither the losses nor the sampled rows tell for certain."""


def describe_run(losses: str, args: Any, dataset: Any, columns: Sequence[str] = ()) -> dict[str, Any]:
    """What a later run has to agree with to continue this one, as JSON.

    Args:
        losses: the description of the mixture.
        args: the run's configuration.
        dataset: tokenized training data.
        columns: of the data, that are compared beside the token ids of pairs, as far as it has them.
    """
    return {
        "losses": losses,
        "options": {name: _plain(getattr(args, name)) for name in _OPTIONS},
        "optim": str(getattr(args.optim, "value", args.optim)),
        "data": _fingerprint(dataset, columns),
    }


def save_run(run: Mapping[str, Any], folder: Path) -> None:
    """Write a run's description into a checkpoint, or into the folder of its result."""
    (folder / RUN_FILE).write_text(json.dumps(run, indent=1, ensure_ascii=False), encoding="utf-8")


def reached_from(output: Path, models: Mapping[str, str | None]) -> dict[str, str | None]:
    """Name models for the description of a run, folders as they are reached from its output folder.

    Args:
        output: the output folder.
        models: their names, or None.
    """
    return {what: _reached_from(output, name) for what, name in models.items()}


def given_reached_from(output: Path, models: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Describe models that were passed in Python, the folders that they were loaded from as `reached_from` does.

    Args:
        output: the output folder.
        models: their descriptions, each with a `name`.
    """
    return {what: {**model, "name": _reached_from(output, model["name"])} for what, model in models.items()}


def _reached_from(output: Path, name: str | None) -> str | None:
    if name is None or not Path(name).is_dir():
        return name
    try:
        return Path(os.path.relpath(name, output)).as_posix()
    except ValueError:  # on another drive
        return str(Path(name).absolute())


def recorded_models(folder: Path) -> dict[str, str]:
    """Return the models that a run has named, as they can be loaded; empty where its folder names none.

    Args:
        folder: of the run, or one of its checkpoints.
    """
    run, found = read_json(folder / RUN_FILE) or {}, {}
    for what in ("start", "reference"):
        if isinstance(name := run.get(what), str) and name:
            found[what] = _found_from(folder, name)
    return found


def recorded_given(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what a run has recorded of the models that were passed to it in Python; empty where it has nothing.

    Args:
        folder: of the run, or one of its checkpoints.
    """
    given = (read_json(folder / RUN_FILE) or {}).get(GIVEN)
    found = {}
    for what, model in given.items() if isinstance(given, Mapping) else ():
        if isinstance(model, Mapping):
            name = model.get("name")
            found[what] = {**model, "name": _found_from(folder, name) if isinstance(name, str) and name else None}
    return found


def _found_from(folder: Path, name: str) -> str:
    """A recorded name as it can be loaded: a folder's, or another."""
    output = folder.parent if folder.name.startswith("checkpoint-") else folder
    return os.path.normpath(output / name) if (output / name).is_dir() else name


def check_run(run: Mapping[str, Any], checkpoint: Path) -> None:
    """Compare a run with the one that has written a checkpoint; nothing is known of checkpoints from other trainers.

    Raises:
        InputError: another optimizer, which cannot go on from the saved state.
    """
    recorded = read_json(checkpoint / RUN_FILE) or {}
    before = {**run, **{name: value for name, value in recorded.items() if value is not None}}
    if before["losses"] != run["losses"]:
        warnings.warn(
            f"{checkpoint} was trained with the losses {before['losses']}, and this run goes on with {run['losses']}. "
            "Set the losses and their options as they were, or start a new run from the checkpoint's weights.",
            stacklevel=4,
        )
    changed = _changed_options(before["options"], run["options"])
    if changed:
        then, now = (", ".join(f"{name}={pair[at]}" for name, pair in changed.items()) for at in (0, 1))
        warnings.warn(
            f"{checkpoint} was trained with {then}, and this run goes on with {now}. Set what differs as it was, or "
            "start a new run from the checkpoint's weights.",
            stacklevel=4,
        )
    if before["data"] != run["data"] and None not in (before["data"], run["data"]):
        warnings.warn(
            f"{checkpoint} was trained on other data, or on rows that another tokenizer or max_length has made, so the "
            "batches that resuming skips are not those that were trained on. Set ignore_data_skip=True to begin with "
            "the first batch, or start a new run from the checkpoint's weights.",
            stacklevel=4,
        )
    if _family(before["optim"]) != _family(run["optim"]) and (checkpoint / "optimizer.pt").is_file():
        raise InputError(
            f"{checkpoint} holds the state of the optimizer {before['optim']}, and optim={run['optim']!r} cannot go on "
            f"from it. Set optim={before['optim']!r}, or start a new run from the checkpoint's weights."
        )


def _changed_options(before: Any, now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The options that are not as they were, with both values; a number and its text are the same."""
    saved = before if isinstance(before, Mapping) else {}
    pairs = {name: (saved[name], value) for name, value in now.items() if name in saved}
    return {name: (a, b) for name, (a, b) in pairs.items() if a != b and str(a) != str(b)}


def _family(optimizer: Any) -> str:
    """Optimizers of one family keep the same state."""
    return str(optimizer).removesuffix("_fused")


def _fingerprint(dataset: Any, columns: Sequence[str]) -> str | None:
    """Of the number of rows and the tokens of some; None for streams and rows that are tokenized batch by batch."""
    if not hasattr(dataset, "__len__") or not _trl.is_tokenized(dataset):
        return None
    rows = len(dataset)
    asked = range(0, rows, max(rows // _SAMPLED_ROWS, 1))
    taken = dataset.with_format(None).select(asked)
    names = [*_trl.TOKEN_IDS, *(name for name in columns if name in dataset.column_names)]
    tokens = [[list(row[name]) for name in names] for row in taken]
    return f"{rows} rows, {hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:16]}"


def check_weights(policy: Any, checkpoint: Path, by_engine: bool) -> None:
    """Check that a checkpoint has the weights that a policy would load, before the first of them is loaded.

    Args:
        policy: the model, without what training has wrapped around it.
        checkpoint: the folder.
        by_engine: whether FSDP or DeepSpeed loads weights, from files of their own.

    Raises:
        InputError: files are missing or cannot be read, or belong to a model or adapter of another kind.
    """
    problems = [*_unreadable(checkpoint)]
    if not by_engine and not _trl.has_adapter_inside(policy):
        problems += _of_another_kind(policy, checkpoint)
        if not problems and not (checkpoint / "optimizer.pt").is_file():
            warnings.warn(
                f"{checkpoint} has no optimizer state (save_only_model), so the optimizer starts "
                "anew. Set save_only_model=False to save it.",
                stacklevel=4,
            )
    if problems:
        raise InputError(*problems)


def weight_problems(folder: Path) -> list[str]:
    """Return why the weights in a folder cannot be loaded, from the heads of its files alone."""
    problems = _unreadable(folder)
    if not problems and not any(True for kind in ("*.safetensors", "*.bin") for _ in folder.glob(kind)):
        problems = [f"{folder} holds no weights ({_WHOLE[0]} or {_ADAPTER[0]}). Choose another one."]
    return problems


def _unreadable(checkpoint: Path) -> list[str]:
    missing: set[str] = set()
    for index in checkpoint.glob("*.index.json"):
        try:
            names = set(json.loads(index.read_text())["weight_map"].values())
        except (OSError, ValueError, KeyError):
            names = {index.name}
        missing |= {name for name in names if name == index.name or not (checkpoint / name).is_file()}
    for file in checkpoint.glob("*.safetensors"):
        try:
            with safe_open(str(file), "pt"):
                pass
        except (SafetensorError, OSError):
            missing.add(file.name)
    if not missing:
        return []
    return [f"Checkpoint {checkpoint} is incomplete: {', '.join(sorted(missing))} cannot be read. Choose another one."]


def _of_another_kind(policy: Any, checkpoint: Path) -> list[str]:
    whole, adapter = (any((checkpoint / name).is_file() for name in names) for names in (_WHOLE, _ADAPTER))
    if not whole and not adapter:
        return [f"Checkpoint {checkpoint} holds no weights ({_WHOLE[0]} or {_ADAPTER[0]}). Choose another one."]
    if not _trl.is_peft_model(policy):
        if whole:
            return []
        return [
            f"Checkpoint {checkpoint} holds an adapter, and this run trains all weights. Pass the peft_config that it "
            "was trained with (--use_peft)."
        ]
    if not adapter:
        return [
            f"Checkpoint {checkpoint} holds a whole model, and this run trains an adapter. Remove peft_config "
            "(--use_peft), or start a new run from the checkpoint's weights."
        ]
    changed = _changed_settings(policy, checkpoint)
    if not changed:
        return []
    return [
        f"The adapter of {checkpoint} has other settings than this run's: {', '.join(changed)}. Resume with the "
        "settings that it was trained with."
    ]


def _changed_settings(policy: Any, checkpoint: Path) -> list[str]:
    """Settings in which the adapter of a checkpoint differs from a policy's, each with both values."""
    configs, active = _trl.adapters_of(policy)
    try:
        saved = json.loads((checkpoint / "adapter_config.json").read_text())
    except (OSError, ValueError):
        return []
    if len(active) != 1:
        return []
    ours = configs[active[0]].to_dict()
    # AdaLoRA keeps the ranks that it has reached in its configuration.
    unread = {*_trl.NOT_THE_FORWARD, *(("rank_pattern", "r") if saved.get("peft_type") == "ADALORA" else ())}
    pairs = {name: (_plain(saved[name]), _plain(ours[name])) for name in sorted({*saved} & {*ours} - unread)}
    return [f"{name} was {before!r} and is {now!r}" for name, (before, now) in pairs.items() if before != now]


def _plain(value: Any) -> Any:
    if isinstance(value, (set, frozenset, tuple, list)):
        items = [_plain(item) for item in value]
        return sorted(items) if all(isinstance(item, str) for item in items) else items
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return getattr(value, "value", value) if not isinstance(value, (str, int, float, type(None))) else value
