"""The stages of `benchmarks/gpu.py`, and which of them run in the minutes at hand. Imports nothing that takes time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """A process of its own, which writes the cells of one question."""

    module: str
    """In on_gpu; its `run` is called with a `Book`."""
    limit: float
    """Seconds after which no further cell is begun."""
    least: float
    """Seconds with which it is worth beginning."""
    asks: str


STAGES = {
    "exact": Stage("exact", 120, 40, "Are packed rows exact on real kernels, and their gradients finite?"),
    "losses": Stage("losses", 150, 20, "Are all losses the same on GPU and CPU, and when compiled?"),
    "training": Stage("training", 170, 60, "Do runs train as TRL's do, and with every loss?"),
    "reference": Stage("reference", 170, 60, "Do stores and quantized references work?"),
    "engines": Stage("engines", 170, 60, "Do FSDP1, FSDP2, and DeepSpeed train, with one process?"),
    "step": Stage("step", 150, 70, "How fast is a training step of a small model?"),
    "lists": Stage("lists", 120, 40, "What does a list cost beside all of its pairs?"),
    "pass": Stage("passes", 110, 50, "How fast is the reference pass?"),
    "memory": Stage("memory", 120, 40, "How good are the peaks that `estimate` gives?"),
    "reference-memory": Stage("reference_memory", 60, 20, "What does each kind of reference cost?"),
    "images": Stage("images", 120, 60, "What do steps and the reference pass cost on data with images?"),
    "step-8b": Stage("step", 200, 80, "How fast is a training step of an 8B model?"),
    "probe": Stage("probe", 60, 30, "What does this GPU give, and which kernels does `sdpa` take?"),
    "layers": Stage("varlen", 40, 15, "What does attention of one layer take?"),
    "rates": Stage("probe", 60, 20, "How fast is each attention kernel?"),
}
# Joined by +: side by side, which is for checks, and not for what is timed.
SMOKE = "exact+losses+training+reference+engines"
GROUPS = {"smoke": [SMOKE], "all": [SMOKE, *[name for name in STAGES if name not in SMOKE.split("+")]]}
"""The stages of `all` stand in the order of what is needed first."""


def unknown_stages(wanted: Iterable[str]) -> list[str]:
    """Names that are neither stages nor groups."""
    return sorted({name for part in wanted for name in part.split("+")} - {*STAGES, *GROUPS})


def groups_of(wanted: Iterable[str]) -> list[list[str]]:
    """The stages to run, those of one list side by side."""
    return [group.split("+") for part in wanted for group in GROUPS.get(part, [part])]


def limits(group: Sequence[str], left: float, limit: float | None = None) -> dict[str, float]:
    """Seconds of each stage of a group that begins with `left` seconds to go, less those for which that is too few.

    Args:
        limit: in place of the stages' own.
    """
    return {name: min(limit or STAGES[name].limit, left) for name in group if left >= STAGES[name].least}
