"""The page of `inspect` as a file: it holds the data whole, whatever rows say, and asks for nothing from outside."""

from __future__ import annotations

import re
from typing import Any

import pytest
from datasets import Dataset

from tests.support import runs, tiny
from tests.support.parsed_page import ParsedPage
from trl_dpo_ext import inspect_preferences
from trl_dpo_ext.inspection.page import page
from trl_dpo_ext.pages import frame

NASTY = [
    "</script><script>alert(1)</script>",
    "<!-- <script> @@data@@ @@script@@",
    "مرحبا 👩‍👩‍👧 \u2028 \u202e",
    "<img src=x onerror=alert(1)>",
]


def inspected(folder: Any, answers: list[str] = NASTY, **columns: Any) -> Any:
    token = tiny.tokenizer()
    token.add_tokens([word for answer in answers for word in answer.split()])
    rows = [{"prompt": "say ", "chosen": f"yes {answer}", "rejected": "no", **columns} for answer in answers]
    return inspect_preferences(Dataset.from_list(rows), token, runs.config(folder, max_length=None))


def test_a_page_holds_what_was_found_and_no_row_can_leave_its_place(tmp_path: Any) -> None:
    result = inspected(tmp_path)
    rows = result.sample(10)
    text = page(result.data, rows)
    found = ParsedPage(text).data
    assert found["data"] == {**result.data, "examples": []}
    assert [row["chosen"] for row in found["rows"]] == [row["chosen"] for row in rows]
    assert found["total"] == 4
    tags = ParsedPage(text).tags
    assert [tag for tag, _ in tags].count("script") == 2
    assert not any(tag == "img" for tag, _ in tags)
    assert text.count("\u2028") == 0 or "\u2028" not in text.split("application/json")[1]


def test_a_page_asks_for_nothing_from_outside(tmp_path: Any) -> None:
    text = page(inspected(tmp_path, ["it"]).data, [])
    for _, attributes in ParsedPage(text).tags:
        assert not {"src", "href", "action", "srcset"} & set(attributes)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "default-src 'none'" in text
    assert "innerHTML" not in text
    assert '<meta charset="utf-8">' in text


def test_long_texts_lose_their_middle_and_say_so(tmp_path: Any) -> None:
    result = inspected(tmp_path, ["it " * 3000], note="x" * 9000)
    (row,) = ParsedPage(page(result.data, result.sample(1))).data["rows"]
    head, gap = row["omitted"]["chosen"]
    assert gap > 0
    assert len(row["chosen"]) == len(row["chosen_ids"]) == row["n_chosen"] - gap
    assert sum(map(len, row["chosen"][:head])) >= 2000
    assert "5000 characters" in row["columns"]["note"]
    assert row["kept"]["chosen"] == [0, row["n_chosen"]]


def test_a_page_is_never_larger_than_its_limit(tmp_path: Any, monkeypatch: Any) -> None:
    result = inspected(tmp_path, ["it is"] * 30)
    whole = page(result.data, result.sample(30))
    assert len(ParsedPage(whole).data["rows"]) == 30
    monkeypatch.setattr(frame, "LARGEST", 6000)
    small = ParsedPage(page(result.data, result.sample(30))).data
    assert 0 < len(small["rows"]) < 30
    assert small["total"] == 30


@pytest.mark.parametrize("most", [1, 7, 50])
def test_rows_with_findings_come_into_the_page_first(tmp_path: Any, most: int) -> None:
    words = tiny.SENTENCE.split()
    rows = [
        {"prompt": f"{word} {words[at % 7]} ", "chosen": "yes it is", "rejected": "no sky"}
        for at, word in enumerate(words)
    ]
    rows[20] = {"prompt": "say ", "chosen": "yes <eos> ", "rejected": "no sky"}
    result = inspect_preferences(Dataset.from_list(rows), tiny.tokenizer(), runs.config(tmp_path))
    chosen = [row["row"] for row in result.sample(most)]
    assert len(chosen) == len(set(chosen)) == min(most, len(rows))
    assert 20 in chosen
    assert chosen == sorted(chosen)


def test_a_notebook_shows_the_result(tmp_path: Any) -> None:
    shown = inspected(tmp_path)._repr_html_()
    assert "train 4 rows" in shown
    assert "<script" not in shown
