"""Say what to do with published layouts that do not have the columns `chosen` and `rejected`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .rows import SIDES

_PROMPTS = ("prompt", "question", "instruction", "query", "context", "history", "post", "input")

_TWO_ANSWERS = (
    # both answers, the columns that may say which is better, and which value stands for the second
    (("response_0", "response_1"), ("better_response_id", "safer_response_id"), "1"),
    (("response1", "response2"), ("overall_preference", "preference_strength"), "positive"),
    (("response_1", "response_2"), ("preference_strength", "overall_preference", "preference"), "positive"),
    (("human_ref_A", "human_ref_B"), ("labels",), "0"),
    (("response_a", "response_b"), ("winner",), "model_b"),
    (("conversation_a", "conversation_b"), ("winner",), "model_b"),
    (("completion_a", "completion_b"), ("winner", "preference"), "b"),
    (("answer_0", "answer_1"), ("label", "preference"), "1"),
)
_PAIRS = (
    ("response_j", "response_k"),
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("chosen_text", "rejected_text"),
    ("answer_chosen", "answer_rejected"),
    ("accepted", "rejected"),
    ("preferred", "dispreferred"),
    ("positive", "negative"),
    ("better", "worse"),
    ("win", "lose"),
    ("y_w", "y_l"),
)
_SEVERAL = ("completions", "answers", "responses", "generations", "candidates")


def missing_sides(first: Mapping[str, Any]) -> str:
    """Describe what a dataset has in place of `chosen` and `rejected`, and how to map or change it.

    Args:
        first: the first row.
    """
    missing = ", ".join(repr(side) for side in SIDES if side not in first)
    found = f"has no column {missing}; it has {', '.join(map(repr, first))}."
    for answers, winners, is_b in _TWO_ANSWERS:
        winner = next((name for name in winners if name in first), None)
        if set(answers) <= set(first) and winner is not None:
            flag = f"a={answers[0]} b={answers[1]} winner={winner} winner_is_b={is_b}"
            return f"{found} Two answers and which is better: set --dataset_columns {_prompt(first)}{flag}."
    for chosen, rejected in _PAIRS:
        if {chosen, rejected} <= set(first):
            sides = " ".join(f"{n}={c}" for n, c in zip(SIDES, (chosen, rejected), strict=True) if n != c)
            return f"{found} Set --dataset_columns {_prompt(first)}{sides}."
    for name in _SEVERAL:
        if isinstance(first.get(name), list):
            return (
                f"{found} Several completions per prompt: set --dataset_columns {_prompt(first)}completions={name} to "
                "train on lists. Scores, ranks, or the index of the best stand in the columns scores, ranks, or best."
            )
    if "label" in first and ("completion" in first or "response" in first):
        return f"{found} These are unpaired preferences: TRL's KTOTrainer takes them."
    return (
        f"{found} Name yours with --dataset_columns chosen=COLUMN rejected=COLUMN, or rename them with "
        "dataset.rename_column."
    )


def _prompt(first: Mapping[str, Any]) -> str:
    name = next((name for name in _PROMPTS if name in first), None)
    return "" if name in ("prompt", None) else f"prompt={name} "
