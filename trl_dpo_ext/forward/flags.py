"""Flags of the forward: shared prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..mixture import LossMixture


@dataclass(kw_only=True)
class ForwardFlags:
    """Fields of `DPOExtConfig` about how policy and reference are run."""


def forward_problems(args: Any, mixture: LossMixture) -> list[str]:
    """What is wrong with these flags, given the losses."""
    return []
