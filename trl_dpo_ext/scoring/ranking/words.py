"""The ranking of completions in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...inspection.rule import plural
from ..words import decimal, number, rate, rate_with_interval


def ranking_facts(block: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Say how rewards order completions, and how that agrees with given scores: names and sentences.

    Args:
        block: of `ranking_summary`.
    """
    sizes = block["per_prompt"] or {"min": 0, "max": 0}
    each = f"{sizes['min']}" if sizes["min"] == sizes["max"] else f"{sizes['min']} to {sizes['max']}"
    counted = f"{plural(block['prompts'], 'prompt')} with {each} each"
    counted += f", {number(block['unscored'])} without a reward" if block["unscored"] else ""
    yield "completions", f"{number(block['completions'])}; {counted}"
    if not block["compared"]:
        yield "agreement", "unknown: no scores or ranks that order the completions of a prompt"
        return
    yield "best completion", f"{rate_with_interval(block['top1'])} right of {plural(block['compared'], 'prompt')}"
    yield "pairs", f"{rate(block['pairs']['accuracy'])} of {plural(block['pairs']['n'], 'ordered pair')}"
    yield "Kendall's tau-b", f"{decimal(block['tau_b']['mean'])} (mean of {plural(block['tau_b']['n'], 'prompt')})"
