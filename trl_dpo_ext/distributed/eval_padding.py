"""Count every pair once in evaluation, although several processes repeat rows to fill the last batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import recursively_apply

from ..core.pairs import Pairs, Side


@dataclass(frozen=True, slots=True)
class EvalPadding:
    """How many pairs of an evaluation batch are rows of the dataset, and not repeated to fill the last batch.

    The real pairs of each process come first, and only the last process with any has both kinds.
    """

    local_batch: int
    """Pairs fed to each process."""
    local_real: int
    """Real pairs among those fed to this process."""
    global_real: int
    """Real pairs of all processes."""
    rank: int
    processes: int

    @classmethod
    def of(cls, accelerator: Any, local_batch: int) -> EvalPadding:
        """Return the padding of the evaluation's current batch, of which every process was fed `local_batch` pairs.

        Seam: accelerate repeats the first rows to fill the last batch of all processes, and keeps in
        `gradient_state.remainder` how many rows of that batch are real (-1 where the dataset has no length), and in
        `gradient_state.end_of_dataloader` whether it is at that batch; `gather_for_metrics` goes by both.
        """
        state, processes, rank = accelerator.gradient_state, accelerator.num_processes, accelerator.process_index
        fed = local_batch * processes
        remainder = state.remainder if state.end_of_dataloader else 0
        global_real = remainder if 0 < remainder < fed else fed
        local_real = min(max(global_real - rank * local_batch, 0), local_batch)
        return cls(local_batch, local_real, global_real, rank, processes)

    @classmethod
    def absent(cls, local_batch: int) -> EvalPadding:
        """Return what counts every pair, for a batch of training."""
        return cls(local_batch, local_batch, local_batch, rank=0, processes=1)

    @property
    def padded(self) -> bool:
        """Whether any process was fed a repeated pair."""
        return self.global_real < self.local_batch * self.processes

    @property
    def share(self) -> float:
        """The factor of a mean over this process's real pairs in the mean over those of all processes.

        The mean over processes of these products is the mean over all real pairs.
        """
        return self.local_real * self.processes / self.global_real

    def real_pairs(self, pairs: Pairs) -> Pairs:
        """Return the pairs that count: this process's real ones, whose `gather` gives the real ones of all processes.

        Losses that sort a batch or take statistics over it must not see repeated pairs at all: no weight takes a
        repeated pair out of a rank or a mean. A process may be left without any pair.
        """
        if not self.padded:
            return pairs
        return dataclasses.replace(
            pairs,
            chosen=self._real_side(pairs.chosen),
            rejected=self._real_side(pairs.rejected),
            columns={name: self.real(column) for name, column in pairs.columns.items()},
            gather=self._gather_real(pairs.gather),
            offset=self.rank * self.local_batch,
        )

    def real_batch(self, pairs: Pairs, weights: torch.Tensor | None) -> tuple[Pairs, torch.Tensor | None]:
        """Return the pairs that count, as `real_pairs` does, and their weights; None for equal ones."""
        return self.real_pairs(pairs), None if weights is None else self.real(weights)

    def real(self, per_pair: torch.Tensor) -> torch.Tensor:
        """Return the real pairs' part of a tensor of this process, (pairs, ...)."""
        return per_pair[: self.local_real]

    def repeated_rows(self, mask: torch.Tensor) -> torch.Tensor | None:
        """Return which rows of a batch belong to repeated pairs, (rows,) bool; None if all processes have real ones.

        Args:
            mask: any tensor of (rows, ...), chosen half first.
        """
        if not self.padded:
            return None
        return (torch.arange(self.local_batch, device=mask.device) >= self.local_real).repeat(2)

    def trim(self, gathered: torch.Tensor) -> torch.Tensor:
        """Return the real pairs' part of a tensor gathered over all processes; anything but pairs is left alone."""
        per_pair = gathered.dim() > 0 and gathered.size(0) == self.local_batch * self.processes
        return gathered[: self.global_real] if self.padded and per_pair else gathered

    def keep(self, gathered: torch.Tensor, local: int, per_pair: bool = False) -> torch.Tensor:
        """Return the real pairs' part of what each process gave `local` rows of, in the order of processes.

        Args:
            gathered: (processes x local, ...).
            local: one row per pair, or one per completion with the chosen half first; anything else is left alone.
            per_pair: one row per pair, even if there are more or fewer than pairs: the first ones are kept.
        """
        halves = 1 if per_pair else local // self.local_batch
        if (not per_pair and local not in (self.local_batch, 2 * self.local_batch)) or gathered.dim() == 0:
            return gathered
        length = local // halves
        kept = []
        for start in range(0, gathered.size(0), length):
            real = self.global_real - start // local * self.local_batch
            kept.append(gathered[start : start + min(max(real, 0), self.local_batch)])
        return torch.cat(kept)

    def _real_side(self, side: Side) -> Side:
        given = {field.name: getattr(side, field.name) for field in dataclasses.fields(side)}
        return dataclasses.replace(side, **{name: self.real(t) for name, t in given.items() if t is not None})

    def _gather_real(self, gather: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        def gather_real(values: torch.Tensor) -> torch.Tensor:
            missing = self.local_batch - values.size(0)  # a collective takes tensors of one shape
            return self.trim(gather(F.pad(values, (0, missing))))

        return gather_real


class RealRows:
    """Gathers what an evaluation step gave for its rows over processes, and keeps the rows of real pairs.

    Seam: the evaluation loop calls `gather_function` once for each kind of output of a step, the losses first, which it
    repeats to the length of a full batch. accelerate's function cuts all of them to the same number of rows, although
    a batch of preference pairs has two rows for each pair, and cuts nothing off where the data has no length.
    """

    def __init__(self, gather: Callable[[torch.Tensor], Any], padding: EvalPadding) -> None:
        self.gather, self.padding = gather, padding
        self._losses_come = True

    def __call__(self, values: Any) -> Any:
        """Gather a tensor, or a tuple, list or dictionary of tensors."""
        losses, self._losses_come = self._losses_come, False

        def gather_real(tensor: torch.Tensor) -> torch.Tensor:
            return self.padding.keep(self.gather(tensor), tensor.size(0) if tensor.dim() else 0, per_pair=losses)

        return recursively_apply(gather_real, values)
