"""The weights of a moved reference, beside the checkpoint that they belong to."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ...errors import InputError
from ..checkpointed import SYNCED_REFERENCE as FILE

_STATE = "trainer_state.json"


def save(checkpoint: Path, weights: Mapping[str, torch.Tensor], **facts: object) -> None:
    """Write a reference's weights into a checkpoint; the file is complete, or absent.

    Args:
        checkpoint: an existing folder.
        weights: by name.
        facts: how the reference was moved, for whoever reads the file.
    """
    temporary = checkpoint / f"{FILE}.writing"
    metadata = {"format": "pt", **{name: str(value) for name, value in facts.items()}}
    save_file({name: value.contiguous() for name, value in weights.items()}, temporary, metadata=metadata)
    os.replace(temporary, checkpoint / FILE)


class SavedReference:
    """The weights of a moved reference in a checkpoint, read one by one.

    Args:
        checkpoint: the folder.
        names: the parameters of the run's reference.

    Raises:
        InputError: the file belongs to another model or adapter.
    """

    def __init__(self, checkpoint: Path, names: set[str]) -> None:
        self.file = checkpoint / FILE
        with safe_open(self.file, framework="pt") as saved:
            found = set(saved.keys())
        if found != names:
            first = sorted(found ^ names)[0]
            raise InputError(
                f"{self.file} holds {len(found)} weights of another reference: this run's has {len(names)}, and they "
                f"differ from {first} on. Resume with the model and the adapter settings of the checkpoint's run."
            )

    def __getitem__(self, name: str) -> torch.Tensor:
        with safe_open(self.file, framework="pt") as saved:
            return saved.get_tensor(name)


def steps_of(checkpoint: Path) -> int:
    """Number of steps that a complete checkpoint's run had taken."""
    return int(json.loads((checkpoint / _STATE).read_text()).get("global_step", 0))
