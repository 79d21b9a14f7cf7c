"""Which rows are lists and which are pairs is told by all rows, and by the options where rows hold both."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from datasets import Dataset

from tests.support import runs
from trl_dpo_ext.data.lists.choice import holds_lists, lists_unread
from trl_dpo_ext.data.prepare import checked_datasets
from trl_dpo_ext.errors import InputError

A, B, C = "yes it is", "no", "four legs"
PAIR = {"prompt": "say ", "chosen": A, "rejected": B}
LIST = {"prompt": "say ", "completions": [A, B, C], "scores": [3.0, 1.0, 2.0]}
NECTAR = {"prompt": "say ", "answers": [{"answer": A, "rank": 1.0}, {"answer": B, "rank": 2.0}]}


def checked(folder: Any, *rows: dict[str, Any], **settings: Any) -> tuple[str, int, list[str]]:
    """What rows are read as, how many of them are left, and the warnings."""
    args = runs.config(folder, **settings)
    kept: dict[str, Any] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        columns = {"train_dataset": Dataset.from_list([*rows])}
        found = checked_datasets({}, args, kept=kept, **columns)["train_dataset"]
    kind = "lists" if kept["train_dataset"].order else "pairs"
    number = len(set(found["list_row"])) if kind == "lists" else len(found)
    return kind, number, [str(each.message) for each in caught if "dataset" in str(each.message)]


BOTH = {**LIST, "chosen": A, "rejected": B}
CHOICES = {
    "a loss of lists": ({"loss_type": "pl"}, "lists"),
    "a loss of lists in a mixture": ({"loss_type": ["sigmoid", "pl"]}, "lists"),
    "list_pairs": ({"list_pairs": "best"}, "lists"),
    "list_reduction": ({"list_reduction": "sum"}, "lists"),
    "max_completions": ({"max_completions": 3}, "lists"),
    "a column of lists": ({"dataset_columns": {"completions": "completions"}}, "lists"),
    "a column of pairs": ({"dataset_columns": {"chosen": "chosen"}}, "pairs"),
    "a column of pairs, and a loss of lists": ({"loss_type": "pl", "dataset_columns": {"chosen": "chosen"}}, "pairs"),
}


@pytest.mark.parametrize(("settings", "kind"), CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("row", [BOTH, {**NECTAR, "chosen": A, "rejected": B}], ids=["completions", "answers"])
def test_options_choose_between_lists_and_pairs(tmp_path, row, settings, kind) -> None:
    if "answers" in row and "completions" in (settings.get("dataset_columns") or ()):
        settings = {"dataset_columns": {"completions": "answers"}}
    assert checked(tmp_path, row, row, **settings) == (kind, 2, [])


def test_without_an_option_pairs_are_trained_on_and_that_is_said(tmp_path) -> None:
    kind, _, (warning,) = checked(tmp_path, BOTH)
    assert kind == "pairs"
    assert "the rows hold pairs (chosen, rejected) and lists (column 'completions')" in warning
    assert "--dataset_columns completions=completions" in warning
    assert "chosen=chosen" in warning
    assert checked(tmp_path, BOTH, ignore_findings=["layout"]) == ("pairs", 1, [])


def test_pairs_with_scores_beside_them_are_no_lists(tmp_path) -> None:
    """The columns of ultrafeedback_binarized."""
    messages = {
        "prompt_id": "x",
        "messages": [{"role": "user", "content": "say "}, {"role": "assistant", "content": A}],
    }
    said = {side: [messages["messages"][0], {"role": "assistant", "content": text}] for side, text in (("chosen", A), ("rejected", B))}  # fmt: skip
    row = {"prompt": "say ", **messages, **said, "score_chosen": 8.0, "score_rejected": 2.0}
    assert checked(tmp_path, row, row) == ("pairs", 2, [])
    assert checked(tmp_path, row, row, loss_type="pl")[0] == "pairs"


WRONG_START = {
    "no rejected": [{"prompt": "say ", "chosen": A, "rejected": []}],
    "rejected is null": [{"prompt": "say ", "chosen": A, "rejected": None}],
    "no chosen": [{"prompt": "say ", "chosen": [], "rejected": [B, C]}],
    "one each": [{"prompt": "say ", "chosen": [A], "rejected": [B]}],
}


@pytest.mark.parametrize("start", WRONG_START.values(), ids=WRONG_START)
def test_the_first_row_does_not_hide_the_layout_of_the_others(tmp_path, start) -> None:
    chosen: Any = [A] if isinstance(start[0]["chosen"], list) else A
    others = [
        {"prompt": "what ", "chosen": chosen, "rejected": [B, C]},
        {"prompt": "is ", "chosen": chosen, "rejected": [C]},
    ]
    kind, number, told = checked(tmp_path, *start, *others)
    has_both = bool(start[0]["chosen"] and start[0]["rejected"])
    assert (kind, number) == ("lists", 2 + has_both)
    assert [("1 of 3 lists have nothing to learn" in each, "first in row 0" in each) for each in told] == (
        [] if has_both else [(True, True)]
    )


NOTHING = {
    "completions": ([{**LIST, "completions": [], "scores": []}, {**LIST, "completions": None, "scores": None}], LIST),
    "answers": ([{"prompt": "p", "answers": []}, {"prompt": "p", "answers": None}], NECTAR),
    "best": (
        [{"prompt": "p", "completions": [], "best": None}, {"prompt": "p", "completions": None, "best": 0}],
        {"prompt": "say ", "completions": [A, B], "best": 0},
    ),
}


@pytest.mark.parametrize(("empty", "row"), NOTHING.values(), ids=NOTHING)
@pytest.mark.parametrize("first", [True, False])
def test_rows_without_completions_are_counted_and_left_out(tmp_path, empty, row, first) -> None:
    kind, number, (told,) = checked(tmp_path, *([*empty, row] if first else [row, *empty]))
    assert (kind, number) == ("lists", 1)
    assert "2 of 3 lists have nothing to learn and are left out" in told
    assert f"first in row {0 if first else 1}" in told


@pytest.mark.parametrize("rows", [[LIST, LIST], [NECTAR], [{"prompt": "p", "chosen": A, "rejected": [B, C]}]])
def test_gather_lists_on_lists_is_refused(tmp_path, rows) -> None:
    with pytest.raises(InputError, match="gather_lists=True has no effect: train_dataset holds lists already"):
        checked(tmp_path, *rows, gather_lists=True)


def test_gather_lists_says_if_it_gathers_nothing(tmp_path) -> None:
    rows = [{**PAIR, "prompt": f"{at}"} for at in range(3)]
    kind, number, (told,) = checked(tmp_path, *rows, gather_lists=True)
    assert (kind, number) == ("lists", 3)
    assert "gather_lists has no effect: no two of 3 rows share a prompt" in told
    assert checked(tmp_path, *rows, {**PAIR, "prompt": "0", "rejected": C}, gather_lists=True) == ("lists", 3, [])


def test_gather_lists_takes_lists_beside_pairs_that_it_gathers(tmp_path) -> None:
    data = {
        "train_dataset": Dataset.from_list([LIST] * 2),
        "eval_dataset": Dataset.from_list([PAIR, {**PAIR, "rejected": C}]),
    }
    found = checked_datasets({}, runs.config(tmp_path, gather_lists=True), **data)
    assert len(set(found["eval_dataset"]["list_row"])) == 1


@pytest.mark.parametrize("name", ["completions", "rejected", "answers"])
def test_renamed_columns_are_told_by_all_rows(tmp_path, name) -> None:
    rows = {
        "completions": [{**LIST, "completions": None, "scores": None}, LIST],
        "rejected": [{**PAIR, "rejected": []}, {**PAIR, "rejected": [B, C]}],
        "answers": [{**NECTAR, "answers": []}, NECTAR],
    }[name]
    renamed = [{("mine" if key == "prompt" else key): value for key, value in row.items()} for row in rows]
    kind, number, _ = checked(tmp_path, *renamed, dataset_columns={"prompt": "mine"})
    assert (kind, number) == ("lists", 1)


def test_pairs_of_a_late_row_stay_pairs() -> None:
    rows = [{**PAIR, "rejected": None}, PAIR]
    assert not holds_lists(Dataset.from_list(rows))
    assert not holds_lists(Dataset.from_list([{"prompt": "p", "chosen": [A], "rejected": [B]}] * 3))


@pytest.mark.parametrize("first", [[A], [[{"role": "assistant", "content": A}]]])
@pytest.mark.parametrize("late", ["chosen", "rejected"])
@pytest.mark.parametrize("last", [True, False])
def test_lists_of_one_on_each_side_are_lists_if_any_row_has_several(tmp_path, first, late, last) -> None:
    say = (lambda text: text) if first == [A] else (lambda text: [{"role": "assistant", "content": text}])
    prompt = "say " if first == [A] else [{"role": "user", "content": "say"}]
    one = {"prompt": prompt, "chosen": [say(A)], "rejected": [say(B)]}
    rows = [one, one, {**one, late: [*one[late], say(C)]}]
    assert checked(tmp_path, *(rows if last else reversed(rows)))[:2] == ("lists", 3)


NO_LISTS: dict[str, dict[str, Any]] = {
    "null": {"completions": None, "scores": None},
    "null, with scores": {"completions": None, "scores": [1.0, 2.0]},
    "text": {"completions": "two"},
    "text, with scores": {"completions": "two", "scores": [1.0, 2.0]},
    "a number": {"completions": 2, "score": 1.0},
    "numbers": {"completions": [1, 2], "scores": [1.0, 2.0]},
    "no order": {"completions": [A, B]},
    "no order, beside scores of pairs": {"completions": [A, B], "score_chosen": 2.0, "score_rejected": 1.0},
    "an order that is null": {"completions": [A, B], "scores": None},
    "items without an order": {"completions": [{"response": A}, {"response": B}]},
    "a completion": {"completion": A},
    "a completion without its score": {"completion": A, "score": None},
    "a completion that is null": {"completion": None, "score": 1.0},
    "a number of completions": {"completion": 3, "score": 1.0},
    "a response that is null": {"response": None, "helpfulness": 1},
}


@pytest.mark.parametrize("beside", NO_LISTS.values(), ids=NO_LISTS)
@pytest.mark.parametrize("settings", [{}, {"loss_type": ["sigmoid", "pl"]}, {"list_pairs": "best"}], ids=str)
def test_pairs_beside_a_column_that_cannot_be_lists_are_pairs(beside, settings, tmp_path) -> None:
    data = Dataset.from_list([{**PAIR, **beside}] * 2)
    args = runs.config(tmp_path, **settings)
    assert not holds_lists(data, args)
    assert lists_unread(data, args) is None


@pytest.mark.parametrize(
    "row",
    [
        LIST,
        {**LIST, "completions": [A, None, B]},
        {"prompt": "p", "completions": [A, B], "best": 0},
        {"prompt": "p", "completions": [A, B], "ranks": [1, 2]},
        {"prompt": "p", "completions": [{"response": A, "overall_score": 1.0}, {"response": B, "overall_score": None}]},
        {"prompt": "p", "completion": A, "score": 1.0},
        {"prompt": "p", "response": A, "helpfulness": 2},
    ],
)
def test_pairs_beside_lists_are_told_by_any_row(row, tmp_path) -> None:
    args = runs.config(tmp_path, loss_type="pl")
    rows = [{**PAIR, **row}, {**PAIR, **dict.fromkeys(row), "prompt": "p"}]
    assert holds_lists(Dataset.from_list(rows), args)
    assert holds_lists(Dataset.from_list(rows[::-1]), args)


def test_a_column_that_is_named_as_lists_must_hold_them(tmp_path) -> None:
    with pytest.raises(InputError, match="nothing orders the completions"):
        checked(tmp_path, {**PAIR, "mine": [A, B]}, dataset_columns={"completions": "mine"})
