"""Columns with other names are mapped as asked, or named with what to do."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from tests.support.command_line import parse, write_data
from trl_dpo_ext.data.loading import load_preferences
from trl_dpo_ext.errors import InputError

from .listing import Kind
from .rows import NO, ROW, TEXTS, YES, construct, meaning, prepared, problems, streamed

renamed = Kind("Columns with other names")
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
    assert told == ["train_dataset: 1 of 2 rows are ties and are dropped. (ignore_findings: ties)"]
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
            "error with the flags",
            {"context": "p", "responses": [{"rank": 0, "completion": "a"}]},
            "--dataset_columns prompt=context completions=responses to train on lists.",
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
    assert ["ignore_findings: duplicate_row" in line for line in told] == [True, True]  # a row four times, in both


@renamed("`--dataset_streaming` with `--test_split_size`", "error that names both")
def test_a_stream_cannot_be_split(tmp_path: Any) -> None:
    file = write_data(tmp_path, ".jsonl")
    arguments = parse("--dataset_name", file, "--dataset_streaming", "true", "--test_split_size", "0.1")
    with pytest.raises(InputError, match=r"--test_split_size 0\.1 cannot be used with --dataset_streaming"):
        load_preferences(arguments.script, arguments.data, arguments.args)
