"""Rows that can be read in two ways, or in none, are one error that names the first of them."""

from __future__ import annotations

import pytest
from datasets import Dataset, DatasetDict

from trl_dpo_ext.errors import InputError

from .listing import Kind
from .rows import NO, ROW, TEXTS, YES, prepared, problems, streamed, system, user

refused = Kind("Rows that can be read in two ways, or in none")
REFUSED = [
    refused.case(
        "several answers on one side",
        "error: one row per pair",
        [
            TEXTS | {"chosen": ["yes"], "rejected": "no"},
            TEXTS | {"chosen": ["yes", "yes please"], "rejected": "no"},
        ],
        "chosen is a list of several answers; wrong in 1 of 2 rows, first in row 1 (2 answers there). Give one row per",
    ),
    refused.case(
        "several conversations on one side",
        "error: one row per pair",
        [ROW, {**ROW, "rejected": [[NO], [NO], [NO]]}],
        "rejected is a list of several answers; wrong in 1 of 2 rows, first in row 1 (3 answers there)",
    ),
    refused.case(
        "a text prompt that is None in some rows",
        "error with the number of rows",
        [TEXTS, {**TEXTS, "prompt": None}, {**TEXTS, "prompt": None}],
        "the prompt is missing (None); wrong in 2 of 3 rows, first in row 1.",
    ),
    refused.case(
        "a prompt of messages that is None or empty in some rows",
        "error with the number of rows",
        [ROW, {**ROW, "prompt": []}, {**ROW, "prompt": None}],
        "the prompt is empty or missing (None), and the sides begin with",
    ),
    refused.case(
        "answers alone, without any prompt",
        "error",
        [{"chosen": [YES], "rejected": [NO]}],
        "the prompt is empty or missing (None)",
    ),
    refused.case(
        "whole conversations that begin with different messages",
        "error",
        [{"chosen": [user("a"), YES], "rejected": [user("b"), NO]}],
        "the sides begin with different messages",
    ),
    refused.case(
        "messages from somebody unknown (`from: critic`)",
        "error that names the sender",
        [{**ROW, "chosen": [{"from": "critic", "value": "yes"}]}],
        "a message of chosen is from 'critic', which is none of human, user, gpt",
    ),
    refused.case(
        "messages with other keys than role and content",
        "error that names the keys",
        [{**ROW, "chosen": {"text": "yes", "score": 1.0}}],
        "chosen has a message without a role; wrong in 1 of 1 rows, first in row 0 (its keys are 'score', 'text')",
    ),
    refused.case(
        "a message of the prompt without content",
        "error",
        [{**ROW, "prompt": [{"role": "user", "content": None}]}],
        "a message of the prompt has no content",
    ),
    refused.case(
        "a prompt that ends with the answer that a side begins with",
        "error",
        [{"messages": [user(), YES], "chosen": [YES], "rejected": [NO]}],
        "the prompt ends with the answer that a side begins with",
    ),
    refused.case(
        "an image part in a dataset without `images`",
        "error that names the part's type",
        [{**ROW, "prompt": [{"role": "user", "content": [{"type": "image", "text": None}]}]}],
        "prompt has a content part of type 'image', and the dataset has no column 'images'",
    ),
    refused.case(
        "a `system` column beside text prompts",
        "error",
        [{**TEXTS, "system": "be short"}],
        "text prompts have no place for the text in column 'system'",
    ),
    refused.case(
        "texts without a prompt, one of which is the start of the other, in every row",
        "error",
        [{"chosen": "say yes", "rejected": "say yes please"}],
        "one side is the start of the other, so that the prompt would hold an answer, in all 1 rows",
    ),
    refused.case(
        "numbers as answers", "error", [{**TEXTS, "chosen": 1, "rejected": 0}], "chosen is neither text nor a list of"
    ),
    refused.case(
        "message lists in a CSV file, as Python writes them",
        "error: use JSONL or Parquet",
        [{name: str(value) for name, value in ROW.items()}],
        "CSV cannot hold message lists; use JSONL or Parquet",
    ),
    refused.case(
        "a text prompt, and two sides that begin differently",
        "error",
        [{"prompt": "say yes", "chosen": [system(), user(), YES], "rejected": [NO]}],
        "one side begins with other messages than the prompt and than the other side",
    ),
]


@pytest.mark.parametrize(("rows", "expected"), REFUSED)
def test_rows_that_cannot_be_converted_are_one_error(rows: list[dict], expected: str) -> None:
    assert expected in problems(rows)


@refused("rows of a kind that is wrong in row 4, 6 and 7 of 10", "error: wrong in 3 of 10 rows, first in row 4")
def test_wrong_rows_are_counted_and_the_first_is_named() -> None:
    rows = [ROW] * 10
    for index in (4, 6, 7):
        rows[index] = {**ROW, "prompt": None}
    assert "wrong in 3 of 10 rows, first in row 4" in problems(rows)


@refused("wrong rows of two kinds", "both are in one error, with wrong values of extra columns")
def test_all_kinds_of_wrong_rows_are_listed_at_once() -> None:
    rows = [{**ROW, "chosen": []}, {**ROW, "prompt": []}, {**ROW, "rejected": [{"from": "critic", "value": "no"}]}]
    text = problems(rows)
    assert "the chosen completion is empty; wrong in 1 of 3 rows, first in row 0" in text
    assert "the prompt is empty or missing (None)" in text
    assert "'critic'" in text


@refused("a DatasetDict as training data", "error: pass one split")
def test_a_dictionary_of_splits_is_named() -> None:
    assert "train_dataset is a DatasetDict of train, test. Pass one split" in problems(
        DatasetDict({"train": Dataset.from_list([ROW]), "test": Dataset.from_list([ROW])})
    )


@refused("a wrong row in the middle of a stream", "error with the content of the row, when it is read")
def test_a_wrong_row_of_a_stream_is_shown() -> None:
    found, _ = prepared(streamed([ROW, {**ROW, "chosen": [{"from": "critic", "value": "yes"}]}]))
    with pytest.raises(InputError, match=r"'critic'.*in the streamed row .*'say yes'"):
        list(found)


@refused("messages in a stream that began with texts", "error with the content of the row, when it is read")
def test_a_stream_of_texts_holds_no_messages() -> None:
    found, _ = prepared(streamed([TEXTS, ROW]))
    with pytest.raises(InputError, match="the first row of the stream holds texts"):
        list(found)
