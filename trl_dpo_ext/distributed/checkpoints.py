"""Checkpoints: find the newest complete one, keep the losses' state in it, save and load weights under FSDP."""

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

from .._trl import temporarily
from ..core.mixture import LossMixture
from ..errors import InputError

LOSS_STATE_FILE = "loss_state.json"
TRAINER_STATE_FILE = "trainer_state.json"
"""Seam: the last file that transformers writes into a checkpoint, whose folder is `checkpoint-<step>`."""
_WRAPPER = "_fsdp_wrapped_module"
"""Seam: the name of the attribute in which FSDP1's wrapper holds a module."""


def checkpoint_to_resume(asked: str | bool | None, folder: str | Path) -> str | None:
    """Return the checkpoint that `resume_from_checkpoint` means; None for a fresh start.

    Args:
        asked: a checkpoint folder; True for the newest complete one in `folder`; "auto" for the same, or a fresh start
            if no checkpoint is complete; False or None for a fresh start. "true", "false" and "none" are taken as the
            Python values, since a command line has only text.
        folder: the output folder of the run.

    Raises:
        InputError: the checkpoint is missing or incomplete.
    """
    values = {"true": True, "false": False, "none": None, "": None}
    asked = values.get(asked.lower(), asked) if isinstance(asked, str) else asked
    if asked is None or asked is False:
        return None
    if asked is not True and asked != "auto":
        if not is_complete(Path(asked)):
            raise InputError(
                f"Checkpoint {asked} is missing or incomplete: no readable {TRAINER_STATE_FILE}. Choose another one, "
                "or pass resume_from_checkpoint=True for the newest complete one."
            )
        return str(asked)
    found = list_checkpoints(Path(folder))
    newest = next((checkpoint for checkpoint in found if is_complete(checkpoint)), None)
    broken = found[: found.index(newest)] if newest else found
    if newest is None and asked is True:
        incomplete = f" (incomplete: {_names(broken)})" if broken else ""
        raise InputError(f"No complete checkpoint in {folder}{incomplete}. Remove resume_from_checkpoint.")
    if broken:
        start = f"resuming from {newest.name}" if newest else "starting anew"
        warnings.warn(f"Incomplete checkpoints in {folder}: {_names(broken)}; {start}.", stacklevel=3)
    return str(newest) if newest else None


def is_complete(checkpoint: Path) -> bool:
    """Return True if a checkpoint has all its files."""
    try:
        return isinstance(json.loads((checkpoint / TRAINER_STATE_FILE).read_text()), dict)
    except (OSError, ValueError, RecursionError):
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
    """Write the losses' running state into a checkpoint, if any loss has one."""
    if mixture.state_dict():
        (checkpoint / LOSS_STATE_FILE).write_text(json.dumps(mixture.state_dict()))


def load_loss_state(mixture: LossMixture, checkpoint: Path) -> None:
    """Restore the losses' running state, if any loss has one.

    Raises:
        FileNotFoundError: the checkpoint has no such state.
    """
    if not mixture.state_dict():
        return
    file = checkpoint / LOSS_STATE_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing: this run's losses have a running state ({', '.join(mixture.state_dict())}), and those "
            "of the checkpoint had none. Resume with the same loss_type."
        )
    mixture.load_state_dict(json.loads(file.read_text()))


@contextlib.contextmanager
def names_without_wrappers(model: Any) -> Iterator[None]:
    """Within the context, remove FSDP1's wrappers from the names of the model's modules.

    peft selects an adapter's weights by the names of its modules, and strips FSDP's prefix at the start of a name only;
    each wrapped layer adds one in the middle, and the adapter is saved empty (peft 0.21).

    Seam: `get_peft_model_state_dict` goes by `model.named_modules()`, called without a prefix on the PEFT model, and
    the state dict that FSDP1 gives it has no wrappers in its keys.
    """
    adapted = [module for module in model.modules() if module is model or hasattr(module, "peft_config")]
    with contextlib.ExitStack() as patches:  # pushing to the hub saves again inside of saving
        for module in adapted:
            patches.enter_context(temporarily(module, named_modules=functools.partial(_plain_names, module)))
        yield


def _plain_names(
    model: Any, memo: Any = None, prefix: str = "", remove_duplicate: bool = True
) -> Iterator[tuple[str, Any]]:
    for name, module in type(model).named_modules(model, memo, prefix, remove_duplicate):
        # With a prefix, a model around this one asks.
        yield (name if prefix else _without_wrapper(name)), module


def _without_wrapper(name: str) -> str:
    return ".".join(part for part in name.split(".") if part and part != _WRAPPER)


def load_wrapped_adapter(model: Any, checkpoint: Path) -> None:
    """Copy a checkpoint's adapter into a model that FSDP1 has wrapped; do nothing for other models and checkpoints.

    peft finds the adapter's parameters in the full state dict, which FSDP1 gives only to the first process: the other
    processes would keep their shards unchanged. Every process has to call this.

    Seam: a checkpoint keeps an adapter in `adapter_model.safetensors`, under the names of the parameters without the
    adapter's name; `summon_full_params(unit, recurse=False)` gives a unit's own parameters unsharded and writes changes
    back.
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
                if key in left and not name.startswith(inner):  # those of inner units are still sharded
                    parameter.copy_(saved[key])
                    left.remove(key)
    if left:
        raise InputError(
            f"{file} has weights that this run's adapter lacks: {', '.join(sorted(left))}. Resume with the same "
            "adapter settings."
        )


def gathered_weights(accelerator: Any, model: Any) -> dict[str, Any] | None:
    """Gather all weights on the first process if FSDP would save shards; None if they are saved unsharded anyway.

    Every process has to call this.

    Seam: `accelerator.state.fsdp_plugin.state_dict_type` names the kind of state dict, and
    `accelerator.get_state_dict(model)` gathers the full one for either version of FSDP.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None or "FULL_STATE_DICT" in str(plugin.state_dict_type):
        return None
    return accelerator.get_state_dict(model)
