"""Rows of every published layout become prompt and answers, or the error names the first of them and what to do."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from tests.support import tiny

from .listing import Kind
from .rows import NO, ROW, TEXTS, YES, answer, construct, meaning, prepared, streamed, system, user

converted = Kind("Rows in another layout are converted")
HUMAN, GPT = {"from": "human", "value": "say yes"}, {"from": "gpt", "value": "yes"}
PARTS = [{"type": "text", "text": "say"}, {"type": "text", "text": " yes"}]
JSON = {name: str(value).replace("'", '"') for name, value in ROW.items()}
CONVERTED = [
    converted.case(
        "the sides repeat a prompt of messages",
        "the repetition is dropped",
        [{"prompt": [user()], "chosen": [user(), YES], "rejected": [user(), NO]}, ROW],
    ),
    converted.case(
        "one side repeats the prompt, the other does not",
        "the repetition is dropped from that side",
        [{"prompt": [user()], "chosen": [user(), YES], "rejected": [NO]}],
    ),
    converted.case(
        "a text prompt, and one side that is a whole conversation",
        "the repetition is dropped from that side",
        [{"prompt": "say yes", "chosen": [user(), YES], "rejected": [NO]}],
    ),
    converted.case(
        "text prompts, with answers in some rows and whole conversations in others",
        "each row is read by its own layout",
        [
            {"prompt": "say yes", "chosen": [YES], "rejected": [NO]},
            {"prompt": "say yes", "chosen": [user(), YES], "rejected": [user(), NO]},
        ],
    ),
    converted.case(
        "a prompt of messages beside text answers",
        "the answers become messages of the assistant",
        [{"prompt": [user()], "chosen": "yes", "rejected": "no"}],
    ),
    converted.case(
        "one side in messages, the other a text",
        "both become messages",
        [{"prompt": [user()], "chosen": "yes", "rejected": [NO]}],
    ),
    converted.case(
        "one message in place of a list", "it is put into a list", [{"prompt": user(), "chosen": YES, "rejected": NO}]
    ),
    converted.case(
        "a text prompt beside one message per side",
        "all become lists of messages",
        [{"prompt": "say yes", "chosen": YES, "rejected": NO}],
    ),
    converted.case(
        "`messages` beside answers, without `prompt`",
        "`messages` is the prompt",
        [{"messages": [user()], "chosen": [YES], "rejected": [NO]}],
    ),
    converted.case(
        "`conversations` beside text answers",
        "`conversations` is the prompt",
        [{"conversations": [HUMAN], "chosen": "yes", "rejected": "no"}],
    ),
    converted.case(
        "`from` and `value` (ShareGPT)",
        "they become `role` and `content`",
        [{"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "no"}}],
    ),
    converted.case(
        "whole conversations in `from` and `value`",
        "they become `role` and `content`, and their common start the prompt",
        [{"chosen": [HUMAN, GPT], "rejected": [HUMAN, {"from": "chatgpt", "value": "no"}]}],
    ),
    converted.case(
        "roles named human and gpt",
        "they become user and assistant",
        [
            {
                "prompt": [{"role": "human", "content": "say yes"}],
                "chosen": [{"role": "gpt", "content": "yes"}],
                "rejected": [{"role": "gpt", "content": "no"}],
            }
        ],
    ),
    converted.case(
        "content in text parts",
        "the parts are joined",
        [{**ROW, "prompt": [{"role": "user", "content": PARTS}]}],
    ),
    converted.case(
        "a side that is a list of text parts",
        "the parts are joined to one answer",
        [{**ROW, "chosen": [{"type": "text", "text": "ye"}, {"type": "text", "text": "s"}]}],
    ),
    converted.case(
        "a list with one text for each side",
        "the text is the answer",
        [{"prompt": [user()], "chosen": ["yes"], "rejected": ["no"]}],
    ),
    converted.case(
        "texts in some rows, messages in others",
        "texts become messages",
        [{"prompt": "say yes", "chosen": "yes", "rejected": "no"}, ROW],
    ),
    converted.case("messages written as JSON text", "they are decoded", [JSON]),
    converted.case(
        "`messages` and `rejected_response` (ms-swift)",
        "the last message is the chosen answer",
        [{"messages": [user(), YES], "rejected_response": "no"}],
    ),
    converted.case(
        "a field that only one side's messages have, such as tool_calls",
        "the sides' common start is found all the same",
        [
            {"chosen": [user(), YES], "rejected": [{**user(), "name": None}, {**NO, "name": None}]},
        ],
    ),
    converted.case(
        "no prompt (None) beside whole conversations",
        "their common start is the prompt",
        [ROW, {"prompt": None, "chosen": [user(), YES], "rejected": [user(), NO]}],
    ),
]


@pytest.mark.parametrize("rows", CONVERTED)
@pytest.mark.parametrize("kind", ["loaded", "streamed"])
def test_rows_of_other_layouts_become_prompt_and_answers(rows: list[dict], kind: str) -> None:
    if kind == "streamed" and isinstance(rows[0].get("prompt"), str) and isinstance(rows[0]["chosen"], str):
        rows = rows if rows[0] is JSON else rows[::-1]  # a stream is converted by its first row
    found, told = prepared(rows if kind == "loaded" else streamed(rows))
    if "prompt" not in next(iter(found)):
        found = found.map(tiny_extract)
    assert [meaning(row) for row in found] == [ROW] * len(rows)
    assert told == []


def tiny_extract(row: dict[str, Any]) -> dict[str, Any]:
    from trl import extract_prompt

    return extract_prompt(row)


def test_whole_conversations_beside_a_prompt_are_left_to_trl() -> None:
    data = Dataset.from_list([{"prompt": "say yes", "chosen": [user(), YES], "rejected": [user(), NO]}] * 3)
    found, told = prepared(data)
    assert (found.column_names, told) == (["chosen", "rejected"], [])
    assert found.data.table.equals(data.data.table.drop(["prompt"]))


@converted("an answer in `reasoning_content` alone", "it counts as an answer")
def test_an_answer_may_be_reasoning_alone() -> None:
    thought = {"role": "assistant", "content": None, "reasoning_content": "yes it is"}
    found, told = prepared([{**ROW, "chosen": [thought]}])
    assert found[0]["chosen"] == [{**thought, "content": ""}]
    assert told == []


@converted("a `system` column beside messages", "it becomes the first message, where it is not empty")
def test_a_system_column_is_prepended() -> None:
    found, _ = prepared([{**ROW, "system": "be short"}, {**ROW, "system": ""}, {**ROW, "prompt": [system(), user()]}])
    assert [row["prompt"] for row in found] == [[system(), user()], [user()], [system(), user()]]


@converted("`chat_template_kwargs` that is None in some rows", "it is empty there")
def test_missing_template_arguments_are_empty() -> None:
    found, _ = prepared([{**ROW, "chat_template_kwargs": None}, {**ROW, "chat_template_kwargs": {"tiny": True}}])
    assert found["chat_template_kwargs"][:] == [{}, {"tiny": True}]


LEFT_ALONE = {
    "texts": TEXTS,
    "transcripts": {"chosen": "\n\nHuman: hi\n\nAssistant: yes", "rejected": "\n\nHuman: hi\n\nAssistant: no"},
    "messages": ROW,
    "conversations": {"chosen": [system(), user(), YES], "rejected": [system(), user(), NO]},
    "unused columns": {**ROW, "messages": [user(), YES], "score_chosen": 1.0, "question": "say yes"},
    "tools": {**ROW, "tools": '[{"type": "function"}]', "chat_template_kwargs": {"tiny": True}},
    "tool calls": {
        "prompt": [
            user(),
            {**answer(""), "content": None, "tool_calls": [{"name": "f"}]},
            {"role": "tool", "content": "1"},
        ],
        "chosen": [{**YES, "tool_calls": None}],
        "rejected": [{**NO, "tool_calls": [{"name": "f"}]}],
    },
    "several turns": {"prompt": [user(), YES, user()], "chosen": [YES], "rejected": [NO]},
    "an empty system message": {**ROW, "prompt": [system(""), user()]},
}


@pytest.mark.parametrize("row", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_a_layout_that_trl_takes_stays_the_same_object_without_a_word(row: dict) -> None:
    data = Dataset.from_list([row] * 2)
    found, told = prepared(data)
    assert found is data
    assert told == []


def test_converted_rows_train_on_the_tokens_of_the_layout_that_is_meant(tmp_path: Any) -> None:
    meant = tiny.preferences(4, conversational=True)
    repeated = [
        {**row, "chosen": row["prompt"] + row["chosen"], "rejected": [row["rejected"][0]["content"]]} for row in meant
    ]
    ours, told = construct(tmp_path, [*repeated[:0], *repeated])
    plain, _ = construct(tmp_path, list(meant))
    for column in ("prompt_ids", "chosen_ids", "rejected_ids"):
        assert ours.train_dataset[column][:] == plain.train_dataset[column][:]
    assert told == []
