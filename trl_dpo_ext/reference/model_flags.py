"""Flags of the reference model: its checkpoint, its precision, its quantisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..mixture import LossMixture


@dataclass(kw_only=True)
class ReferenceModelFlags:
    """Fields of `DPOExtConfig` about the reference model."""


def reference_model_problems(args: Any, mixture: LossMixture) -> list[str]:
    """What is wrong with these flags, given the losses."""
    return []
