"""What a watched run prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .alarms import percent

WIDTH = 120
"""Columns of a line."""
_PROMPT = 36


def format_moment(
    title: str,
    values: Mapping[str, float],
    start: Mapping[str, float],
    rows: Sequence[Mapping[str, Any]],
    first: Mapping[Any, str],
    *,
    kl: str = "",
    width: int = WIDTH,
) -> str:
    """The lines of one time of watching.

    Args:
        title: names the step, and what was looked at.
        values: metrics now.
        start: the same at the start.
        rows: sampled answers to show.
        first: texts of the first answers, as `answer_text` gives them, by `prompt_id`.
        kl: estimator of the KL divergence.
        width: columns of a line; what is longer is cut and ends in `...`.
    """
    lines = [f"== {title}", *_numbers(values, start, kl)]
    for number, row in enumerate(rows, start=1):
        lines += _sample(number, row, first.get(row["prompt_id"]), width)
    return "\n".join(lines)


def answer_text(row: Mapping[str, Any]) -> str:
    """A sampled answer in one line."""
    return " ".join(str(row["completion"]).split())


def describe_count(values: Mapping[str, float], rows: Sequence[Any], *, evaluated: bool) -> str:
    """What was looked at: `evaluation (65 pairs, 16 samples in 3.1 s)`."""
    parts = [f"{values['pairs']:.0f} pairs"] if "pairs" in values else []
    if rows:
        seconds = f" in {values['watch/seconds']:.1f} s" if "watch/seconds" in values else ""
        parts.append(f"{len(rows)} samples{seconds}")
    what = "evaluation" if evaluated else "training" if "pairs" in values else "samples"
    return f"{what} ({', '.join(parts)})" if parts else what


def _numbers(values: Mapping[str, float], start: Mapping[str, float], kl: str) -> list[str]:
    """The lines of metrics, each with its value at the start."""

    def change(name: str, form: str) -> str | None:
        if name not in values:
            return None
        now = _format(values[name], form)
        return f"{_format(start[name], form)} -> {now}" if name in start else now

    tokens = [
        f"{side} {text}"
        for side in ("chosen", "rejected")
        if (text := change(f"watch/{side}_logp_per_token", "+.2f")) is not None
    ]
    of_pairs = [
        f"accuracy {values['accuracy']:.3f}" if "accuracy" in values else None,
        f"margin {values['margin']:+.2f}" if "margin" in values else None,
        f"per token: {'   '.join(tokens)}" if tokens else None,
        f"KL {values['watch/kl_per_token']:.2f} per token{f' ({kl})' if kl else ''}"
        if "watch/kl_per_token" in values
        else None,
    ]
    changes = {
        "length": change("watch/length", ".1f"),
        "ended": change("watch/eos_rate", "%"),
        "repetition": change("watch/repetition", ".2f"),
    }
    of_samples = [f"{name} {text}" for name, text in changes.items() if text is not None]
    return [f"  {'   '.join(part for part in parts if part)}" for parts in (of_pairs, of_samples) if any(parts)]


def _format(value: float, form: str) -> str:
    return percent(value) if form == "%" else format(value, form)


def _sample(number: int, row: Mapping[str, Any], before: str | None, width: int) -> list[str]:
    """Two lines: the prompt with the first answer, and the answer now."""
    now = answer_text(row)
    prompt = _cut(" ".join(str(row.get("last_message", row["prompt"])).split()), _PROMPT)
    head = f"  {number:>2}  {prompt:<{_PROMPT}}  "
    if before is None:
        return [_cut(f"{head}start  {now}", width)]
    answer = "(unchanged)" if now == before else now
    return [_cut(f"{head}start  {before}", width), _cut(f"{' ' * len(head)}now    {answer}", width)]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 4].rstrip()} ..."
