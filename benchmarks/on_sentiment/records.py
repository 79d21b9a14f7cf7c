"""Keeps one JSON line for each run that has ended: killed at any time, at most the run in progress is lost."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def append(file: Path, record: Record) -> None:
    """Write a record to the end of a file and to the disk, behind a line that was cut off, if there is one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab+") as out:
        out.seek(0, os.SEEK_END)
        if out.tell():
            out.seek(-1, os.SEEK_END)
            cut = out.read() != b"\n"
        else:
            cut = False
        out.write((b"\n" if cut else b"") + json.dumps(record).encode() + b"\n")
        out.flush()
        os.fsync(out.fileno())


def read(file: Path) -> list[Record]:
    """Return the records, of those with the same key the last one; lines that were cut off are left out."""
    found: dict[str, Record] = {}
    for line in file.read_bytes().split(b"\n") if file.is_file() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "key" in record:
            found[record["key"]] = record
    return list(found.values())
