"""A page taken apart: its tags, what it shows without JavaScript, and what its scripts hold."""

from __future__ import annotations

import json
from functools import cached_property
from html.parser import HTMLParser
from typing import Any


class ParsedPage(HTMLParser):
    """Tags with their attributes, texts outside of scripts and styles, and the content of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.texts.append(data)

    @property
    def shown(self) -> str:
        return "".join(self.texts)

    @cached_property
    def data(self) -> Any:
        """What the first script holds as JSON."""
        return json.loads(self.scripts[0])

    def count(self, tag: str) -> int:
        return [name for name, _ in self.tags].count(tag)
