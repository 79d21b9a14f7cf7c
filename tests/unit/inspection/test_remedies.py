"""What a finding advises works when it is followed to the letter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests.support import runs, tiny
from trl_dpo_ext import inspect_preferences

WORDS = tiny.SENTENCE.split()
SOUND = {"prompt": "say that ", "chosen": "yes it is", "rejected": "no no please"}


def said(text: str, role: str = "assistant") -> dict[str, str]:
    return {"role": role, "content": text}


def inspect(folder: Path, data: Any, token: Any = None, **settings: Any) -> Any:
    return inspect_preferences(data, token or tiny.tokenizer(), runs.config(folder, **settings))


def finding(result: Any, name: str) -> dict | None:
    return next((found for found in result.data["findings"] if found["name"] == name), None)


def advised(result: Any, name: str) -> str:
    found = finding(result, name)
    assert found is not None, name
    return found["remedy"]


LONG = {"prompt": "say " * 9, "chosen": "yes " * 70, "rejected": "no " * 70}
CUT = {
    "answer_cut": [SOUND, {**SOUND, "chosen": "yes " * 9}, LONG],
    "eos_cut": [SOUND, {**SOUND, "chosen": "yes " * 9}, LONG],
    "dropped": [SOUND, LONG, {**LONG, "prompt": "say " * 90}],
    "identical_after_truncation": [{**SOUND, "chosen": "yes " * 9 + "it", "rejected": "yes " * 9}],
    "empty_answer": [{**SOUND, "chosen": "<eos> " * 7 + "yes"}],
    "all_dropped": [LONG, {**LONG, "prompt": "say " * 20}],
}
CUT_FROM_LEFT = {
    "prompt_lost": [{**SOUND, "prompt": "say " * 20}],
    "answer_cut": [{**SOUND, "chosen": "yes " * 9}],
    "identical_after_truncation": [{**SOUND, "chosen": "it " + "yes " * 9, "rejected": "yes " * 9}],
}


@pytest.mark.parametrize(
    ("name", "rows", "mode"),
    [
        *((name, rows, "keep_start") for name, rows in CUT.items()),
        *((name, rows, "keep_end") for name, rows in CUT_FROM_LEFT.items()),
    ],
)
def test_the_max_length_that_is_advised_is_enough(tmp_path: Path, name: str, rows: list[dict], mode: str) -> None:
    data = Dataset.from_list(rows)
    remedy = advised(inspect(tmp_path, data, max_length=7, truncation_mode=mode), name)
    (wanted,) = re.findall(r"max_length to (\d+)", remedy)
    raised = inspect(tmp_path, data, max_length=int(wanted), truncation_mode=mode)
    assert finding(raised, name) is None, remedy


def test_the_length_that_keeps_everything_keeps_dropped_rows_too(tmp_path: Path) -> None:
    data = Dataset.from_list([SOUND, {**LONG, "prompt": "say " * 90}])
    limit = inspect(tmp_path, data, max_length=7).data["splits"]["train"]["max_length"]
    for name in ("keeps_all", "suggested"):
        raised = inspect(tmp_path, data, max_length=limit[name]["value"]).data["splits"]["train"]
        assert (raised["rows"]["dropped"], raised["max_length"]["uncut_share"]) == (0, 1.0)
        assert raised["tokens"]["fed"]["plain"] == limit[name]["plain"]
        assert raised["tokens"]["fed"]["share_prompt"] == limit[name]["share_prompt"]


def test_train_says_to_what_max_length_has_to_be_raised(tmp_path: Path) -> None:
    rows = [SOUND, {**SOUND, "prompt": "say " * 90}]
    with pytest.warns(UserWarning, match=r"1 of 2 rows dropped.* Raise max_length to 128, or filter these rows"):
        runs.trainer(tmp_path, train_dataset=Dataset.from_list(rows), loss_type="simpo", max_length=7)


TALK = {"prompt": [said("say", "user")], "chosen": [said("yes it is")], "rejected": [said("no no")]}
REPEATED = {
    "texts": [SOUND, {**SOUND, "prompt": "say "}],
    "messages": [TALK, {**TALK, "prompt": [said("name", "user")]}],
    "whole texts": [{"chosen": "say yes it", "rejected": "say no no"}, {"chosen": "say it", "rejected": "say no"}],
    "messages as prompt": [
        {"messages": row["prompt"], "chosen": "yes it", "rejected": "no no"}
        for row in (TALK, {**TALK, "prompt": [said("name", "user")]})
    ],
    "another name": [{**row, "question": row["prompt"]} for row in (SOUND, {**SOUND, "prompt": "say "})],
}


@pytest.mark.parametrize("layout", list(REPEATED))
def test_copies_are_removed_by_the_line_that_is_printed(tmp_path: Path, layout: str) -> None:
    rows = [{**row, "id": str(at)} for at, row in enumerate([*REPEATED[layout], REPEATED[layout][0]])]
    settings: dict[str, Any] = {}
    if layout == "another name":
        rows = [{name: value for name, value in row.items() if name != "prompt"} for row in rows]
        settings = {"dataset_columns": {"prompt": "question"}}
    dataset = Dataset.from_list(rows)
    result = inspect(tmp_path, dataset, **settings)
    line = advised(result, "duplicate_row").removeprefix("Remove them: ").removesuffix(".")
    found = finding(result, "duplicate_row")
    assert found is not None
    assert found["rows"] == [2]
    left = eval(line, {"dataset": dataset})
    assert left["id"] == ["0", "1"]


def test_identical_rows_are_filtered_by_the_line_that_is_printed(tmp_path: Path) -> None:
    dataset = Dataset.from_list([SOUND, {**SOUND, "rejected": SOUND["chosen"]}])
    line = advised(inspect(tmp_path, dataset), "identical").removeprefix("Filter them out: ").removesuffix(".")
    assert len(eval(line, {"dataset": dataset})) == 1


def test_prompts_of_the_test_set_are_removed_by_the_line_that_is_printed(tmp_path: Path) -> None:
    names: dict[str, Any] = {
        "train": Dataset.from_list([TALK, {**TALK, "prompt": [said("name", "user")]}]),
        "test": Dataset.from_list([{**TALK, "chosen": [said("so")]}]),
    }
    exec(advised(inspect(tmp_path, dict(names)), "train_test_overlap").removeprefix("Remove them: ").rstrip("."), names)
    assert len(names["train"]) == 1
    assert finding(inspect(tmp_path, {name: names[name] for name in ("train", "test")}), "train_test_overlap") is None


def test_the_date_is_fixed_by_the_line_that_is_printed(tmp_path: Path) -> None:
    token = tiny.tokenizer()
    token.chat_template = (
        "{% if date_string is not defined %}{% set date_string = strftime_now('%d') %}{% endif %}{{ date_string }} "
    ) + tiny.CHAT_TEMPLATE
    names: dict[str, Any] = {"dataset": Dataset.from_list([TALK])}
    exec(
        advised(inspect(tmp_path, names["dataset"], token), "dated_template").removeprefix("Fix it: ").rstrip("."),
        names,
    )
    assert finding(inspect(tmp_path, names["dataset"], token), "dated_template") is None


def test_a_prompt_that_is_torn_from_its_end_is_mended_by_blanks(tmp_path: Path) -> None:
    for wrong in ({**SOUND, "prompt": "say", "chosen": "yes it", "rejected": "no no"},):
        assert "begin the answers with a blank" in advised(
            inspect(tmp_path, Dataset.from_list([wrong])), "prompt_not_prefix"
        )
        right = {**wrong, "chosen": f" {wrong['chosen']}", "rejected": f" {wrong['rejected']}"}
        assert finding(inspect(tmp_path, Dataset.from_list([right])), "prompt_not_prefix") is None


@pytest.mark.parametrize("copies", [1, 9])
def test_the_smoothing_that_is_advised_is_one_that_a_run_takes(tmp_path: Path, copies: int) -> None:
    swapped = {**SOUND, "chosen": SOUND["rejected"], "rejected": SOUND["chosen"]}
    others = [{**SOUND, "prompt": f"{word} "} for word in WORDS[: 20 * (copies == 1)]]
    result = inspect(tmp_path, Dataset.from_list([SOUND, swapped] * copies + others))
    (smoothing,) = re.findall(r"label_smoothing=([\d.]+\d)", advised(result, "contradictory"))
    assert 0 < float(smoothing) < 0.5
    for loss in ("cdpo", "robust"):
        runs.config(tmp_path, loss_type=[loss], label_smoothing=float(smoothing))
