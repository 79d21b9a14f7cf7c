"""The option that silences warnings about pitfalls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..option_docs import document_options
from .pitfalls import unknown_pitfalls


@document_options
@dataclass(kw_only=True)
class PitfallOptions:
    """Option of `DPOExtConfig` for the warnings before a run.

    Args:
        > Warnings

        ignore_pitfalls: Pitfalls not to warn about because the settings are intended: bf16_weights, float32_base,
            small_beta, whole_4bit_weights, unsaved_states, other_batch.
    """

    ignore_pitfalls: list[str] = field(default_factory=list)


def pitfall_problems(args: Any) -> list[str]:
    """Return what is wrong with `ignore_pitfalls`."""
    return unknown_pitfalls(args.ignore_pitfalls)
