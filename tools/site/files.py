"""Links from pages to Markdown files of the repository that are no pages: the site offers those files as they are."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
_LINK = re.compile(r"\]\((\.\.?/[^)#\s]+\.md)(?:#[^)\s]*)?\)")


def link_files(name: str, text: str) -> str:
    """Return a page's source in which links out of `docs/` are to files.

    Args:
        name: of the page, from `docs/` and without its ending.
        text: its source.
    """

    def link(found: re.Match[str]) -> str:
        file = (DOCS / name).parent / found[1]
        return found[0] if file.resolve().is_relative_to(DOCS.resolve()) else f"](path:{found[1]})"

    return _LINK.sub(link, text)
