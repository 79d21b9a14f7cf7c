"""Writes what a command was asked to write: to a file, or to standard output for `-`."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ..errors import InputError
from ..logging_setup import is_unicode


def file_problems(files: Mapping[str, str | None]) -> list[str]:
    """Return why files cannot be written, before anything is computed for them; nothing is left behind.

    Args:
        files: by the flags that name them; None for those that are not asked for.
    """
    named = {flag: str(file) for flag, file in files.items() if file not in (None, "-")}
    return [problem for flag, file in named.items() for problem in _problems(flag, file)]


def _problems(flag: str, file: str) -> list[str]:
    path = Path(file)
    if path.is_dir():
        return [f"--{flag} {file}: this is a folder; name a file."]
    if not path.parent.is_dir():
        return [f"--{flag} {file}: the folder {path.parent} does not exist. Create it, or name another file."]
    if path.exists():
        return [] if os.access(path, os.W_OK) else [f"--{flag} {file}: the file cannot be written. Name another file."]
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            return []
    except OSError as error:
        return [f"--{flag} {file}: cannot be written ({error.strerror}). Choose another folder."]


def write_output(file: str, text: str, *, overwrite: bool = True) -> None:
    """Write text to a file, or to standard output if its name is `-`.

    Raises:
        InputError: the file cannot be written, or exists and is not to be replaced.
    """
    if file == "-":
        print(text)
        return
    if not overwrite and Path(file).exists():
        raise InputError(f"--output {file} exists. Choose another name, or pass --overwrite.")
    try:
        Path(file).write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}.") from None


def write_json(file: str, text: str) -> None:
    """Write JSON, as `write_output` does, in ASCII where standard output takes nothing else.

    Raises:
        InputError: the file cannot be written. Name another file.
    """
    if file == "-" and not is_unicode(getattr(sys.stdout, "encoding", None)):
        text = re.sub(r"[^\x00-\x7f]", lambda found: json.dumps(found[0])[1:-1], text)
    write_output(file, text)
