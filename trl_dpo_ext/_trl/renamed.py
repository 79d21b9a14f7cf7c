"""Names that transformers has renamed and TRL still uses: called by their current names, so that nothing warns of them.

Users cannot act on a deprecation that TRL causes; one that their own arguments cause is still shown.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from transformers import PreTrainedModel
from trl.trainer import dpo_trainer

from .patching import temporarily


def rename_checkpointing(args: Any) -> None:
    """Set `activation_checkpointing` from `gradient_checkpointing`, which is the name that TRL documents.

    Seam: TRL sets the old name by default; transformers reads the new one, and warns if only the old one is set. Older
    versions have the old one alone.
    """
    if getattr(args, "activation_checkpointing", True) is None:
        args.activation_checkpointing = args.gradient_checkpointing


def renamed_checkpointing() -> AbstractContextManager[None]:
    """Let TRL switch a model's checkpointing by its current name, inside the block.

    Seam: the reference pass goes through `disable_gradient_checkpointing(model, kwargs)` as found in the trainer's
    module, which asks the model for the three old names and for nothing else.
    """
    disable: Any = dpo_trainer.disable_gradient_checkpointing

    def disable_renamed(model: Any, *args: Any, **kwargs: Any) -> AbstractContextManager[None]:
        return disable(_OldNames(model) if hasattr(model, "is_activation_checkpointing") else model, *args, **kwargs)

    return temporarily(dpo_trainer, disable_gradient_checkpointing=disable_renamed)


def renamed_in_peft() -> AbstractContextManager[None]:
    """Let PEFT ask a model for its checkpointing without a warning, while TRL's constructor adds an adapter.

    Seam: `PeftModel` reads `is_gradient_checkpointing`, the old name of the property `is_activation_checkpointing`.
    """
    current = vars(PreTrainedModel).get("is_activation_checkpointing")
    if current is None:
        return nullcontext()
    return temporarily(PreTrainedModel, is_gradient_checkpointing=current)


class _OldNames:
    """A model's activation checkpointing, by the names that TRL calls."""

    def __init__(self, model: Any) -> None:
        self.is_gradient_checkpointing = model.is_activation_checkpointing
        self.gradient_checkpointing_disable = model.activation_checkpointing_disable
        self.gradient_checkpointing_enable = model.activation_checkpointing_enable
