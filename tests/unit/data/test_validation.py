"""Preference data: layouts made one, wrong rows named, columns carried into the batch."""

from __future__ import annotations

import math
from typing import Any

import pytest
from datasets import Dataset, IterableDataset
from trl.trainer.dpo_trainer import DataCollatorForPreference

from tests.support import tiny
from trl_dpo_ext.core.columns import LARGEST, SCORE_COLUMNS, WITHIN_LARGEST, Column
from trl_dpo_ext.data.columns import ColumnCollator
from trl_dpo_ext.data.layouts import one_layout
from trl_dpo_ext.data.validation import check_preferences

MARGIN = {"margin": Column("By how much the chosen side is better.", ge=0)}
USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def check(data: dict[str, list], columns: Any = None) -> Any:
    return check_preferences(Dataset.from_dict(data), "train_dataset", columns or {})


GOOD = {"prompt": ["p", "p", "p"], "chosen": ["a", "b", "c"], "rejected": ["x", "y", "z"]}


@pytest.mark.parametrize("data", [GOOD, tiny.preferences(4, conversational=True).to_dict()])
def test_good_data_has_nothing_to_say(data: dict) -> None:
    report = check(data)
    assert (report.problems, report.warnings) == ([], [])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"chosen": [], "rejected": []}, "train_dataset is empty."),
        (
            {"question": ["q"], "answer": ["a"]},
            "train_dataset has no column 'chosen', 'rejected'; it has 'question', 'answer'.",
        ),
        ({**GOOD, "chosen": ["a", "", ""]}, "the chosen completion is empty; wrong in 2 of 3 rows, first in row 1."),
        (
            {**GOOD, "rejected": ["x", "y", None]},
            "the rejected completion is empty; wrong in 1 of 3 rows, first in row 2.",
        ),
        (
            {"chosen": [[USER, ASSISTANT]], "rejected": [[USER, {**ASSISTANT, "content": ""}]]},
            "the rejected completion is empty",
        ),
        ({"chosen": [[USER, ASSISTANT]], "rejected": [[]]}, "the rejected completion is empty"),
    ],
)
def test_wrong_rows_are_named_with_count_and_place(data: dict, expected: str) -> None:
    (problem,) = check(data).problems
    assert expected in problem


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (None, "train_dataset has no column 'margin'"),
        (
            [1.0, float("nan"), 2.0],
            "column 'margin' must be finite (By how much the chosen side is better); wrong in 1 of 3 rows",
        ),
        ([1.0, float("inf"), 2.0], "column 'margin' must be finite"),
        ([1.0, 1e39, 2.0], "column 'margin' must be finite in float32 (By how much the chosen side is better); wrong"),
        ([1.0, 3.4028236e38, 2.0], "column 'margin' must be finite in float32"),
        ([1.0, None, 2.0], "column 'margin' must be a number"),
        (["1", "2", "3"], "column 'margin' must be a number"),
        ([1.0, 2.0, -0.5], "column 'margin' must be >= 0"),
    ],
)
def test_wrong_columns_are_named(values: Any, expected: str) -> None:
    data = GOOD if values is None else {**GOOD, "margin": values}
    (problem,) = check(data, MARGIN).problems
    assert expected in problem


def test_several_problems_are_all_listed() -> None:
    report = check({**GOOD, "chosen": ["", "b", "c"], "margin": [-1.0, float("nan"), 0.0]}, MARGIN)
    assert len(report.problems) == 3


def test_identical_sides_are_counted_in_a_warning() -> None:
    report = check({**GOOD, "rejected": ["a", "b", "z"]})
    assert report.problems == []
    assert "identical in 2 of 3 rows" in report.warnings[0]


def test_something_else_than_a_dataset_is_named() -> None:
    assert "must be a datasets.Dataset" in check_preferences([GOOD], "train_dataset", {}).problems[0]


def test_of_streamed_data_the_first_row_is_checked_and_the_rest_by_the_collator() -> None:
    def rows() -> Any:
        yield {"chosen": "a", "rejected": "b", "margin": 1.0}
        yield {"chosen": "a", "rejected": "b", "margin": -1.0}

    stream = IterableDataset.from_generator(rows)
    assert check_preferences(stream, "train_dataset", MARGIN).problems == []
    collator = ColumnCollator(lambda examples: {"input_ids": len(examples)}, MARGIN)
    assert collator([{"margin": 1}, {"margin": 2.5}])["margin"].tolist() == [1.0, 2.5]
    with pytest.raises(ValueError, match="column 'margin' must be >= 0 in every row"):
        collator(list(rows()))


WEIGHTS = {"chosen_token_weights": Column("Weight of each token of the chosen side.", ge=0, per_token="chosen")}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[1.0], [0.5, 2], []], None),
        ([1.0, 1.0, 1.0], "must be a list of numbers, one per token of the chosen completion, (Weight of each token"),
        (
            [[1.0], [-1.0], [1.0]],
            "must be >= 0 at every token (Weight of each token of the chosen side); wrong in 1 of 3",
        ),
        ([[1.0], [1.0], [float("nan")]], "must be finite at every token"),
        ([["1"], ["2"], ["3"]], "must be a number at every token"),
    ],
)
def test_a_column_per_token_holds_lists_of_numbers(values: Any, expected: str | None) -> None:
    found = check({**GOOD, "chosen_token_weights": values}, WEIGHTS).problems
    assert len(found) == (expected is not None)
    assert expected is None or expected in found[0]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [[0.0, 0.5, 1.0, 0.0, 0.0], [1.5, 2.0, 2.5, 3.0, 3.5]]),
        ({"max_length": 4}, [[0.0, 0.5, 1.0], [1.5, 2.0, 2.5]]),
        ({"max_length": 4, "truncation_mode": "keep_end"}, [[0.0, 0.5, 1.0], [2.5, 3.0, 3.5]]),
    ],
    ids=["whole", "keep_start", "keep_end"],
)
def test_values_per_token_stand_where_their_tokens_log_probs_do(settings: dict, expected: list) -> None:
    collator = ColumnCollator(DataCollatorForPreference(pad_token_id=0, **settings), WEIGHTS)
    examples = [
        {"prompt_ids": [5, 6], "chosen_ids": [7, 2], "rejected_ids": [8], "chosen_token_weights": [0.5, 1]},
        {
            "prompt_ids": [5],
            "chosen_ids": [7, 8, 9, 8, 2],
            "rejected_ids": [8],
            "chosen_token_weights": [1.5, 2, 2.5, 3, 3.5],
        },
    ]
    assert collator(examples)["chosen_token_weights"].tolist() == expected
    examples[1]["chosen_token_weights"] = [1.0]
    with pytest.raises(ValueError, match="row 1 of this batch has 1 for a chosen completion of 5 tokens, EOS included"):
        collator(examples)


def test_a_prompt_string_beside_whole_conversations_is_dropped() -> None:
    data = {"prompt": ["q"], "chosen": [[USER, ASSISTANT]], "rejected": [[USER, {**ASSISTANT, "content": "b"}]]}
    assert one_layout(Dataset.from_dict(data)).column_names == ["chosen", "rejected"]


def test_a_prompt_string_beside_answers_becomes_a_user_message() -> None:
    data = {"prompt": ["q"], "chosen": [[ASSISTANT]], "rejected": [[{**ASSISTANT, "content": "b"}]]}
    assert one_layout(Dataset.from_dict(data))["prompt"] == [[USER]]


@pytest.mark.parametrize("conversational", [False, True])
def test_layouts_that_trl_takes_are_left_alone(conversational: bool) -> None:
    data = tiny.preferences(4, conversational=conversational)
    assert one_layout(data) is data


def test_numbers_are_checked_as_batches_hold_them() -> None:
    """As float32, which is infinite from 2**128 - 2**103 on, and 0 below 2**-150."""
    greatest = 3.4028234663852886e38
    assert MARGIN["margin"].broken_bound(greatest) == WITHIN_LARGEST
    assert Column("A score.").broken_bound(-greatest) == WITHIN_LARGEST
    for value in (2.0**128 - 2.0**103, -1e39, 1e308, 10**400, -(10**400)):
        assert Column("A score.").broken_bound(value) == "finite in float32"
    assert Column("A weight.", gt=0).broken_bound(1e-46) == "> 0"
    assert Column("A weight.", gt=0).broken_bound(1e-45) is None
    assert Column("A chance.", le=1, ge=0).broken_bound(0.1) is None


@pytest.mark.parametrize("value", [2e15, -1e30, 3.4028234663852886e38, -(10**18)])
def test_numbers_whose_differences_and_squares_float32_does_not_hold_are_refused(value: float) -> None:
    assert Column("A score.").broken_bound(value) == WITHIN_LARGEST == "from -1e+15 to 1e+15"
    assert Column("A score.").broken_bound(math.copysign(LARGEST, value)) is None
    assert Column("A chance.", ge=0, le=1).broken_bound(abs(value)) == "<= 1"
    expected = (
        "train_dataset: column 'score_chosen' must be from -1e+15 to 1e+15 (Score of the chosen side, such as a reward "
        "model's); wrong in 2 of 3 rows, first in row 1. Scale the column, or filter these rows if the number stands for "
        "none."
    )
    assert check({**GOOD, "score_chosen": [1.0, float(value), float(value)]}, SCORE_COLUMNS).problems[-1] == expected
    per_token = {"w": Column("A weight.", per_token="chosen")}
    found = check({**GOOD, "w": [[1.0], [2.0, float(value)], [1.0]]}, per_token).problems
    assert "from -1e+15 to 1e+15 at every token (A weight); wrong in 1 of 3 rows, first in row 1. Scale" in found[0]
    with pytest.raises(ValueError, match=r"must be from -1e\+15 to 1e\+15 in every row"):  # of a stream
        ColumnCollator(lambda examples: {}, {"w": Column("A weight.")})([{"w": 1.0}, {"w": value}])


@pytest.mark.parametrize("values", [[[1.0], [1e39], [1.0]], [[1.0], [-1e39], [float("nan")]]])
def test_numbers_per_token_are_checked_as_batches_hold_them(values: Any) -> None:
    column = {"margin": Column("A weight.", per_token="chosen")}
    problems = check({**GOOD, "margin": values}, column).problems
    assert "must be finite in float32 at every token" in problems[0]


def test_streamed_numbers_are_checked_as_batches_hold_them() -> None:
    collator = ColumnCollator(lambda examples: {}, {"w": Column("A weight.")})
    for value in (1e39, 10**400):
        with pytest.raises(ValueError, match="column 'w' must be finite in float32 in every row"):
            collator([{"w": 1.0}, {"w": value}])
