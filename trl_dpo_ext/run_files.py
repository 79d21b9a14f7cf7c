"""The files of a run's output folder that grow while it trains, one JSON object on each line, and how they are read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .statistics import finite

LOG_FILE = "trl_dpo_ext_log.jsonl"
"""The entries of the trainer's log, each written when it is made."""
METRICS_FILE, ALARMS_FILE, SAMPLES_FILE = "watch/metrics.jsonl", "watch/alarms.jsonl", "watch/samples.jsonl"
"""Of a watched run."""
_LARGEST_STEP = 2**53


def append_lines(file: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write lines to the end of a file, which is created with its folder; NaN and infinities become null."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8", errors="backslashreplace") as out:
        for line in lines:
            out.write(json.dumps(finite(line), ensure_ascii=False) + "\n")


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the lines that have a step, without one that was cut off; none if the file does not exist."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [found for line in text.split("\n") if (found := _with_step(line)) is not None]


def read_samples(file: Path) -> list[dict[str, Any]]:
    """Return the lines of `SAMPLES_FILE`, as `read_lines` does, that say which prompt was answered and how."""
    kinds = (("prompt_id", (str, int)), ("completion", str))
    return [row for row in read_lines(file) if all(isinstance(row.get(name), kind) for name, kind in kinds)]


def cut_after(file: Path, step: int) -> None:
    """Remove the lines of later steps than `step`, which a resumed run writes anew, and lines that are cut off.

    Args:
        file: that may not exist.
        step: the last one that is kept; -1 for a fresh start.
    """
    if not file.is_file():
        return
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]  # behind the last line end: cut off
    new = file.with_suffix(".tmp")
    new.write_text("".join(f"{line}\n" for line in lines if _is_until(line, step)), encoding="utf-8")
    os.replace(new, file)


def _is_until(line: str, step: int) -> bool:
    found = _with_step(line)
    return found is not None and found["step"] <= step


def _with_step(line: str) -> dict[str, Any] | None:
    found = _parsed(line)
    return found if isinstance(found, dict) and is_step(found.get("step")) else None


def is_step(value: Any) -> bool:
    """Whether a value that was read from a file is the number of a step."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST_STEP


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # the latter for brackets in brackets
        return None


def read_json(file: Path) -> dict[str, Any] | None:
    """Return the object in a file; None if it does not exist or holds no object."""
    try:
        found = _parsed(file.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return found if isinstance(found, dict) else None
