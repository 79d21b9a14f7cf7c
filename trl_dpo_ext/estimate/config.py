"""The flag that silences what `traps.py` warns of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .pitfalls import CHECKS, unknown_traps


@dataclass(kw_only=True)
class TrapFlags:
    """Field of `DPOExtConfig` about warnings before a run."""

    ignore_traps: list[str] = field(
        default_factory=list,
        metadata={"help": f"Settings that are meant as they are, and not warned of: {', '.join(CHECKS)}."},
    )


def trap_problems(args: Any) -> list[str]:
    """What is wrong with the flag."""
    return unknown_traps(args.ignore_traps)
