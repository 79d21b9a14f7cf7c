"""The record of a run as JSON: the arguments that matter, which `report` shows and compares."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from datasets import Dataset
from transformers import TrainerCallback

from .. import _trl
from ..run_files import LOG_FILE, append_lines, cut_after
from .losses import active_options, shown_losses
from .origin import public_value
from .reference import reference_lines
from .training import base_model, data_names, library_versions, trained

_SAMPLED_ROWS = 2000
_FINGERPRINTS: WeakKeyDictionary[Dataset, dict[str | None, str | None]] = WeakKeyDictionary()
_RAW = ("prompt", "chosen", "rejected")
# Where a run writes and what it tells of itself, which changes nothing of what is learned; and what has its own place.
_UNRELATED = re.compile(
    r"(output|logging|hub|push|report|run|save|disable|log|include|do|trackio|project|dataset_num|dataloader|debug|loss"
    r"|per_device|gradient_accumulation|max_steps|num_train_epochs|model_init|local_rank|skip_memory|pad_to|watch"
    r"|accelerator_config)(_|$)|.*(_dir|_token|_num_proc|_num_workers)$"
)
_ALWAYS = ("learning_rate", "lr_scheduler_type", "warmup_steps", "optim", "weight_decay", "max_grad_norm", "max_length",
           "truncation_mode", "bf16", "fp16", "seed")  # fmt: skip
"""Shown whether they are the default or not."""


def run_record(trainer: Any) -> dict[str, Any]:
    """What a run trains, on what, against what, and how: plain values, without secrets and this machine's paths.

    Args:
        trainer: the trainer, constructed; `state.max_steps` is that of the running training.
    """
    args, base = trainer.args, base_model(trainer)
    per_device, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    quantized = getattr(trainer.model.config, "quantization_config", None) is not None
    losses = [
        {"name": loss.label, "weight": loss.weight, "hyperparameters": _plain(loss.hyper)}
        for loss in shown_losses(trainer.mixture, args)
    ]
    return {
        "losses": losses,
        "options": list(active_options(args)),
        "model": base.name if base else None,
        "trained": trained(trainer.model),
        "reference": [_without_markdown(line) for line in reference_lines(trainer)],
        "data": _data(trainer),
        "batch": {
            "per_device": per_device,
            "accumulation": accumulation,
            "processes": args.world_size,
            "pairs_per_step": per_device * accumulation * args.world_size,
        },
        "steps": {"max": trainer.state.max_steps or None, "epochs": trainer.state.num_train_epochs or None},
        "settings": _settings(args),
        "launch": trainer.origin.command if trainer.origin else None,
        "resumed_from": trainer.resumed_from,
        "versions": library_versions(quantized),
    }


def fingerprint(dataset: Any, ending: str | None = None) -> str | None:
    """Identify pairs by their number and contents, whatever tokenizer they are for; None for a stream.

    Args:
        dataset: a prepared dataset; its token ids are read where it has no texts. Of more than 2,000 rows, as many
            are read, evenly spaced.
        ending: the EOS token that TRL appends to answers that are texts, which is left out.
    """
    if not isinstance(dataset, Dataset):
        return None
    known = _FINGERPRINTS.setdefault(dataset, {})
    if ending not in known:
        known[ending] = _fingerprint(dataset, ending)
    return known[ending]


def _fingerprint(dataset: Dataset, ending: str | None) -> str | None:
    columns = [name for name in (_RAW, _trl.TOKEN_IDS) if set(name) <= set(dataset.column_names)]
    if not columns:
        return None
    rows = len(dataset)
    taken = (
        dataset.with_format(None)
        .select_columns(list(columns[0]))
        .select(range(0, rows, max(1, -(-rows // _SAMPLED_ROWS))))
    )
    digest = hashlib.sha256()
    for row in map(dict, taken):
        for side in _RAW[1:]:
            if isinstance(row.get(side), str):
                row[side] = row[side].removesuffix(ending or "")
        digest.update(json.dumps(row, sort_keys=True, default=str).encode("utf-8", "surrogatepass"))
    return f"{rows} rows, {digest.hexdigest()[:16]}"


class RunLog(TrainerCallback):
    """Writes the record of a training to the output folder when it starts, and each entry of its log as it comes.

    A run that is still going on, or was killed between two checkpoints, can be read from these files.

    Args:
        trainer: the trainer.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._log: Path | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the record; go on with the log where a checkpoint was."""
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self._trainer.write_run(folder)
        self._log = folder / LOG_FILE
        cut_after(self._log, state.global_step or -1)

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Append the newest entry of the log.

        Seam: transformers adds an entry to the state, with its step, before it tells callbacks of it.
        """
        if self._log is not None and state.log_history:
            append_lines(self._log, [state.log_history[-1]])


def _data(trainer: Any) -> dict[str, Any]:
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    ending = getattr(tokenizer, "eos_token", None)
    names = [one.name for one in data_names(trainer, None, trainer.origin)]
    train = {"names": names, **_described(trainer.train_dataset, ending)}
    evaluated = trainer.eval_dataset
    parts = evaluated if isinstance(evaluated, Mapping) else {} if evaluated is None else {"": evaluated}
    return {"train": train, "evaluation": {name: _described(part, ending) for name, part in parts.items()}}


def _described(dataset: Any, ending: str | None) -> dict[str, Any]:
    rows = len(dataset) if isinstance(dataset, Dataset) else None
    return {"rows": rows, "fingerprint": fingerprint(dataset, ending)}


def _settings(args: Any) -> dict[str, Any]:
    """The options that differ from their defaults and may change what is learned."""
    found = {}
    for field in dataclasses.fields(args):
        default = field.default_factory() if callable(field.default_factory) else field.default  # type: ignore[misc]
        value = getattr(args, field.name, default)
        if (
            (value == default and field.name not in _ALWAYS)
            or _UNRELATED.match(field.name)
            or field.name.startswith("_")
        ):
            continue
        found[field.name] = _plain(public_value(field.name, _plain(value)))
    return found


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(each) for each in value]
    value = getattr(value, "value", value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _without_markdown(line: str) -> str:
    return re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", line).removeprefix("- ").replace("`", "")
