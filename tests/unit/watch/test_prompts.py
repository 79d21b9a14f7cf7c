"""What is said of a prompt to people, and what stands in a file of prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trl_dpo_ext.errors import InputError
from trl_dpo_ext.watch.console import format_moment
from trl_dpo_ext.watch.prompts import last_message
from trl_dpo_ext.watch.prompts_file import read_prompts

SYSTEM = {"role": "system", "content": "You are helpful."}


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("say yes", "say yes"),
        ([SYSTEM, {"role": "user", "content": "say yes"}], "say yes"),
        ([{"role": "user", "content": [{"type": "text", "text": "say"}, {"type": "text", "text": "yes"}]}], "say yes"),
    ],
)
def test_the_last_message_of_a_prompt_is_what_it_asks(prompt: Any, text: str) -> None:
    assert last_message(prompt) == text


def test_the_console_shows_what_a_prompt_asks_and_not_how_its_template_begins() -> None:
    row = {"prompt_id": "1", "prompt": f"<system> {'You are helpful. ' * 9}<user> say yes", "last_message": "say yes"}
    shown = format_moment("step 1", {}, {}, [{**row, "completion": "yes<eos>"}], {})
    assert " 1  say yes " in shown
    assert "<system>" not in shown


def test_a_file_of_prompts_may_hold_texts_and_messages(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('\ufeff{"prompt": "a\u2028b"}\n\n{"prompt": [{"role": "user", "content": "c"}], "tools": "[]"}\n')
    assert [row["prompt"] for row in read_prompts(str(file))] == ["a\u2028b", [{"role": "user", "content": "c"}]]


def test_lines_without_a_prompt_are_numbered(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n' + "null\n" * 7)
    with pytest.raises(InputError, match="line 2, 3, 4, 5, 6 has none"):
        read_prompts(str(file))
