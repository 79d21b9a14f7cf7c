"""Build the page from the JSON object of an inspection and some rows."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from ..terminal import as_text
from ..terminal_rows import visible

_LARGEST = 19 * 2**20
"""Characters of the page's data, at most; rows beyond it are left out."""
_WITHOUT_SCRIPT = 20
_LONGEST = 4000
"""Characters of a row's prompt or answer, beyond which its middle is left out."""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def page(data: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the page as text.

    Args:
        data: of an `Inspection`.
        rows: as `Inspection.sample` gives them.
    """
    kept, size = [], 0
    for row in map(_compact, rows):
        size += len(_as_json(row).encode())
        if size > _LARGEST:
            break
        kept.append(row)
    total = sum(split["rows"]["loaded"] for split in data["splits"].values())
    held = {"data": {**data, "examples": []}, "rows": kept, "total": total}
    folder = files(__name__.rpartition(".")[0])
    parts = {
        "policy": _POLICY,
        "title": html.escape(f"inspect: {data['arguments'].get('dataset') or 'preferences'}"),
        "style": (folder / "page.css").read_text(encoding="utf-8"),
        "script": (folder / "page.js").read_text(encoding="utf-8"),
        "summary": html.escape(as_text({**data, "examples": []}, width=110)),
        "examples": "\n".join(map(_plain, kept[:_WITHOUT_SCRIPT])),
        "data": _as_json(held),
    }
    template = (folder / "page.html").read_text(encoding="utf-8")
    return re.sub("@@([a-z]+)@@", lambda place: parts[place[1]], template)


def _as_json(value: Any) -> str:
    """JSON that may stand in a script element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _compact(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose long texts have lost their middle, which `omitted` counts in tokens."""
    found = {**row, "omitted": {}}
    for name in ("prompt", "chosen", "rejected"):
        pieces, ids = row[name], row[f"{name}_ids"]
        length = sum(len(piece or "") for piece in pieces)
        if length <= _LONGEST:
            continue
        head, tail = _ends(pieces)
        found[name], found[f"{name}_ids"] = [*pieces[:head], *pieces[tail:]], [*ids[:head], *ids[tail:]]
        found["omitted"][name] = [head, tail - head]
    return found


def _ends(pieces: Sequence[str | None]) -> tuple[int, int]:
    """How many pieces are kept at the start, and from which on at the end: half of the characters each."""
    head, count = 0, 0
    while head < len(pieces) and count < _LONGEST // 2:
        count += len(pieces[head] or "")
        head += 1
    tail, count = len(pieces), 0
    while tail > head and count < _LONGEST // 2:
        tail -= 1
        count += len(pieces[tail] or "")
    return head, tail


def _plain(row: Mapping[str, Any]) -> str:
    """A row without JavaScript."""
    parts = [f"<h3>row {row['row']} of {html.escape(row['split'])}</h3>"]
    for name in ("prompt", "chosen", "rejected"):
        parts.append(f'<p><b>{name}</b> <bdi dir="auto">{html.escape(visible(row[name]))}</bdi></p>')
    return "\n".join(parts)
