"""LLaMA-Factory's table of datasets becomes our datasets and columns, or reasons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.migration.test_values import KNOWN, LLAMAFACTORY
from trl_dpo_ext import InputError
from trl_dpo_ext.cli import main as cli
from trl_dpo_ext.cli.arguments import read_for_another_machine
from trl_dpo_ext.data.loading import load_preferences
from trl_dpo_ext.migration.dataset_info import NAME, DatasetInfo
from trl_dpo_ext.migration.draft import Draft
from trl_dpo_ext.migration.tools import migrated

PAIRS = {"ranking": True, "columns": {"prompt": "question", "chosen": "good", "rejected": "bad"}}
CHAT = {
    "ranking": True,
    "formatting": "sharegpt",
    "columns": {"messages": "turns", "chosen": "chosen", "rejected": "rejected"},
}


def draft_of(tmp_path: Path, added: dict[str, Any], **entries: Any) -> Draft:
    (tmp_path / NAME).write_text(json.dumps(entries))
    given = {**LLAMAFACTORY, "dataset": ",".join(entries), **added}
    return migrated(given, KNOWN, location=str(tmp_path / "old.yaml"))[1]


@pytest.mark.parametrize(
    ("entry", "added", "expected"),
    [
        ({"hf_hub_url": "a/b", **PAIRS}, {}, {"dataset_name": "a/b"}),
        ({"hf_hub_url": "a/b", **PAIRS}, {}, {"dataset_columns": {"prompt": "question", "chosen": "good", "rejected": "bad"}}),
        ({"hf_hub_url": "a/b", "subset": "en", "split": "pairs", **PAIRS}, {}, {"dataset_config": "en", "dataset_train_split": "pairs"}),
        ({"hf_hub_url": "a/b", "ms_hub_url": "c/d", **PAIRS}, {}, {"dataset_name": "a/b"}),
        ({"hf_hub_url": "a/b", "folder": "f", **PAIRS}, {}, {"datasets": [{"path": "a/b", "data_dir": "f", "split": "train"}]}),
        ({"hf_hub_url": "a/b", "num_samples": 10, **PAIRS}, {}, {"datasets": [{"path": "a/b", "split": "train[:10]"}]}),
        ({"hf_hub_url": "a/b", "num_samples": 10, **PAIRS}, {"max_samples": 5}, {"datasets": [{"path": "a/b", "split": "train[:5]"}]}),
        ({"hf_hub_url": "a/b", **CHAT}, {}, {"dataset_columns": {"prompt": "turns"}}),
        ({"hf_hub_url": "a/b", **CHAT, "columns": {"chosen": "chosen", "rejected": "rejected"}}, {}, {"dataset_columns": {"prompt": "conversations"}}),
        ({"hf_hub_url": "a/b", **CHAT, "columns": {**CHAT["columns"], "images": "pictures"}}, {}, {"dataset_columns": {"prompt": "turns", "images": "pictures"}}),
        ({"hf_hub_url": "a/b", **PAIRS, "columns": {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}}, {}, {"dataset_columns": {"prompt": "instruction,input"}}),
    ],
)  # fmt: skip
def test_an_entry_becomes_our_keys(tmp_path: Path, entry: dict, added: dict, expected: dict) -> None:
    draft = draft_of(tmp_path, added, d=entry)
    assert {key: draft.keys.get(key) for key in expected} == expected
    assert "dataset" not in draft.left_out


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"ms_hub_url": "c/d", **PAIRS}, "d comes from ModelScope: write its Hub id or file"),
        ({"script_url": "loader", **PAIRS}, "d comes from a script, which would be run"),
        ({"hf_hub_url": "a/b", "columns": {"prompt": "instruction"}}, "d has no pairs: its ranking is false"),
        ({"hf_hub_url": "a/b", **PAIRS, "columns": {**PAIRS["columns"], "history": "before"}}, "earlier turns in their own column (history: before)"),
        ({"hf_hub_url": "a/b", **PAIRS, "columns": {**PAIRS["columns"], "kto_tag": "label"}}, "labels of single answers"),
        ({"hf_hub_url": "a/b", **CHAT, "tags": {"role_tag": "speaker"}}, "messages with role_tag 'speaker', where from or role is read here"),
        ({"hf_hub_url": "a/b", **CHAT, "tags": {"user_tag": "person"}}, "messages with user_tag 'person'"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_left_out_with_the_reason(tmp_path: Path, entry: dict, reason: str) -> None:
    assert reason in draft_of(tmp_path, {}, d=entry).left_out["dataset"]


def test_tags_that_are_read_here_are_not_mentioned(tmp_path: Path) -> None:
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    assert "dataset" not in draft_of(tmp_path, {}, d={"hf_hub_url": "a/b", **CHAT, "tags": tags}).left_out


def test_datasets_with_other_columns_are_told_apart(tmp_path: Path) -> None:
    draft = draft_of(tmp_path, {}, d={"hf_hub_url": "a/b", **PAIRS}, e={"hf_hub_url": "c/d", **CHAT})
    assert [entry["path"] for entry in draft.keys["datasets"]] == ["a/b", "c/d"]
    assert "the columns have other names in each dataset" in draft.left_out["dataset"]
    assert "dataset_columns" not in draft.keys


def test_the_table_is_found_where_the_run_is_started_or_given(tmp_path: Path, capsys: Any) -> None:
    old = tmp_path / "examples" / "train" / "old.yaml"
    old.parent.mkdir(parents=True)
    old.write_text(yaml.safe_dump({**LLAMAFACTORY, "dataset_dir": "tables"}))
    assert DatasetInfo.find(old, "tables") is None
    assert cli.main(["migrate", str(old)]) == 0
    assert "which was not found: pass it with" in " ".join(capsys.readouterr().out.replace("\n#", " ").split())
    table = tmp_path / "tables" / NAME
    table.parent.mkdir()
    table.write_text(json.dumps({"d": {"hf_hub_url": "a/b", **PAIRS}}))
    assert cli.main(["migrate", str(old)]) == 0
    assert "dataset_name: a/b" in capsys.readouterr().out
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"d": {"hf_hub_url": "c/d", **PAIRS}}))
    assert cli.main(["migrate", str(old), "--dataset_info", str(other)]) == 0
    assert "dataset_name: c/d" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, "[", "[]", '{"d": 1}'])
def test_a_table_that_is_none_is_an_error(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / NAME
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match="--dataset_info"):
        DatasetInfo.read(file)


def test_a_table_for_another_tool_is_an_error(tmp_path: Path, capsys: Any) -> None:
    old = tmp_path / "old.yaml"
    old.write_text(yaml.safe_dump({"rlhf_type": "dpo", "model": "m", "tuner_type": "full"}))
    assert cli.main(["migrate", str(old), "--dataset_info", str(tmp_path / NAME)]) == 2
    assert "--dataset_info is for configurations of LLaMA-Factory; this one is for ms-swift" in capsys.readouterr().err


SAID = {"from": "gpt", "value": "yes"}


@pytest.mark.parametrize(
    ("entry", "row"),
    [
        (PAIRS, {"question": "well ?", "good": "yes", "bad": "no"}),
        (CHAT, {"turns": [{"from": "human", "value": "well ?"}], "chosen": SAID, "rejected": SAID | {"value": "no"}}),
    ],
)
@pytest.mark.parametrize("others", [{}, {"max_samples": 3}])
def test_the_rows_of_a_file_are_read_as_pairs(tmp_path: Path, entry: dict, row: dict, others: dict) -> None:
    """Of the whole file, and of a part, which is read as a mixture."""
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 4)
    draft = draft_of(tmp_path, others, d={"file_name": "rows.jsonl", **entry})
    file = tmp_path / "new.yaml"
    file.write_text(yaml.safe_dump({**draft.keys, "report_to": "none"}))
    arguments = read_for_another_machine(["--config", str(file)])
    assert arguments.problems == ()
    train, _ = load_preferences(arguments.script, arguments.data, arguments.args)
    assert len(train) == others.get("max_samples", 4)
