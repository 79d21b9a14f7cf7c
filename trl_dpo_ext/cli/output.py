"""Writes what a command was asked to write: to a file, or to standard output for `-`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from ..errors import InputError
from ..logging_setup import is_unicode


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
        InputError: the file cannot be written.
    """
    if file == "-" and not is_unicode(getattr(sys.stdout, "encoding", None)):
        text = re.sub(r"[^\x00-\x7f]", lambda found: json.dumps(found[0])[1:-1], text)
    write_output(file, text)
