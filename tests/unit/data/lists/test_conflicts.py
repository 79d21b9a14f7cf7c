"""Rows of one list that do not belong together, and orders that contradict each other, are told apart or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from trl import DatasetMixtureConfig, ScriptArguments

from tests.support import runs
from trl_dpo_ext.data.findings import EVERY_ROW
from trl_dpo_ext.data.lists.pair_rows import LIST_ROW
from trl_dpo_ext.data.lists.reading import ListData, read_lists
from trl_dpo_ext.data.loading import load_splits
from trl_dpo_ext.errors import InputError

PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


def read(tmp_path: Path, rows: list[dict[str, Any]], columns: tuple[str, ...] = (), **settings: Any) -> ListData:
    return read_lists(Dataset.from_list(rows), "train_dataset", runs.config(tmp_path, **settings), EVERY_ROW, columns)


def lists(data: ListData) -> int:
    return len(set(data.rows[LIST_ROW]))


@pytest.mark.parametrize("column", ["system", "tools", "chat_template_kwargs"])
def test_the_same_prompt_in_another_context_is_another_list(tmp_path, column: str) -> None:
    rows = [PAIR | {column: context, "rejected": text} for context, text in (("x", "b"), ("y", "c"), ("x", "d"))]
    assert lists(read(tmp_path, rows, gather_lists=True)) == 2
    single = [
        {"prompt": "p", "response": f"{context} {score}", "helpfulness": score, column: context}
        for context in ("x", "y")
        for score in (1, 2)
    ]
    assert lists(read(tmp_path, single)) == 2


@pytest.mark.parametrize("layout", ["gathered", "one completion per row"])
def test_a_list_has_one_weight(tmp_path, layout: str) -> None:
    gathered = layout == "gathered"
    rows = [
        PAIR | {"rejected": f"b{at}"} if gathered else {"prompt": "p", "completion": f"b{at}", "score": at}
        for at in range(3)
    ]
    same = [row | {"weight": 2.0} for row in rows]
    assert lists(read(tmp_path, same, ("weight",), gather_lists=gathered)) == 1
    with pytest.raises(InputError, match="'weight' differs between rows of one list") as caught:
        read(tmp_path, [*same[:2], rows[2] | {"weight": 5.0}], ("weight",), gather_lists=gathered)
    assert "first in row 2" in str(caught.value)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"completions": ["a", "b"], "scores": [1, 2], "rewards": [2, 1]}, "differs from another score"),
        ({"completions": [{"completion": "a", "score": 1}, {"completion": "b", "score": 2}], "scores": [2, 1]}, "differ"),
        (
            {"completions": [{"response": "a", "overall_score": 1}, {"response": "b", "overall_score": 2}], "scores": [2, 1]},
            "scores differ from overall_score",
        ),
        ({"completions": ["a", "b", "c"], "scores": [3, 1, 2], "best": 1}, "best is not a completion with the highest"),
        ({"completions": ["a", "b", "c"], "ranks": [1, 2, 3], "best": 2}, "best is not a completion with the highest"),
    ],
)  # fmt: skip
def test_orders_that_contradict_each_other_are_refused(tmp_path, row: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        read(tmp_path, [{"prompt": "p", **row}])


def test_orders_that_agree_are_taken(tmp_path) -> None:
    assert lists(read(tmp_path, [{"prompt": "p", "completions": ["a", "b", "c"], "scores": [1, 3, 2], "best": 1}])) == 1


def test_scores_that_reverse_a_pair_are_refused(tmp_path) -> None:
    rows = [PAIR | {"score_chosen": 2.0, "score_rejected": 1.0}, PAIR | {"score_chosen": 1.0, "score_rejected": 2.0}]
    with pytest.raises(InputError, match=r"score_chosen is lower than score_rejected.*first in row 1 \(1 and 2"):
        read(tmp_path, rows, gather_lists=True)


@pytest.mark.parametrize("rows", [[{"prompt": "p", "completions": ["a", "b"], "scores": [1, 2]}], [PAIR]])
def test_reference_log_probs_of_pairs_are_refused(tmp_path, rows: list[dict[str, Any]]) -> None:
    columns = {"ref_chosen_logps": -1.0, "ref_rejected_logps": -2.0}
    with pytest.raises(InputError, match="reference log-probs of pairs"):
        read(tmp_path, [row | columns for row in rows], gather_lists=True, precompute_ref_log_probs=True)


@pytest.mark.parametrize("layout", ["HelpSteer", "HelpSteer, renamed", "gathered"])
def test_held_out_rows_do_not_tear_lists_apart(tmp_path, layout: str) -> None:
    prompt = "question" if "renamed" in layout else "prompt"
    side = {"chosen": "a", "rejected": "b"} if layout == "gathered" else {"response": "a", "helpfulness": 1}
    rows = [{prompt: f"p{at}", **side} for at in range(8) for _ in range(3)]
    Dataset.from_list(rows).to_json(tmp_path / "rows.jsonl")
    args = runs.config(
        tmp_path, gather_lists=layout == "gathered", dataset_columns={"prompt": prompt} if prompt != "prompt" else None
    )
    splits = load_splits(
        ScriptArguments(dataset_name=str(tmp_path / "rows.jsonl")), DatasetMixtureConfig(test_split_size=0.25), args
    )
    assert {name: len(split) for name, split in splits.items()} == {"train": 18, "test": 6}
    assert not set(splits["train"][prompt]) & set(splits["test"][prompt])
