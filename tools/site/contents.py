"""What is written when the site is built: parts of pages by their name, and whole pages."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "trl_dpo_ext"
COMMENT = re.compile(r"<!-- ([\w ]+): written when the site is built -->")
STATIC = {"charts.css": "charts.css", "charts.js": "page.js"}
"""Files of the site's `_static`, from those that the package's own pages are made of."""


def parts() -> Mapping[str, Callable[[], str]]:
    """What a comment may ask for."""
    return {}


def fill(name: str, text: str) -> str:
    """Return a page's source with every comment that asks for a part replaced by it.

    Raises:
        ValueError: there is no part of that name.
    """

    def part(found: re.Match[str]) -> str:
        if found[1] not in parts():
            raise ValueError(f"{name} asks for the part {found[1]!r}; there are {', '.join(parts())}.")
        return parts()[found[1]]()

    return COMMENT.sub(part, text)


def write_pages(docs: Path) -> None:
    """Write what is generated as files into `docs`, all of which git ignores."""
    for name, source in STATIC.items():
        shutil.copyfile(PACKAGE / "pages" / source, docs / "_static" / name)
