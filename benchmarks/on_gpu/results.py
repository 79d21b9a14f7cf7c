"""The results of all stages: one JSON file and one page, rewritten after every cell."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

from .report import write_markdown


def results(folder: Path) -> dict[str, Any]:
    """What the stages have written into a folder, by stage: `header` and `cells`."""
    file = folder / "gpu.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def change(folder: Path, stage: str, content: dict[str, Any]) -> None:
    """Put one stage's results into the file; stages that run side by side take turns."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        everything = {**results(folder), stage: content}
        temporary = folder / ".gpu.json"
        temporary.write_text(json.dumps(everything, indent=1) + "\n")
        temporary.replace(folder / "gpu.json")
        write_markdown(everything, folder / "gpu.md")


def finished(content: dict[str, Any] | None, commit: str) -> bool:
    """Whether a stage has nothing left to run for a commit: all of its cells are done, or cannot run here."""
    if content is None or not commit or commit.endswith("-changed") or content["header"].get("commit") != commit:
        return False
    header, cells = content["header"], content["cells"].values()
    cut = "stage_seconds" not in header or "ended" in header or "only" in header
    left = [cell for cell in cells if cell["status"] == "failed" or cell.get("why") == "no time left"]
    return not (cut or left)
