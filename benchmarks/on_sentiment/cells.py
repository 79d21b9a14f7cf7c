"""The grid: which losses at which strengths, learning rates, seeds, and shares of flipped labels, in which order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

SEEDS = (0, 1, 2)
RATE = 5e-4
RATES = {"sigmoid": (1e-3, 2e-4), "simpo": (1e-4, 2e-4)}
"""Further ones at the middle strength. The largest of `sigmoid`, whose curve the others are compared with, reaches the
largest divergences; at RATE, `simpo` goes beyond them."""
FLIPS = (0.1, 0.2, 0.4)
BETAS = (0.03, 1.0, 0.1, 3.0, 0.3)
"""In the order in which they run, but for the middle one, which is the first."""

Reference = Literal["shared store", "own store", "live"]


@dataclass(frozen=True)
class Family:
    """The main variant of a family of losses, and the values of what trades reward for divergence."""

    loss: str
    knob: str
    """`beta`, a hyperparameter of the loss, or `learning_rate`."""
    values: tuple[float, ...]
    middle: float
    fixed: dict[str, Any] = field(default_factory=dict)


def _beta(loss: str, middle: float = 0.3, **fixed: Any) -> Family:
    return Family(loss, "beta", BETAS, middle, fixed)


FAMILIES = (
    _beta("sigmoid"),
    _beta("ipo"),
    Family("simpo", "simpo_beta", (1.0, 2.0, 5.0, 10.0), 2.0),
    Family("sft", "learning_rate", (2e-4, 5e-4, 1e-3), 5e-4),
    _beta("dpop"),
    _beta("odpo"),
    _beta("apo_zero"),
    _beta("ropo"),
    Family("orpo", "orpo_lambda", (0.1, 0.3, 1.0, 3.0), 1.0),
    _beta("hinge"),
    _beta("aot"),
    _beta("beta_dpo"),
    _beta("soft_dpo"),
    _beta("sympo"),
    Family("qrpo", "qrpo_beta", (0.03, 0.1, 0.3, 1.0), 0.1),
    _beta("tdpo2"),
    _beta("dr_dpo"),
    _beta("mallows_dpo"),
    _beta("dpo_nll"),
    Family("uni_dpo", "uni_dpo_beta", (0.5, 1.0, 2.0, 5.0), 2.0),
)
"""In the order in which they run; files of trl_dpo_ext/losses hold a family each."""

FLIPPED = (
    _beta("sigmoid"),
    _beta("robust", label_smoothing=0.2),
    _beta("cdpo", label_smoothing=0.2),
    _beta("ropo"),
    _beta("sympo"),
    _beta("ipo"),
    _beta("dpop"),
    Family("simpo", "simpo_beta", (2.0,), 2.0),
    _beta("sigmoid", middle=0.03),
)
"""Trained on flipped labels: those that were made for it, and those beside which to see them; twice `sigmoid`, whose
curve the others are compared with."""

LIVE = ("tdpo2", "mallows_dpo")
"""Losses that read more of the reference than a store of log-probs holds."""


@dataclass(frozen=True)
class Cell:
    """One run's settings."""

    loss: str
    knob: str
    value: float
    rate: float = RATE
    flips: float = 0.0
    seed: int = 0
    reference: Reference = "shared store"
    fixed: tuple[tuple[str, Any], ...] = ()

    @property
    def hyper(self) -> dict[str, Any]:
        """Fields of the configuration."""
        return dict(self.fixed) | ({} if self.knob == "learning_rate" else {self.knob: self.value})

    @property
    def record(self) -> dict[str, Any]:
        """The settings as a record holds them; `setting` is the same for all seeds."""
        setting = f"{self.loss} {self.knob}={self.value:g} rate={self.rate:g} flips={self.flips:g}"
        setting += "".join(f" {name}={value:g}" for name, value in self.fixed) + f" ({self.reference})"
        return {
            "key": f"{setting} seed={self.seed}",
            "setting": setting,
            "loss": self.loss,
            "knob": self.knob,
            "value": self.value,
            "rate": self.rate,
            "flips": self.flips,
            "seed": self.seed,
            "reference": self.reference,
        }


def cell(family: Family, value: float, seed: int, flips: float = 0.0, rate: float = RATE) -> Cell:
    """A run of a family's loss."""
    rate = value if family.knob == "learning_rate" else rate
    reference: Reference = "live" if family.loss in LIVE else "shared store"
    return Cell(family.loss, family.knob, value, rate, flips, seed, reference, tuple(family.fixed.items()))


def grid() -> Iterator[Cell]:
    """All runs, the most telling first: an interrupted grid is a smaller one."""
    first, *others = FAMILIES
    for seed in SEEDS:  # in turns, so that times can be compared: what a run costs that does not share the store
        yield cell(first, first.middle, seed)
        for reference in ("own store", "live"):
            yield Cell(first.loss, first.knob, first.middle, seed=seed, reference=reference)
    largest, *smaller = RATES[first.loss]
    yield from (cell(first, first.middle, seed, rate=largest) for seed in SEEDS)
    yield from (cell(family, family.middle, seed) for family in others for seed in SEEDS)
    unflipped = [family for family in FLIPPED if family.loss in ("robust", "cdpo")]  # the others are above
    yield from (cell(family, family.middle, seed) for family in unflipped for seed in SEEDS)
    for share in reversed(FLIPS):
        yield from (cell(family, family.middle, seed, share) for family in FLIPPED for seed in SEEDS)
    for family in FAMILIES:
        rates = smaller if family is first else RATES.get(family.loss, ())
        yield from (cell(family, family.middle, seed, rate=rate) for rate in rates for seed in SEEDS)
    for place in range(max(len(family.values) for family in FAMILIES)):
        for family in FAMILIES:
            rest = [value for value in family.values if value != family.middle]
            yield from (cell(family, value, seed) for value in rest[place : place + 1] for seed in SEEDS)
