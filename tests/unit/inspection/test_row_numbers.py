"""Rows are named by their numbers in the loaded split, whatever was dropped before, by `inspect` and `train` alike."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_dataset

from tests.support import runs, tiny
from trl_dpo_ext import InputError, inspect_preferences

COLUMNS = {"prompt": "prompt", "a": "a", "b": "b", "winner": "winner", "winner_is_b": "b"}
TIE = {"prompt": "say ", "a": "yes", "b": "no", "winner": "tie"}
SOUND = {"prompt": "say that ", "a": "yes it is", "b": "no no please", "winner": "a"}


def said(text: str, role: str = "assistant") -> dict[str, str]:
    return {"role": role, "content": text}


def told(folder: Path, rows: list[dict], **settings: Any) -> list[str]:
    """What a run warns of its training dataset."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runs.trainer(folder, train_dataset=Dataset.from_list(rows), loss_type="simpo", **settings)
    lines = [str(each.message) for each in caught]
    return [line for line in lines if line.startswith(("train dataset", "train_dataset"))]


def shown(folder: Path, rows: list[dict], token: Any = None, **settings: Any) -> dict[str, dict]:
    args = runs.config(folder, **settings)
    result = inspect_preferences(Dataset.from_list(rows), token or tiny.tokenizer(), args)
    return {found["name"]: found for found in result.data["findings"]}


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("identical", {**SOUND, "b": SOUND["a"]}),
        ("prompt_repeated", {**SOUND, "a": "say that yes", "b": "say that no"}),
        ("last_turn", {"prompt": [said("say", "user")], "a": [said("yes"), said("so", "user")], "b": [said("no")]}),
        ("prompt_ends_open", {"prompt": [said("say", "user"), said("it")], "a": [said("yes")], "b": [said("no")]}),
    ],
)
def test_ties_do_not_shift_the_rows_of_other_findings(tmp_path: Path, name: str, row: dict) -> None:
    kind = [{**row, "winner": "a"}] if isinstance(row["prompt"], list) else [SOUND, row]
    rows = [{**kind[-1], "winner": "tie"}, *kind, {**kind[-1], "winner": "tie"}]
    at = len(rows) - 2
    found = shown(tmp_path, rows, dataset_columns=COLUMNS)
    assert (found[name]["rows"], found["ties"]["rows"]) == ([at], [0, len(rows) - 1])
    lines = told(tmp_path, rows, dataset_columns=COLUMNS)
    (line,) = [line for line in lines if line.endswith(f"ignore_findings: {name})")]
    if "first in row" in line:
        assert f"first in row {at}." in line
    assert (
        any(line.endswith("2 of 4 rows are ties and are dropped. (ignore_findings: ties)") for line in lines) or at < 2
    )


def test_torn_rows_do_not_shift_the_rows_of_other_findings(tmp_path: Path) -> None:
    torn = {"chosen": "say yes please", "rejected": "say yes"}
    rows = [
        torn,
        {"chosen": "say yes it is", "rejected": "say no no"},
        torn,
        {"chosen": "say it", "rejected": "say it"},
    ]
    found = shown(tmp_path, rows)
    assert (found["torn"]["rows"], found["identical"]["rows"]) == ([0, 2], [3])
    cut = [*rows[:3], {"chosen": "say yes yes yes yes", "rejected": "say no no no no"}]
    found = shown(tmp_path, cut, max_length=5)
    assert found["answer_cut"]["rows"] == [3]
    assert any("first row 0: " in line for line in told(tmp_path, rows))


def test_errors_name_the_loaded_row_behind_ties(tmp_path: Path) -> None:
    for name, problem in (("chosen completion is empty", {"a": ""}), ("the prompt is missing", {"prompt": None})):
        rows = [TIE, TIE, SOUND, {**SOUND, **problem}]
        with pytest.raises(InputError, match=rf"{name}.*first in row 3") as stopped:
            told(tmp_path, rows, dataset_columns=COLUMNS)
        sentences = [found["sentence"] for found in shown(tmp_path, rows, dataset_columns=COLUMNS).values()]
        assert any(name in sentence and "first in row 3" in sentence for sentence in sentences), stopped.value
    rows = [{**TIE, "margin": 1.0}, {**SOUND, "margin": 1.0}, {**SOUND, "margin": None}]
    with pytest.raises(InputError, match=r"column 'margin' must be .*first in row 2"):
        told(tmp_path, rows, dataset_columns=COLUMNS, weight_column="margin")


def test_a_column_called_row_is_the_users(tmp_path: Path) -> None:
    rows = [{"prompt": "say ", "chosen": f"yes it {at}", "rejected": "no no", "__row__": "x"} for at in range(3)]
    found = shown(tmp_path, [*rows, rows[0]])
    assert found["duplicate_row"]["rows"] == [3]
    assert "__row__" in found["unused_column"]["sentence"]
    (error,) = shown(tmp_path, [{"prompt": "say", "answer": "yes"}]).values()
    assert "it has 'prompt', 'answer'." in error["sentence"]


REFUSING = "{{ raise_exception('Roles must alternate!') if messages[0]['role'] == 'system' }}" + tiny.CHAT_TEMPLATE


def test_rows_that_the_template_refuses_are_named(tmp_path: Path) -> None:
    talk = {"prompt": [said("say", "user")], "a": [said("yes")], "b": [said("no")], "winner": "a"}
    rows = [{**talk, "winner": "tie"}, talk, {**talk, "prompt": [said("be", "system"), said("say", "user")]}]
    token = tiny.tokenizer()
    token.chat_template = REFUSING
    (error,) = [f for f in shown(tmp_path, rows, token, dataset_columns=COLUMNS).values() if f["level"] == "error"]
    expected = "the chat template refuses 1 of 2 rows, first row 2: Roles must alternate! Change or filter these rows"
    assert expected in error["sentence"]
    with pytest.raises(InputError, match="refuses 1 of 2 rows, first row 2: Roles must alternate!") as stopped:
        told(tmp_path, rows, dataset_columns=COLUMNS, processing_class=token)
    assert type(stopped.value.__cause__).__name__ == "TemplateError"
    assert "error" not in {f["level"] for f in shown(tmp_path, rows[:2], token, dataset_columns=COLUMNS).values()}


def test_train_reads_what_inspect_has_tokenized(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in tiny.preferences(conversational=True)))

    def loaded() -> Dataset:
        return load_dataset("json", data_files=str(file), cache_dir=str(tmp_path / "cache"))["train"]

    result = inspect_preferences(loaded(), tiny.tokenizer(), runs.config(tmp_path, max_length=9))
    trainer = runs.trainer(tmp_path, train_dataset=loaded(), loss_type="simpo", max_length=9)
    rows, *_ = (part["filename"] for part in trainer.train_dataset.cache_files)  # the others are which rows are left
    assert rows == result.tables["train"].dataset.cache_files[0]["filename"]
    assert re.search(r"cache-\w+\.arrow$", rows)
