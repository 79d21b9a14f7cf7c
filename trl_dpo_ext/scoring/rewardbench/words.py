"""RewardBench's tables in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...inspection.rule import plural
from ..words import decimal, number, rate, rate_with_interval


def section_facts(table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Say what each section scores, and which of its subsets are absent: names and sentences.

    Args:
        table: of `section_table`.
    """
    for section, found in table["sections"].items():
        if found["score"] is not None:
            absent = f"  without {', '.join(found['absent'])}" if found["absent"] else ""
            yield section, f"{rate(found['score'])}{absent}"
    missing = [section for section, found in table["sections"].items() if found["score"] is None]
    yield "overall", rate(table["overall"]) + (f"  without {', '.join(missing)}" if missing else "")


def best_of_facts(table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Say what each subset of RewardBench 2 scores: names and sentences.

    Args:
        table: of `best_of_table`.
    """
    for name, found in table["subsets"].items():
        if "interval" in found:
            yield name, f"{rate_with_interval(found)}  best of several, {plural(found['n'], 'prompt')}"
        else:
            parts = f"tied {rate(found['tied_accuracy'])}, single {rate(found['ref_accuracy'])}"
            yield name, f"{decimal(found['score'])}  {parts}, {plural(found['n'], 'prompt')}"
    if table["mean_of_subsets"] is not None:
        yield "mean of subsets", rate(table["mean_of_subsets"])
    if table["left_out"]:
        yield "left out", f"{number(table['left_out'])} prompts without finite log-probs"
