"""What watching asks of a sampler, and what a sampler gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Sampled:
    """Answers to the fixed prompts at one step."""

    metrics: dict[str, float] = field(default_factory=dict)
    """By name: watch/length, watch/eos_rate, watch/repetition, watch/kl_per_token, watch/seconds, ..."""
    rows: Sequence[Mapping[str, Any]] = ()
    """One for each prompt, as samples.jsonl has them: `prompt_id`, `prompt`, `completion`, `ended`, ..."""
    kl: str = ""
    """The estimator of the KL divergence in `metrics`: exact or k3; empty without one."""


class Sampler(Protocol):
    """Samples answers to fixed prompts, and writes samples.jsonl."""

    def begin(self, step: int) -> None:
        """Begin a run, or resume it at a step: remove the lines of later steps. Every process calls this."""
        ...

    def sample(self, step: int) -> Sampled | None:
        """Sample after `step` optimizer steps. Every process calls this; None once sampling is switched off."""
        ...
