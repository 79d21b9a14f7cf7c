"""What a run's reference keeps in checkpoints."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from .drift.monitor import DriftMonitor

SYNCED_REFERENCE = "synced_reference.safetensors"
"""File of a checkpoint with the weights of a reference that has moved."""


class CheckpointedReference:
    """A reference that is saved with checkpoints; by default, only how far it was found to drift."""

    drift_monitor: DriftMonitor | None
    """Measures how far an inexact reference is from what it stands for; None for exact ones."""
    moves: bool = False
    """Whether the reference follows the policy (`sync_ref_model`)."""

    def save_state(self, checkpoint: Path, writes: bool) -> None:
        """Write into a checkpoint what a resumed run needs to know of the reference. Every process calls this.

        Args:
            checkpoint: the folder, which exists where this process `writes`.
            writes: whether this process writes files.
        """
        if writes and self.drift_monitor is not None:
            self.drift_monitor.save(checkpoint)

    def load_state(self, checkpoint: Path) -> None:
        """Read what `save_state` has written. Every process calls this, before training.

        Raises:
            InputError: the checkpoint's reference had moved, and this one does not.
        """
        if not self.moves and (checkpoint / SYNCED_REFERENCE).is_file():
            raise InputError(
                f"{checkpoint} was saved with sync_ref_model=True, and its reference had moved. Set "
                "sync_ref_model=True to resume; to train against a fixed reference, start a new run from the "
                "checkpoint's weights."
            )
        if self.drift_monitor is not None:
            self.drift_monitor.resume(checkpoint)
