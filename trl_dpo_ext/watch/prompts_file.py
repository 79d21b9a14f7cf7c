"""A file of prompts to sample answers to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import InputError


def read_prompts(file: str) -> list[dict[str, Any]]:
    """Read the rows of a .jsonl file of prompts; empty lines are left out.

    Raises:
        InputError: there is no such file, or lines of it have no prompt.
    """
    if not Path(file).is_file():
        raise InputError(f"watch_prompts_file: no such file: {file}. Name a .jsonl file with a column `prompt`.")
    rows, wrong = [], []
    for number, line in enumerate(Path(file).read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and _is_prompt(row.get("prompt")):
            rows.append(row)
        else:
            wrong.append(number)
    if wrong or not rows:
        lines = f"line {', '.join(map(str, wrong[:5]))} has none" if wrong else "it is empty"
        raise InputError(
            f"watch_prompts_file: each line of {file} must be a JSON object with a `prompt`, a text or a list of "
            f"messages; {lines}."
        )
    return rows


def _is_prompt(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(part, dict) and {"role", "content"} <= set(part) for part in value)
    return isinstance(value, str) and bool(value)
