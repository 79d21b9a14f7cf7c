"""Lists of completions are scored with `--rank` alone, whatever their layout, and pairs without it."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from tests.support import runs, scoring, tiny
from trl_dpo_ext import score_preferences
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.scoring.arrangement import Arrangement
from trl_dpo_ext.scoring.configuration import scoring_config
from trl_dpo_ext.scoring.plan import ScorePlan

A, B, C = "yes it is", "no", "four legs"
PAIR = {"prompt": "say ", "chosen": A, "rejected": B}
LISTS: dict[str, list[dict[str, Any]]] = {
    "two": [{"prompt": "say ", "completions": [A, B], "scores": [1.0, 0.0]}],
    "three": [{"prompt": "say ", "completions": [A, B, C], "scores": [3.0, 1.0, 2.0]}],
    "nectar": [{"prompt": "say ", "answers": [{"answer": A, "rank": 1.0}, {"answer": B, "rank": 2.0}]}],
    "several rows": [{"prompt": "say ", "completion": text, "score": float(len(text))} for text in (A, B)],
    "several rejected": [{"prompt": "say ", "chosen": A, "rejected": [B, C]}],
    "empty first": [{"prompt": "what ", "chosen": A, "rejected": []}, {"prompt": "say ", "chosen": A, "rejected": [B]}],
}


def plan(tmp_path: Any, rows: list[dict[str, Any]], **settings: Any) -> ScorePlan:
    args = scoring.config(tmp_path, **settings)
    return ScorePlan(None, None, Dataset.from_list(rows), args, tiny.tokenizer())  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("settings", [{}, {"gather_lists": True}])
def test_lists_need_rank(tmp_path, rows, settings) -> None:
    with pytest.raises(InputError, match=r"holds lists of completions, not pairs\. Set --rank"):
        Arrangement.of(plan(tmp_path, rows, **settings))
    assert Arrangement.of(plan(tmp_path, rows), rank=True).groups is not None


def test_renamed_lists_need_rank(tmp_path) -> None:
    rows = [{"prompt": "say ", "mine": [A, B], "scores": [1.0, 0.0]}]
    with pytest.raises(InputError, match="--rank"):
        Arrangement.of(plan(tmp_path, rows, dataset_columns={"completions": "mine"}))


@pytest.mark.slow
def test_the_pairs_of_a_run_on_lists_are_scored_as_pairs(tmp_path) -> None:
    rows = [PAIR, {**PAIR, "rejected": C}]
    policy, base = (tiny.saved_model(str(tmp_path / name), seed=at) for at, name in enumerate(("policy", "base")))
    args = scoring.config(tmp_path, loss_type="pl", gather_lists=True, max_completions=3)
    scored = score_preferences(policy, Dataset.from_list(rows), args=args, reference=base).pairs
    assert [*scored.status] == ["ok"] * 2


def test_options_of_lists_do_not_reach_the_passes(tmp_path) -> None:
    args = runs.config(tmp_path, gather_lists=True, max_completions=3, list_pairs="best", list_reduction="sum")
    made = scoring_config(args, tmp_path)
    assert (made.gather_lists, made.max_completions, made.list_pairs, made.list_reduction) == (
        False,
        None,
        "all",
        "mean",
    )


SAID = [[{"role": "assistant", "content": text}] for text in (A, B, "")]
EMPTY: dict[str, tuple[list[dict[str, Any]], int, int]] = {
    "a list": (
        [{"prompt": "p", "completions": [A, B, C]}] * 4 + [{"prompt": "p", "completions": [A, B, "", ""]}],
        5,
        4,
    ),
    "messages": ([{"prompt": [{"role": "user", "content": "p"}], "completions": SAID}] * 2, 2, 0),
    "nectar": (
        [{"prompt": "p", "answers": [{"answer": text, "rank": 1.0} for text in each]} for each in ([A, B, C], [A, ""])],
        2,
        1,
    ),
    "several rows": (
        [{"prompt": p, "completion": t, "score": 1.0} for p in "pq" for t in (A, B, "" if p == "q" else C)],
        2,
        3,
    ),
    "several rejected": (
        [{"prompt": "p", "chosen": A, "rejected": [B, C]}, {"prompt": "p", "chosen": A, "rejected": [""]}],
        2,
        1,
    ),
}


@pytest.mark.parametrize(("rows", "total", "first"), EMPTY.values(), ids=EMPTY)
def test_empty_completions_are_counted_by_lists(tmp_path, rows, total, first) -> None:
    wrong = 2 if first == 0 else 1
    words = f"the dataset: a completion is empty; wrong in {wrong} of {total} rows, first in row {first}. Filter these"
    with pytest.raises(InputError, match=words):
        Arrangement.of(plan(tmp_path, rows), rank=True)
