"""The files in a run's folder that a report reads: JSON, and JSON line by line."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..distributed.resumption import RUN_FILE
from ..statistics import finite

RECORD_FILE = RUN_FILE
"""In the output folder and in checkpoints: what is trained, under the key `record`."""
LOG_FILE = "trl_dpo_ext_log.jsonl"
"""In the output folder: the entries of the trainer's log, each written when it is made."""
METRICS_FILE, ALARMS_FILE, SAMPLES_FILE = "watch/metrics.jsonl", "watch/alarms.jsonl", "watch/samples.jsonl"
"""In the output folder of a watched run."""


def append_line(file: Path, entry: Mapping[str, Any]) -> None:
    """Write one entry to the end of a file; NaN and infinities become null."""
    with file.open("a", encoding="utf-8", errors="backslashreplace") as out:
        out.write(json.dumps(finite(entry), ensure_ascii=False) + "\n")


def cut_after(file: Path, step: int) -> None:
    """Remove the entries of later steps, which a resumed run writes anew; all of them for a fresh start, step 0."""
    if not file.is_file():
        return
    kept = [entry for entry in read_lines(file) if step and entry["step"] <= step]
    new = file.with_suffix(".tmp")
    new.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in kept), encoding="utf-8")
    os.replace(new, file)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the entries of a file that have a step, without lines that were cut off; none if it does not exist."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = []
    for line in text.split("\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            found.append(entry)
    return found


def read_json(file: Path) -> dict[str, Any] | None:
    """Return the object in a file; None if it does not exist or holds no object."""
    try:
        found = json.loads(file.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
