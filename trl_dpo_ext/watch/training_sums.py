"""What watching reads of every optimizer step: sums over the pairs of all its batches and processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..core.pairs import Pairs
from .pair_table import batch_columns, summary

SUMS = (
    *("loss", "pairs", "right", "margin", "chosen", "chosen_tokens", "rejected", "rejected_tokens"),
    *("ref_chosen", "ref_rejected", "longer", "shorter"),
)
"""Sums over pairs; `loss` is that of the mixture."""
WINDOW = 10
"""Number of logged steps that training metrics are averaged over."""


class StepSums:
    """Adds up the batches of one optimizer step on this process, without waiting for the device."""

    def __init__(self) -> None:
        self._sums: torch.Tensor | None = None
        self._largest: torch.Tensor | None = None
        self._finite: torch.Tensor | None = None

    def add_pairs(self, pairs: Pairs, rewards: tuple[torch.Tensor, torch.Tensor], loss: torch.Tensor | float) -> None:
        """Add a batch of training, with the mixture's mean loss on it."""
        columns = batch_columns(pairs, rewards)
        chosen, rejected, chosen_tokens, rejected_tokens, margins, _ = columns.unbind(dim=1)
        references = [side.ref_logps for side in (pairs.chosen, pairs.rejected)]
        sums = [
            torch.as_tensor(loss, device=columns.device).detach().float() * len(columns),
            margins.new_tensor(float(len(columns))),
            ((margins > 0).float() + (margins == 0).float() / 2).sum(),
            *(column.sum() for column in (margins, chosen, chosen_tokens, rejected, rejected_tokens)),
            *(margins.new_zeros(()) if logps is None else logps.detach().float().sum() for logps in references),
            (chosen_tokens > rejected_tokens).float().sum(),
            (chosen_tokens < rejected_tokens).float().sum(),
        ]
        added, largest = torch.stack(sums), margins.abs().max()
        self._sums = added if self._sums is None else self._sums + added
        self._largest = largest if self._largest is None else torch.maximum(self._largest, largest)

    def add_loss(self, loss: torch.Tensor) -> None:
        """Note whether the loss of a batch, with everything that is added to it, is finite."""
        finite = torch.isfinite(loss.detach()).all().float()
        self._finite = finite if self._finite is None else torch.minimum(self._finite, finite)

    def gathered(self, gather: Callable[[torch.Tensor], torch.Tensor], device: torch.device) -> Step:
        """The step's sums over all processes. Every process calls this."""
        zero = torch.zeros((), device=device)
        sums = torch.zeros(len(SUMS), device=device) if self._sums is None else self._sums.to(device)
        others = [zero if each is None else each.to(device) for each in (self._largest, self._finite)]
        everywhere = gather(torch.cat([sums, torch.stack(others)]).unsqueeze(0)).double().cpu()
        total = everywhere[:, : len(SUMS)].sum(dim=0).tolist()
        largest, finite = everywhere[:, -2].max().item(), everywhere[:, -1].min().item()
        return Step(dict(zip(SUMS, total, strict=True)), largest, bool(finite))


@dataclass
class Step:
    """One optimizer step."""

    sums: dict[str, float]
    largest_margin: float
    loss_is_finite: bool
    grad_norm: float | None = None
    """Before clipping; None where the engine gives none."""
    learning_rate: float = 0.0

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradients are."""
        return self.loss_is_finite and (self.grad_norm is None or math.isfinite(self.grad_norm))

    @property
    def loss(self) -> float:
        """The mixture's mean loss over the pairs of the step."""
        return self.sums["loss"] / max(self.sums["pairs"], 1)


@dataclass
class TrainingWindow:
    """The last `WINDOW` logged steps of training, which stand in where nothing is evaluated.

    Args:
        length: optimizer steps between two lines of the log.
        against_reference: whether the reference is the policy's start, so that its log-probs on the same pairs are
            the values at the start.
    """

    length: int
    against_reference: bool
    parts: list[dict[str, float]] = field(default_factory=list)
    """Sums of `length` steps each, the last of fewer."""
    first: dict[str, float] = field(default_factory=dict)
    """Sums of the first `WINDOW` steps of the run."""
    steps: int = 0

    def add(self, sums: dict[str, float]) -> None:
        """Add a step."""
        if self.steps < WINDOW:
            self.first = _added(self.first, sums)
        if self.steps % self.length:
            self.parts[-1] = _added(self.parts[-1], sums)
        else:
            self.parts = [*self.parts, sums][-WINDOW:]
        self.steps += 1

    def metrics(self) -> tuple[dict[str, float], dict[str, float]]:
        """The values of the last steps, and what they were at the start."""
        now: dict[str, float] = {}
        for part in self.parts:
            now = _added(now, part)
        if not now:
            return {}, {}
        if self.against_reference:
            sides = {side: now[f"ref_{side}"] / max(now[f"{side}_tokens"], 1) for side in ("chosen", "rejected")}
            return _summary(now), {f"watch/{side}_logp_per_token": value for side, value in sides.items()}
        start = _summary(self.first)
        return _summary(now), {name: value for name, value in start.items() if name.startswith("watch/")}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON."""
        return {"parts": self.parts, "first": self.first, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.parts, self.first, self.steps = state["parts"], state["first"], state["steps"]


def _added(left: Mapping[str, float], right: Mapping[str, float]) -> dict[str, float]:
    return {name: left.get(name, 0.0) + right[name] for name in SUMS}


def _summary(sums: dict[str, float]) -> dict[str, float]:
    return summary(
        pairs=sums["pairs"],
        right=sums["right"],
        margin=sums["margin"],
        chosen=(sums["chosen"], sums["chosen_tokens"]),
        rejected=(sums["rejected"], sums["rejected_tokens"]),
        longer=sums["longer"],
        shorter=sums["shorter"],
    )
