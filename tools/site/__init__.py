"""Sphinx extension: the pages and parts of the documentation that are written when the site is built.

A comment `<!-- NAME: written when the site is built -->` in a page of `docs/` is replaced by the part of that name; on
the pages as they stand in the repository, it shows nothing. `python -m tools.site` builds the site.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .contents import fill, write_pages
from .docstrings import prepare, restore
from .files import link_files, list_guides


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("builder-inited", lambda app: write_pages(app.srcdir))
    app.connect("source-read", _replace_parts)
    for change, priority in ((prepare, 100), (restore, 900)):  # napoleon has 500
        app.connect("autodoc-process-docstring", _of_lines(change), priority)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _replace_parts(app: Any, name: str, source: list[str]) -> None:
    text = list_guides(source[0]) if name == "index" else source[0]
    source[0] = link_files(name, fill(name, text))


def _of_lines(change: Callable[[str, list[str]], None]) -> Callable[..., None]:
    return lambda app, what, name, item, options, lines: change(what, lines)
