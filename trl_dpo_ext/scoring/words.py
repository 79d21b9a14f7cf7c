"""Numbers of scores as terminal and page show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..inspection.rule import plural


def number(value: int | None) -> str:
    """Format a count, `-` for none."""
    return "-" if value is None else f"{value:,}"


def decimal(value: float | None, digits: int = 3) -> str:
    """Format a number, `-` for none."""
    return "-" if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 3) -> str:
    """Format a number with its sign, `-` for none."""
    return "-" if value is None else f"{value:+.{digits}f}"


def rate(share: float | None) -> str:
    """Format a share in percent, `-` for none.

    >>> rate(0.9230), rate(None)
    ('92.3 %', '-')
    """
    return "-" if share is None else f"{100 * share:.1f} %"


def rate_with_interval(block: Mapping[str, Any]) -> str:
    """Format an accuracy with its interval.

    >>> rate_with_interval({"accuracy": 1.0, "interval": [0.94420, 1.0]})
    '100.0 % (94.4-100.0)'
    """
    if block["interval"] is None:
        return rate(block["accuracy"])
    low, high = (f"{100 * edge:.1f}" for edge in block["interval"])
    return f"{rate(block['accuracy'])} ({low}-{high})"


def counts_sentence(counts: Mapping[str, int]) -> str:
    """Say how many rows would be, or were, kept and relabeled."""
    kept = f"{number(counts['kept'])} of {plural(counts['rows'], 'row')} kept"
    if counts["relabeled"]:
        inside = f", {number(counts['kept_relabeled'])} of them kept" if counts["kept"] < counts["rows"] else ""
        kept += f", {number(counts['relabeled'])} relabeled{inside}"
    return f"{kept}."


def output_sentence(output: Mapping[str, Any]) -> str:
    """Say what was written."""
    new = plural(len(output["columns"]), "new column")
    text = f"Wrote {output['file']}: {plural(output['rows'], 'row')}, {new}."
    if output["replaced"]:
        text += f" {plural(len(output['replaced']), 'column')} of an earlier run replaced."
    counts = output["counts"]
    return f"{text} {counts_sentence(counts)}" if counts["relabeled"] or counts["kept"] < counts["rows"] else text
