"""Rows that are probably not meant as they are get one warning with their number."""

from __future__ import annotations

import pytest

from .listing import Kind
from .rows import NO, ROW, TEXTS, YES, answer, prepared, user

doubtful = Kind("Rows that are probably not meant so")
DOUBTS = [
    doubtful.case(
        "a side that ends with a user's turn",
        "warning with the number of rows",
        [{**ROW, "chosen": [YES, user("thanks")]}, ROW],
        "a side ends with a turn that is not the assistant's, such as the user's, and its words are trained on, in 1 of 2",
    ),
    doubtful.case(
        "conversations of both sides that end with a user's turn",
        "warning with the number of rows",
        [{"chosen": [user(), YES, user("a")], "rejected": [user(), NO, user("b")]}],
        "a side ends with a turn that is not the assistant's",
    ),
    doubtful.case(
        "a side that ends with a tool's turn",
        "warning with the number of rows",
        [{**ROW, "rejected": [NO, {"role": "tool", "content": "1"}]}],
        "a side ends with a turn that is not the assistant's",
    ),
    doubtful.case(
        "a user's turn before the answer of a side",
        "warning with the number of rows",
        [{"chosen": [user(), YES, user("a"), YES], "rejected": [user(), NO, user("a"), NO]}],
        "a side has a user's turn before the answer, and its words are trained on, in 1 of 1 rows",
    ),
    doubtful.case(
        "a prompt that ends with a message of the assistant",
        "warning with the number of rows",
        [{**ROW, "prompt": [user(), answer("well")]}],
        "the prompt ends with a message of the assistant",
    ),
    doubtful.case(
        "texts without a prompt and without a common start",
        "warning with the number of rows",
        [{"chosen": "yes", "rejected": "no"}, {"chosen": "say yes", "rejected": "say no"}],
        "there is no prompt, and the texts of both sides have no common start, in 1 of 2 rows, first in row 0",
    ),
    doubtful.case(
        "text sides that both repeat the text prompt",
        "warning with the number of rows",
        [{"prompt": "say", "chosen": "say yes", "rejected": "say no"}],
        "both sides repeat the text of the prompt",
    ),
    doubtful.case(
        "a text prompt that whole conversations do not hold",
        "warning with the number of rows",
        [{"prompt": "what is a dog", "chosen": [user(), YES], "rejected": [user(), NO]}],
        "the prompt's text does not occur in the conversations of both sides",
    ),
    doubtful.case(
        "a role that chat templates do not know",
        "warning with the number of rows",
        [{**ROW, "prompt": [{"role": "critic", "content": "say"}]}],
        "a message has the role 'critic', which most chat templates do not know, in 1 of 1 rows",
    ),
    doubtful.case(
        "a `context` column whose text is not in the prompt",
        "warning with the flag that joins them",
        [{**TEXTS, "context": "a dog has four legs"}],
        "column 'context' looks like a part of the prompt and is not read: its text is not in 'prompt'",
    ),
]


@pytest.mark.parametrize(("rows", "expected"), DOUBTS)
def test_doubtful_rows_are_a_warning_with_a_count(rows: list[dict], expected: str) -> None:
    _, told = prepared(rows)
    assert len(told) == 1
    assert expected in told[0]
