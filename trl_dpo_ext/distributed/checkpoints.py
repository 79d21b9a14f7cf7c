"""Checkpoints to resume from, of which a kill may have left half of one, and weights in files that can be loaded."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ..core.mixture import LossMixture
from ..errors import InputError

LOSS_STATE_FILE = "loss_state.json"
TRAINER_STATE_FILE = "trainer_state.json"  # the last file that transformers writes into a checkpoint
_WRAPPER = "_fsdp_wrapped_module"


def checkpoint_to_resume(asked: str | bool | None, folder: str | Path) -> str | None:
    """The checkpoint that `resume_from_checkpoint` means.

    Args:
        asked: a checkpoint folder; True for the newest complete one in `folder`; "auto" for the same, or a fresh start
            where there is none; False or None for a fresh start. The words true and false mean what they say.
        folder: where the run keeps its checkpoints.

    Raises:
        InputError: there is no such checkpoint, or it was not written to its end.
    """
    words = {"true": True, "false": False, "none": None, "": None}
    asked = words.get(asked.lower(), asked) if isinstance(asked, str) else asked
    if asked is None or asked is False:
        return None
    if asked is not True and asked != "auto":
        if not is_complete(Path(asked)):
            raise InputError(f"{asked} is no complete checkpoint: it has no readable {TRAINER_STATE_FILE}.")
        return str(asked)
    found = list_checkpoints(Path(folder))
    newest = next((checkpoint for checkpoint in found if is_complete(checkpoint)), None)
    broken = found[: found.index(newest)] if newest else found
    if newest is None and asked is True:
        halves = f"; not written to the end: {_names(broken)}" if broken else ""
        raise InputError(f"There is no complete checkpoint in {folder}{halves}. Leave resume_from_checkpoint out.")
    if broken:
        start = f"resuming from {newest.name}" if newest else "starting anew"
        warnings.warn(f"Not written to the end in {folder}: {_names(broken)}; {start}.", stacklevel=3)
    return str(newest) if newest else None


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    try:
        return isinstance(json.loads((checkpoint / TRAINER_STATE_FILE).read_text()), dict)
    except (OSError, ValueError):
        return False


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint folders of a run, newest first."""
    steps = {}
    for path in folder.glob("checkpoint-*"):
        if path.is_dir() and (match := re.fullmatch(r"checkpoint-(\d+)", path.name)):
            steps[int(match[1])] = path
    return [steps[step] for step in sorted(steps, reverse=True)]


def _names(checkpoints: list[Path]) -> str:
    return ", ".join(checkpoint.name for checkpoint in checkpoints)


def save_loss_state(mixture: LossMixture, checkpoint: Path) -> None:
    """Write the losses' running state into a checkpoint; nothing where no loss keeps any."""
    if mixture.state_dict():
        (checkpoint / LOSS_STATE_FILE).write_text(json.dumps(mixture.state_dict()))


def load_loss_state(mixture: LossMixture, checkpoint: Path) -> None:
    """Restore the losses' running state; nothing where no loss keeps any.

    Raises:
        FileNotFoundError: the checkpoint has none.
    """
    if not mixture.state_dict():
        return
    file = checkpoint / LOSS_STATE_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing: the checkpoint was made with losses that keep no running state, and this run's do "
            f"({', '.join(mixture.state_dict())}). Resume with the same loss_type."
        )
    mixture.load_state_dict(json.loads(file.read_text()))


@contextlib.contextmanager
def names_without_wrappers(model: Any) -> Iterator[None]:
    """Inside, FSDP1's wrappers leave no trace in the names of the model's modules.

    peft selects an adapter's weights by the names of its modules, and strips FSDP's prefix at the start of a name only;
    each wrapped layer adds one in the middle, and the adapter is saved empty (peft 0.21).
    """
    adapted = [module for module in model.modules() if module is model or hasattr(module, "peft_config")]
    for module in adapted:
        module.named_modules = functools.partial(_plain_names, module)
    try:
        yield
    finally:
        for module in adapted:
            del module.named_modules


def _plain_names(
    model: Any, memo: Any = None, prefix: str = "", remove_duplicate: bool = True
) -> Iterator[tuple[str, Any]]:
    for name, module in type(model).named_modules(model, memo, prefix, remove_duplicate):
        # With a prefix, it is a model around this one that asks.
        yield (name if prefix else _without_wrapper(name)), module


def _without_wrapper(name: str) -> str:
    return ".".join(part for part in name.split(".") if part and part != _WRAPPER)


def load_wrapped_adapter(model: Any, checkpoint: Path) -> None:
    """Copy a checkpoint's adapter into a model that FSDP1 has wrapped; nothing for other models and checkpoints.

    peft finds the adapter's places in the whole state dict, which FSDP1 gives to the first process alone: the other
    processes would keep their shards as they are. Every process has to call this.
    """
    from torch.distributed.fsdp import FullyShardedDataParallel

    file = checkpoint / "adapter_model.safetensors"
    if not isinstance(model, FullyShardedDataParallel) or not file.is_file():
        return
    adapter = f".{getattr(model, 'active_adapter', 'default')}"
    saved = load_file(file)
    left = set(saved)
    units = {_without_wrapper(n): m for n, m in model.named_modules() if isinstance(m, FullyShardedDataParallel)}
    for unit_name, unit in units.items():
        inner = tuple(f"{name}." for name in units if name != unit_name and f"{name}.".startswith(unit_name))
        with FullyShardedDataParallel.summon_full_params(unit, recurse=False), torch.no_grad():
            for name, parameter in unit.named_parameters():
                name = _without_wrapper(f"{unit_name}.{name}")
                key = name.replace(adapter, "")
                if key in left and not name.startswith(inner):  # those of units inside are still split
                    parameter.copy_(saved[key])
                    left.remove(key)
    if left:
        raise InputError(f"{file} holds weights that this run's adapter has no place for: {', '.join(sorted(left))}.")


def gathered_weights(accelerator: Any, model: Any) -> dict[str, Any] | None:
    """All weights on the first process, where FSDP would leave them in shards; None where they are saved whole anyway.

    Every process has to call this.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None or "FULL_STATE_DICT" in str(plugin.state_dict_type):
        return None
    return accelerator.get_state_dict(model)
