"""The flag that silences what `traps.py` warns of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .pitfalls import CHECKS, unknown_pitfalls


@dataclass(kw_only=True)
class PitfallOptions:
    """Field of `DPOExtConfig` about warnings before a run."""

    ignore_pitfalls: list[str] = field(
        default_factory=list,
        metadata={"help": f"Settings that are meant as they are, and not warned of: {', '.join(CHECKS)}."},
    )


def pitfall_problems(args: Any) -> list[str]:
    """What is wrong with the flag."""
    return unknown_pitfalls(args.ignore_pitfalls)
