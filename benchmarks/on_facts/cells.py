"""The runs: ways to train on a list, in which seeds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Way:
    """A way to train on a list of answers."""

    name: str
    title: str
    options: dict[str, Any] = field(default_factory=dict)
    """Of the configuration."""


WAYS = (
    Way("best_worst", "best against worst", {"loss_type": "sigmoid", "max_completions": 2}),
    Way("random_pair", "best against one at random", {"loss_type": "sigmoid"}),
    Way("all", "every ordered pair (`list_pairs all`)", {"loss_type": "sigmoid", "list_pairs": "all"}),
    Way("pl", "`pl`", {"loss_type": "pl"}),
    Way("infonca", "`infonca`, tau 3", {"loss_type": "infonca", "infonca_tau": 3.0}),
)
"""The first one is what the others are compared with. `random_pair` draws the other answer once for each list and seed,
as ultrafeedback_binarized does."""


@dataclass(frozen=True)
class Cell:
    """One run."""

    way: Way
    seed: int

    @property
    def key(self) -> str:
        """What its record is called."""
        return f"{self.way.name} seed={self.seed}"


def grid() -> Iterator[Cell]:
    """All runs, seed by seed: an interrupted grid compares all ways in fewer seeds."""
    for seed in SEEDS:
        for way in WAYS:
            yield Cell(way, seed)
