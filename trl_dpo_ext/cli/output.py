"""Writes what a command was asked to write: to a file, or to standard output for `-`."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError


def write_output(file: str, text: str) -> None:
    """Write text to a file, or to standard output if its name is `-`.

    Raises:
        InputError: the file cannot be written.
    """
    if file == "-":
        print(text)
        return
    try:
        Path(file).write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}.") from None
