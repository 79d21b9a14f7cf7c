"""Pages that list rows: their style and script, and rows that are short enough for a page."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

LONGEST = 4000
"""Characters of a row's prompt or answer, beyond which its middle is left out."""
WITHOUT_SCRIPT = 20
"""Rows that a page shows where JavaScript is off."""


def row_list() -> tuple[str, str]:
    """Return CSS and JavaScript of a list of rows: `rowList`, whose elements the page's body has."""
    folder = files(__name__.rpartition(".")[0])
    style, script = ((folder / f"rows.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return style, script


def kept_ends(pieces: Sequence[str | None], longest: int = LONGEST) -> tuple[int, int] | None:
    """Return how many pieces of a long text are kept at its start, and from which on at its end.

    Args:
        pieces: texts of tokens.
        longest: characters, half of which are kept at either end.

    Returns:
        None for a text that is short enough to be kept whole.
    """
    if sum(len(piece or "") for piece in pieces) <= longest:
        return None
    head, count = 0, 0
    while head < len(pieces) and count < longest // 2:
        count += len(pieces[head] or "")
        head += 1
    tail, count = len(pieces), 0
    while tail > head and count < longest // 2:
        tail -= 1
        count += len(pieces[tail] or "")
    return head, tail
