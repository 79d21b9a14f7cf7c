"""What a run's reference keeps in checkpoints."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .. import _trl
from ..errors import InputError
from ..forward.outputs import PairBatch, RefLogps
from .drift.monitor import DriftMonitor

SYNCED_REFERENCE = "synced_reference.safetensors"
"""File of a checkpoint with the weights of a reference that has moved."""
FIRST_PAIR = "reference_first_pair.json"
"""File of a checkpoint with the first pair that the run trained on, and what the reference gave for it."""


@dataclass(frozen=True)
class FirstPair:
    """The first pair of a run, by which a resumed run tells whether its reference is the same."""

    tokens: list[list[int]]
    """Prompt and completion, chosen side first, without padding."""
    scored: list[list[int]]
    """1 on the tokens of completions."""
    logps: list[float]
    """The reference's log-probs, each summed over a completion."""

    @classmethod
    def of(cls, batch: PairBatch, reference: RefLogps) -> FirstPair | None:
        """Take the first pair of a batch; None if the models read more than tokens, or only sums are known."""
        known = {"input_ids", "attention_mask", _trl.COMPLETION_MASK, *_trl.REFERENCE_COLUMNS}
        if reference.output is None or not {*batch.inputs} <= known:
            return None
        pair = [0, batch.mask.size(0) // 2]
        ids, scored, attended = (
            batch.inputs[name][pair] for name in ("input_ids", _trl.COMPLETION_MASK, "attention_mask")
        )
        kept = attended.bool()
        logps = _trl.scored_tokens(reference.output, batch.mask.size(1))[pair].detach().float()
        return cls(
            [row[keep].tolist() for row, keep in zip(ids, kept, strict=True)],
            [row[keep].int().tolist() for row, keep in zip(scored, kept, strict=True)],
            (logps * batch.mask[pair]).sum(dim=1).tolist(),
        )

    def batch(self, device: Any) -> PairBatch:
        """The pair as a batch, padded on the right."""
        longest = max(map(len, self.tokens))
        rows: dict[str, list[list[int]]] = {"input_ids": self.tokens, _trl.COMPLETION_MASK: self.scored}
        rows["attention_mask"] = [[1] * len(row) for row in self.tokens]
        padded = {name: [row + [0] * (longest - len(row)) for row in values] for name, values in rows.items()}
        return PairBatch.take({name: torch.tensor(values, device=device) for name, values in padded.items()}, ())


class CheckpointedReference:
    """A reference that is saved with checkpoints: how far it was found to drift, and what it gave for one pair."""

    drift_monitor: DriftMonitor | None
    """Measures how far an inexact reference is from what it stands for; None for exact ones."""
    moves: bool = False
    """Whether the reference follows the policy (`sync_ref_model`)."""
    first_pair: FirstPair | None = None
    """From the first batch on, or from the checkpoint that a run resumes from."""
    resumes: Path | None = None
    """The checkpoint that `first_pair` was read from, until the reference is compared with it."""

    def save_state(self, checkpoint: Path, writes: bool) -> None:
        """Write into a checkpoint what a resumed run needs to know of the reference. Every process calls this.

        Args:
            checkpoint: the folder, which exists where this process `writes`.
            writes: whether this process writes files.
        """
        if writes and self.drift_monitor is not None:
            self.drift_monitor.save(checkpoint)
        if writes and self.first_pair is not None and not self.moves:
            (checkpoint / FIRST_PAIR).write_text(json.dumps(asdict(self.first_pair)))

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
        file = checkpoint / FIRST_PAIR
        # That of the first process, as all have to run the reference on it together.
        written = _trl.gather_object(json.loads(file.read_text()) if file.is_file() else None)[0]
        if written is not None and not self.moves:
            self.first_pair, self.resumes = FirstPair(**written), checkpoint
