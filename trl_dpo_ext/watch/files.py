"""The files of a watched run: one JSON object for each line, in output_dir/watch."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..statistics import finite

METRICS, ALARMS, SAMPLES = "metrics.jsonl", "alarms.jsonl", "samples.jsonl"


def watch_folder(output_dir: str | Path) -> Path:
    """The folder of a run's files."""
    return Path(output_dir) / "watch"


def append(file: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write lines to the end of a file, which is created with its folder; NaN becomes null."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8", errors="backslashreplace") as out:
        for line in lines:
            out.write(json.dumps(finite(line), ensure_ascii=False) + "\n")
        out.flush()


def read(file: Path) -> list[dict[str, Any]]:
    """The lines of a file, without one that was cut off; none if there is no file."""
    rows = []
    for line in file.read_text(encoding="utf-8").split("\n") if file.is_file() else ():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def cut_after(file: Path, step: int) -> None:
    """Remove the lines of later steps than `step`, which a resumed run writes anew, and lines that are cut off."""
    if not file.is_file():
        return
    lines = file.read_text(encoding="utf-8").split("\n")[:-1]  # what stands behind the last line end was cut off
    new = file.with_suffix(".tmp")
    new.write_text("".join(f"{line}\n" for line in lines if _is_until(line, step)), encoding="utf-8")
    os.replace(new, file)


def _is_until(line: str, step: int) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False
