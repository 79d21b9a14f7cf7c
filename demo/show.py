"""Print the measurements, and the answers before and after training side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import zip_longest

from demo.evaluate import Record

SHOWN = ("Explain what an island is.", "Which colour does coal have?", "What is the main language of Portugal?")
"""Three of the held-out questions; the answers to all held-out questions are written to a file."""

_COLUMN = 54

_ROWS = (
    ("reward_accuracy", "reward accuracy (a tie counts one half)", "{:.2f}"),
    ("reward_margin", "reward margin", "{:+.2f}"),
    ("avg_logp_accuracy", "chosen has the higher average log-prob", "{:.2f}"),
    ("chosen_logp", "log-prob of the chosen answer", "{:.1f}"),
    ("rejected_logp", "log-prob of the rejected answer", "{:.1f}"),
    ("answer_tokens", "tokens in the model's own answer (cut at 48)", "{:.1f}"),
    ("contains_fact", "own answers that contain the right fact", "{:.2f}"),
)


def comparison_table(before: dict[str, float], after: dict[str, float] | None = None) -> str:
    """Return the table of measurements on the held-out pairs."""
    columns = [before] if after is None else [before, after]
    heading = "".join(f"{name:>10}" for name in ("before", "after")[: len(columns)])
    lines = [f"   {'held-out':46}{heading}"]
    for key, label, form in _ROWS:
        lines.append(f"   {label:46}" + "".join(f"{form.format(column[key]):>10}" for column in columns))
    if after is None:
        lines.append("   (Reward accuracy is 0.50 by definition while the policy equals its reference.)")
    return "\n".join(lines)


def pick(pairs: Sequence[Record], answers: Sequence[str]) -> list[tuple[str, str]]:
    """Return the questions to show, each with its answer."""
    by_question = {pair["prompt"][0]["content"]: text for pair, text in zip(pairs, answers, strict=True)}
    return [(question, by_question[question]) for question in SHOWN]


def print_answers(answers: Sequence[tuple[str, str]]) -> None:
    """Print questions and answers, one below the other."""
    for question, text in answers:
        print(f"\n   > {question}")
        print(textwrap.fill(" ".join(text.split()), 100, initial_indent="     ", subsequent_indent="     "))


def print_side_by_side(before: Sequence[tuple[str, str]], after: Sequence[tuple[str, str]]) -> None:
    """Print each question with the answer before training on the left and after it on the right."""
    for (question, old), (_, new) in zip(before, after, strict=True):
        print(f"\n   > {question}")
        for left, right in zip_longest(_wrapped("before: " + old), _wrapped("after: " + new), fillvalue=""):
            print(f"     {left:{_COLUMN}}  {right}".rstrip())


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), _COLUMN)
