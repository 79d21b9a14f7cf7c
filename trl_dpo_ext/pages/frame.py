"""The frame of a page: policy, style, script, and data that stand in one file."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

from .markup import Markup

LARGEST = 19 * 2**20
"""Bytes of the data in a page, at most; a page is at most 20 MB."""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def document(
    title: str, body: Markup, *, data: Any = None, style: str = "", script: str = "", without_script: str = ""
) -> str:
    """Return a page as text.

    Args:
        title: plain text.
        body: what the page shows.
        data: what scripts read, as `page.data`; anything that JSON can hold.
        style: CSS behind that of all pages.
        script: JavaScript behind that of all pages, whose tools are in `page`.
        without_script: markup that stands on top where JavaScript is off.
    """
    folder = files(__name__.rpartition(".")[0])
    parts = {
        "policy": _POLICY,
        "title": html.escape(title),
        "style": "".join((folder / name).read_text(encoding="utf-8") for name in ("page.css", "charts.css")) + style,
        "script": (folder / "page.js").read_text(encoding="utf-8") + script,
        "noscript": f"<noscript>\n{without_script}\n</noscript>" if without_script else "",
        "body": body,
        "data": as_json(data),
    }
    template = (folder / "page.html").read_text(encoding="utf-8")
    return re.sub("@@([a-z]+)@@", lambda place: parts[place[1]], template)


def as_json(value: Any) -> str:
    """Return JSON that may stand in a script element.

    >>> as_json("</script>")
    '"\\\\u003c/script>"'
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A lone surrogate is valid in JSON as an escape, but no UTF-8.
    text = re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def fitting(items: Iterable[Any], largest: int | None = None) -> list[Any]:
    """Return the first items that fit together into a page.

    Args:
        items: anything that JSON can hold.
        largest: bytes of all items as JSON, at most; `LARGEST` by default.
    """
    kept, left = [], LARGEST if largest is None else largest
    for item in items:
        left -= len(as_json(item).encode())
        if left < 0:
            break
        kept.append(item)
    return kept
