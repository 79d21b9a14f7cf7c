"""Docstrings as Sphinx reads them: our indented formulas and code become literal blocks."""

from __future__ import annotations

import re

_SECTION = re.compile(r"(Args|Attributes|Returns|Raises|References|Note|Notes|Example|Examples):")


_VALUES = ("attribute", "property", "data")
"""Kinds of objects of whose docstrings napoleon would take the words before a colon for a type."""
_kept: list[str] = []


def restore(what: str, lines: list[str]) -> None:
    """Put back, behind napoleon, what `prepare` has kept from it."""
    if what in _VALUES:
        lines[:] = _kept


def prepare(what: str, lines: list[str]) -> None:
    """Change the lines of a docstring in place, before napoleon reads them.

    Args:
        what: the kind of object, as autodoc names it.
        lines: of its docstring.
    """
    if what in _VALUES:
        _kept[:] = lines
        lines.clear()
        return
    found: list[str] = []
    for at, line in enumerate(lines):
        if _SECTION.fullmatch(line):
            lines[:] = [*found, *lines[at:]]
            return
        begins = line.startswith("    ") and not (found and found[-1])
        if begins and not any(each.startswith("    ") for each in _since_paragraph(found)):
            found += ["::", ""]
        found.append(line)
    lines[:] = found


def _since_paragraph(lines: list[str]) -> list[str]:
    """The lines behind the last one that is not indented."""
    last = max((at for at, line in enumerate(lines) if line and not line.startswith(" ")), default=-1)
    return lines[last + 1 :]
