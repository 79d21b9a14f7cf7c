"""What is said of a dataset as it was loaded: its layout, and which columns nothing reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests.support import runs, tiny
from trl_dpo_ext import inspect_preferences


def said(text: str, role: str = "assistant") -> dict[str, str]:
    return {"role": role, "content": text}


USER, YES, NO = said("say", "user"), said("yes it"), said("no no")
TALK = {"prompt": [USER], "chosen": [YES], "rejected": [NO]}
TEXTS = {"prompt": "say ", "chosen": "yes it", "rejected": "no no"}
WITHOUT = {name: TEXTS[name] for name in ("chosen", "rejected")}
LAYOUTS: dict[str, tuple[dict, dict, str, list[str]]] = {
    "texts": (TEXTS, {}, "prompt + answers, texts", []),
    "whole texts": ({"chosen": "say yes", "rejected": "say no"}, {}, "whole texts, texts", []),
    "messages": (TALK, {}, "prompt + answers, messages", []),
    "conversations": ({"chosen": [USER, YES], "rejected": [USER, NO]}, {}, "whole conversations, messages", []),
    "messages as prompt": ({"messages": [USER], **WITHOUT}, {}, "prompt + answers, messages", []),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "say"}], **WITHOUT},
        {},
        "prompt + answers, messages",
        [],
    ),
    "a system column": ({**TALK, "system": "be short"}, {}, "prompt + answers, messages", []),
    "messages beside a prompt": ({**TALK, "messages": [USER, YES]}, {}, "prompt + answers, messages", ["messages"]),
    "a mapped prompt": (
        {**WITHOUT, "question": "say "},
        {"dataset_columns": {"prompt": "question"}},
        "prompt + answers, texts",
        [],
    ),
    "a joined prompt": (
        {**WITHOUT, "context": "say", "question": "so "},
        {"dataset_columns": {"prompt": "context,question"}},
        "prompt + answers, texts",
        [],
    ),
    "a weight": ({**TEXTS, "worth": 1.0, "more": 2.0}, {"weight_column": "worth"}, "prompt + answers, texts", ["more"]),
    "lengths": (
        {**TEXTS, "length": 3},
        {"train_sampling_strategy": "group_by_length"},
        "prompt + answers, texts",
        [],
    ),
    "lengths that nothing reads": ({**TEXTS, "length": 3}, {}, "prompt + answers, texts", ["length"]),
}


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_columns_that_are_read_are_not_called_unused(tmp_path: Path, name: str) -> None:
    row, settings, layout, unused = LAYOUTS[name]
    data = Dataset.from_list([row, row])
    result = inspect_preferences({"train": data, "test": data}, tiny.tokenizer(), runs.config(tmp_path, **settings))
    for split in ("train", "test"):
        block = result.data["splits"][split]
        assert (block["layout"], [*block["columns"]["unused"]]) == (layout, unused)
        found = [
            each["sentence"]
            for each in result.data["findings"]
            if (each["name"], each["split"]) == ("unused_column", split)
        ]
        assert found == [f"{', '.join(unused)}: read by no chosen loss"] * bool(unused)


def test_conversions_are_counted(tmp_path: Path) -> None:
    data = Dataset.from_list([{**TALK, "prompt": "say"}] * 3)
    converted = inspect_preferences(data, tiny.tokenizer(), runs.config(tmp_path)).data["splits"]["train"]["converted"]
    assert converted == {"prompt: text -> a message of the user": 3}
    sound = inspect_preferences(Dataset.from_list([TALK]), tiny.tokenizer(), runs.config(tmp_path))
    assert sound.data["splits"]["train"]["converted"] == {}


def test_findings_before_all_rows_were_dropped_are_kept(tmp_path: Path) -> None:
    rows = [{"chosen": "say yes please", "rejected": "say yes"}, {"chosen": "say say yes", "rejected": "say say no"}]
    result = inspect_preferences(Dataset.from_list(rows), tiny.tokenizer(), runs.config(tmp_path, max_length=2))
    found = {each["name"]: each for each in result.data["findings"]}
    assert [*found] == ["all_dropped", "torn"]
    assert found["all_dropped"]["remedy"].startswith("Raise max_length to 3 to keep all rows")


def test_data_that_is_tokenized_is_told_apart(tmp_path: Path) -> None:
    row: dict[str, Any] = {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4]}
    (found,) = inspect_preferences(Dataset.from_list([row]), tiny.tokenizer(), runs.config(tmp_path)).data["findings"]
    assert "is tokenized already" in found["sentence"]
    assert "dataset_columns" not in found["sentence"]


def test_an_empty_split_is_an_error(tmp_path: Path) -> None:
    empty = Dataset.from_dict({"prompt": [], "chosen": [], "rejected": []})
    (found,) = inspect_preferences(empty, tiny.tokenizer(), runs.config(tmp_path)).data["findings"]
    assert (found["level"], found["sentence"]) == ("error", "train dataset is empty")
