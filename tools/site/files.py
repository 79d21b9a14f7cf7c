"""What pages say of other files: links to Markdown that is no page, and the guides that no table of contents names."""

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


def list_guides(text: str) -> str:
    """Return the start page with `guides/*` replaced by the guides that its tables of contents do not name.

    Sphinx would list all of them there once more.
    """
    named = set(re.findall(r"^guides/\w+$", text, re.MULTILINE))
    others = sorted({f"guides/{file.stem}" for file in (DOCS / "guides").glob("*.md")} - named)
    return re.sub(r"^guides/\*\n", "".join(f"{name}\n" for name in others), text, flags=re.MULTILINE)
