"""Evaluation over every pair once: several processes repeat rows to fill the last batch, and those must not count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class EvalPadding:
    """How many pairs of an evaluation batch are rows of the dataset, and not repeated to fill the last batch."""

    rows: int
    """Pairs fed to this process."""
    own: int
    """Of these, the real ones; they come first."""
    everyone: int
    """Real pairs of all processes."""
    processes: int

    @classmethod
    def of(cls, accelerator: Any, rows: int) -> EvalPadding:
        """Of the batch that the evaluation is at, of which this process was fed `rows` pairs."""
        state, processes = accelerator.gradient_state, accelerator.num_processes
        fed = rows * processes
        # What gather_for_metrics goes by; -1 where the length of the dataset is not known.
        left = state.remainder if state.end_of_dataloader else 0
        everyone = left if 0 < left < fed else fed
        own = min(max(everyone - accelerator.process_index * rows, 0), rows)
        return cls(rows, own, everyone, processes)

    @property
    def padded(self) -> bool:
        """Whether any process was fed a repeated pair."""
        return self.everyone < self.rows * self.processes

    @property
    def share(self) -> float:
        """What to multiply a mean over this process's real pairs by, before a mean over processes."""
        return self.own * self.processes / self.everyone

    def weights(self, given: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
        """Weights, (pairs,), with which a mean over the fed pairs is the mean over this process's real ones.

        Args:
            given: the pairs' own weights; None for equal ones.
            device: where to put the weights.
        """
        if not self.padded:
            return given
        real = (torch.arange(self.rows, device=device) < self.own) * (self.rows / max(self.own, 1))
        return real if given is None else given * real

    def cut(self, gathered: torch.Tensor) -> torch.Tensor:
        """What was gathered over all processes, without the repeated pairs."""
        per_pair = gathered.dim() > 0 and gathered.size(0) == self.rows * self.processes
        return gathered[: self.everyone] if self.padded and per_pair else gathered
