"""Rows of every published layout become prompt and answers, or the error names the first of them and what to do."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from tests.support import runs, tiny
from tests.support.command_line import parse, write_data
from trl_dpo_ext.data.loading import load_preferences
from trl_dpo_ext.data.prepare import checked_datasets
from trl_dpo_ext.errors import InputError

from .listing import Kind

converted = Kind("Rows in another layout are converted")
refused = Kind("Rows that can be read in two ways, or in none")
doubtful = Kind("Rows that are probably not meant so")
renamed = Kind("Columns with other names")
truncated = Kind("Prompts and answers beyond max_length")


def system(text: str = "be short") -> dict[str, str]:
    return {"role": "system", "content": text}


def user(text: str = "say yes") -> dict[str, str]:
    return {"role": "user", "content": text}


def answer(text: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


YES, NO = answer("yes"), answer("no")
ROW = {"prompt": [user()], "chosen": [YES], "rejected": [NO]}
TEXTS = {"prompt": "say", "chosen": " yes", "rejected": " no"}


def prepared(rows: Any, **columns: str) -> tuple[Any, list[str]]:
    """What reaches TRL, and the warnings."""
    dataset = Dataset.from_list(rows, on_mixed_types="use_json") if isinstance(rows, list) else rows
    args = SimpleNamespace(dataset_columns=columns or None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = checked_datasets({}, args, train_dataset=dataset)["train_dataset"]
    return found, [str(warning.message) for warning in caught]


def problems(rows: Any, **columns: str) -> str:
    with pytest.raises(InputError) as caught:
        prepared(rows, **columns)
    return str(caught.value)


def meaning(row: dict[str, Any]) -> dict[str, Any]:
    """Prompt and sides, without fields that `datasets` has added."""

    def plain(value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [{name: field for name, field in message.items() if field is not None} for message in value]

    return {name: plain(row[name]) for name in ("prompt", "chosen", "rejected")}


def streamed(rows: list[dict[str, Any]]) -> IterableDataset:
    return IterableDataset.from_generator(lambda: iter(rows))


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


REFUSED = [
    refused.case(
        "several answers on one side",
        "error: one row per pair",
        [TEXTS | {"chosen": ["yes", "yes please"], "rejected": ["no"]}],
        "chosen is a list of several answers; wrong in 1 of 1 rows, first in row 0 (2 answers there). Give one row per",
    ),
    refused.case(
        "several conversations on one side",
        "error: one row per pair",
        [{**ROW, "rejected": [[NO], [NO], [NO]]}],
        "rejected is a list of several answers; wrong in 1 of 1 rows, first in row 0 (3 answers there)",
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
        "texts without a prompt, one of which is the start of the other",
        "error",
        [{"chosen": "say yes", "rejected": "say yes please"}],
        "one side is the start of the other",
    ),
    refused.case(
        "texts without a prompt and a common start, with a blank at the end",
        "error",
        [{"chosen": "yes ", "rejected": "no"}],
        "TRL would take the chosen answer as the prompt",
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


NO_PROMPT = {"chosen": "the sky is blue", "rejected": "the sky is four"}


@pytest.mark.parametrize(
    ("row", "flag"),
    [
        renamed.case(
            "text sides and `question`, without `prompt`", "error with the flag", {"question": "why"}, "prompt=question"
        ),
        renamed.case(
            "text sides and `instruction`, without `prompt`",
            "error with the flag",
            {"instruction": "why"},
            "prompt=instruction",
        ),
        renamed.case(
            "Orca's pairs: `system`, `question`, and sides",
            "error with the flag",
            {"system": "", "question": "why"},
            "prompt=question",
        ),
    ],
)
def test_a_column_that_is_meant_as_prompt_is_named(row: dict, flag: str) -> None:
    assert f"--dataset_columns {flag}" in problems([{**row, **NO_PROMPT}])


@renamed("Alpaca's `instruction` and `input`, without `prompt`", "warning or error with the flag that joins them")
def test_two_columns_that_may_be_meant_as_prompt_are_named() -> None:
    rows = [{"instruction": "say", "input": "yes", **NO_PROMPT}]
    assert "or prompt=instruction,input to join them" in prepared(rows)[1][0]
    rows[0] |= {"chosen": "yes", "rejected": "no"}
    assert "or prompt=instruction,input to join them" in problems(rows)


@renamed("answers in messages and `question`, without `prompt`", "error with the flag")
def test_messages_without_a_prompt_name_the_column_that_may_be_it() -> None:
    rows = [{"question": "say yes", "chosen": [YES], "rejected": [NO]}]
    assert "--dataset_columns prompt=question" in problems(rows)
    assert [meaning(row) for row in prepared(rows, prompt="question")[0]] == [ROW]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        renamed.case(
            "`dataset_columns` with other names of prompt and sides",
            "the columns are renamed",
            {"question": "say", "good": " yes", "rejected": " no"},
            {"prompt": "question", "chosen": "good"},
        ),
        renamed.case(
            "`dataset_columns` that swaps two columns",
            "they change their names",
            {"prompt": "say", "chosen": " no", "rejected": " yes"},
            {"chosen": "rejected", "rejected": "chosen"},
        ),
        renamed.case(
            "`prompt=instruction,input`",
            "texts that are not empty are joined by a blank line",
            {"instruction": "say", "input": "", "chosen": " yes", "rejected": " no"},
            {"prompt": "instruction,input"},
        ),
        renamed.case(
            "`chosen=answers.good.0`",
            "the value is taken from inside the column",
            {"prompt": "say", "answers": {"good": [" yes"], "bad": [" no"]}},
            {"chosen": "answers.good.0", "rejected": "answers.bad.0"},
        ),
        renamed.case(
            "`a`, `b`, `winner` and `winner_is_b` for two answers (PKU-SafeRLHF)",
            "the better answer is the chosen one",
            {"prompt": "say", "response_0": " no", "response_1": " yes", "better_response_id": 1},
            {"a": "response_0", "b": "response_1", "winner": "better_response_id", "winner_is_b": "1"},
        ),
        renamed.case(
            "`winner_is_b=0` (SHP)",
            "the better answer is the chosen one",
            {"history": "say", "human_ref_A": " yes", "human_ref_B": " no", "labels": 1},
            {"prompt": "history", "a": "human_ref_A", "b": "human_ref_B", "winner": "labels", "winner_is_b": "0"},
        ),
        renamed.case(
            "`winner_is_b=positive` (HelpSteer)",
            "the sign decides",
            {"prompt": "say", "response1": " yes", "response2": " no", "overall_preference": -2},
            {"a": "response1", "b": "response2", "winner": "overall_preference", "winner_is_b": "positive"},
        ),
    ],
)
@pytest.mark.parametrize("kind", ["loaded", "streamed"])
def test_columns_are_mapped(row: dict, columns: dict[str, str], kind: str) -> None:
    found, told = prepared([row] if kind == "loaded" else streamed([row]), **columns)
    assert ([meaning(row) for row in found], told) == ([TEXTS], [])
    assert set(next(iter(found))) == set(TEXTS)


@renamed("ties among two answers", "they are dropped, and counted in a warning")
def test_ties_are_dropped_and_counted() -> None:
    columns = {"a": "response_a", "b": "response_b", "winner": "winner", "winner_is_b": "model_b"}
    rows = [
        {"prompt": "say", "response_a": " no", "response_b": " yes", "winner": winner} for winner in ("model_b", "tie")
    ]
    found, told = prepared(rows, **columns)
    assert list(found) == [TEXTS]
    assert told == ["train_dataset: 1 of 2 rows are ties and are dropped."]
    assert "names one of the answers in none of 1 rows" in problems(rows[1:], **columns)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        renamed.case(
            "`dataset_columns` with a column that is not there",
            "error that lists the columns",
            {"prompt": "query"},
            "--dataset_columns prompt=query names 'query', which the dataset does not have; it has 'prompt'",
        ),
        renamed.case(
            "`dataset_columns` onto a column that is there",
            "error",
            {"prompt": "chosen"},
            "--dataset_columns prompt=chosen would replace the dataset's column 'prompt'",
        ),
        renamed.case(
            "a path into a column that does not lead anywhere",
            "error",
            {"system": "prompt.0.text"},
            "names 'prompt.0.text' in its first row, which the dataset does not have",
        ),
    ],
)
def test_wrong_maps_of_columns_are_named(columns: dict[str, str], expected: str) -> None:
    assert expected in problems([{**TEXTS}], **columns)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        renamed.case(
            "PKU-SafeRLHF's two responses",
            "error with the flags",
            {"prompt": "p", "response_0": "a", "response_1": "b", "better_response_id": 1},
            "--dataset_columns a=response_0 b=response_1 winner=better_response_id winner_is_b=1.",
        ),
        renamed.case(
            "SHP's two replies",
            "error with the flags",
            {"history": "p", "human_ref_A": "a", "human_ref_B": "b", "labels": 1},
            "--dataset_columns prompt=history a=human_ref_A b=human_ref_B winner=labels winner_is_b=0.",
        ),
        renamed.case(
            "StackExchange's `response_j` and `response_k`",
            "error with the flags",
            {"question": "p", "response_j": "a", "response_k": "b"},
            "--dataset_columns prompt=question chosen=response_j rejected=response_k.",
        ),
        renamed.case(
            "several ranked completions per prompt",
            "error: one row per pair",
            {"context": "p", "completions": [{"rank": 0, "completion": "a"}]},
            "Several completions per prompt in column 'completions' (rank in 'rank'): make one row per pair.",
        ),
        renamed.case(
            "unpaired completions with a label",
            "error that names KTO",
            {"prompt": "p", "completion": "a", "label": True},
            "unpaired preferences: TRL's KTOTrainer takes them",
        ),
    ],
)
def test_layouts_without_sides_are_named_with_what_to_do(row: dict, expected: str) -> None:
    text = problems([row])
    assert "train_dataset has no column 'chosen', 'rejected'; it has" in text
    assert expected in text


LONG = [{"prompt": "say " * 6, "chosen": "yes", "rejected": "no no no"}]
SHORT = [{"prompt": "say ", "chosen": "yes", "rejected": "no no no"}]


def construct(folder: Any, rows: list[dict], **settings: Any) -> tuple[Any, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = runs.trainer(folder, train_dataset=Dataset.from_list(rows), loss_type="simpo", **settings)
    return trainer, [str(w.message) for w in caught if "dataset" in str(w.message)]


@truncated("prompts that all fill `max_length`", "error: all rows dropped, with the length of the shortest prompt")
def test_a_run_without_rows_is_stopped(tmp_path: Any) -> None:
    with pytest.raises(InputError, match=r"all 8 rows dropped: the prompt alone fills max_length=4.* has 6 tokens"):
        construct(tmp_path, LONG * 8, max_length=4)


@truncated("prompts that fill `max_length` in some rows", "warning with their number")
def test_dropped_rows_are_counted(tmp_path: Any) -> None:
    trainer, told = construct(tmp_path, LONG * 2 + SHORT * 6, max_length=5)
    assert len(trainer.train_dataset) == 6
    assert told == [
        "train dataset: 2 of 8 rows dropped: the prompt alone fills max_length=5. Raise max_length, or filter these rows "
        "to silence this."
    ]


@truncated("answers that `max_length` cuts", "warning with their number on each side")
def test_cut_answers_are_counted(tmp_path: Any) -> None:
    _, told = construct(tmp_path, SHORT * 3, max_length=4)
    assert "max_length=4 cuts the answers of 3 of 3 rows (chosen in 0, rejected in 3)" in told[0]
    assert len(told) == 1


SAME = [{"prompt": "say ", "chosen": "yes it is blue", "rejected": "yes it is four"}]


@truncated("pairs that are identical after truncation", "warning with their number")
def test_pairs_made_identical_by_truncation_are_counted(tmp_path: Any) -> None:
    _, told = construct(tmp_path, SAME * 2 + SHORT, max_length=4)
    assert "identical after truncation to max_length=4 in 2 of 3 rows" in told[1]
    _, told = construct(tmp_path, SAME, max_length=5)
    assert "identical" not in told[0]


@truncated("`keep_end`, with answers that are longer than `max_length`", "warning: nothing of the prompt is left")
def test_lost_prompts_are_counted(tmp_path: Any) -> None:
    rows = [{"prompt": "say ", "chosen": "yes no yes", "rejected": "no no yes"}]
    _, told = construct(tmp_path, rows * 2, max_length=3, truncation_mode="keep_end")
    assert "cuts the answers of 2 of 2 rows" in told[0]
    assert "identical after truncation to max_length=3 in 2 of 2" not in told[0]
    assert "leaves nothing of the prompt in 2 of 2 rows" in told[-1]


@truncated("an answer in `reasoning_content`, which the chat template does not print", "warning: the answer is empty")
def test_answers_that_the_template_drops_are_counted(tmp_path: Any) -> None:
    thought = {"role": "assistant", "content": None, "reasoning_content": "yes it is"}
    _, told = construct(
        tmp_path, [{**ROW, "chosen": [thought]}, {**ROW, "chosen": [{**YES, "reasoning_content": None}]}]
    )
    assert "in 1 of 2 rows an answer is in reasoning_content or reasoning or thinking alone" in told[0]


@renamed("`dataset_columns`, in training, evaluation, and `evaluate` with new data", "all are renamed")
def test_one_map_serves_training_and_evaluation(tmp_path: Any) -> None:
    rows = [{"question": "say ", "chosen": "yes", "rejected": "no"}] * 4
    data = Dataset.from_list(rows)
    trainer, told = construct(tmp_path, rows, eval_dataset=data, dataset_columns={"prompt": "question"})
    plain, _ = construct(tmp_path, [{"prompt": "say ", "chosen": "yes", "rejected": "no"}] * 4)
    assert trainer.train_dataset["prompt_ids"][:] == plain.train_dataset["prompt_ids"][:]
    before = trainer.evaluate()["eval_loss"]
    assert trainer.evaluate(data)["eval_loss"] == before
    assert trainer.evaluate(trainer.eval_dataset)["eval_loss"] == before
    assert told == []


@renamed("`--dataset_streaming` with `--test_split_size`", "error that names both")
def test_a_stream_cannot_be_split(tmp_path: Any) -> None:
    file = write_data(tmp_path, ".jsonl")
    arguments = parse("--dataset_name", file, "--dataset_streaming", "true", "--test_split_size", "0.1")
    with pytest.raises(InputError, match=r"--test_split_size 0\.1 cannot be used with --dataset_streaming"):
        load_preferences(arguments.script, arguments.data, arguments.args)


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
