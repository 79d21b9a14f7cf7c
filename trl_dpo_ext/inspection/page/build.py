"""Build the page from the JSON object of an inspection and some rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from ... import pages
from ...pages import Markup, element
from ..terminal import as_text
from ..terminal_rows import visible


def page(data: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the page as text.

    Args:
        data: of an `Inspection`.
        rows: as `Inspection.sample` gives them.
    """
    data = {**data, "examples": []}
    kept = pages.fitting(map(_compact, rows))
    total = sum(split["rows"].get("pairs", split["rows"]["loaded"]) for split in data["splits"].values())
    folder = files(__name__.rpartition(".")[0])
    body, style, script = ((folder / name).read_text(encoding="utf-8") for name in ("body.html", "page.css", "page.js"))
    list_style, list_script = pages.row_list()
    return pages.document(
        f"inspect: {data['arguments'].get('dataset') or 'preferences'}",
        pages.join([Markup(body), *_charts(data)]),
        data={"data": data, "rows": kept, "total": total},
        style=list_style + style,
        script=list_script + script,
        without_script=pages.join([_summary(data), *map(_plain, kept[: pages.WITHOUT_SCRIPT])], "\n"),
    )


def _charts(data: Mapping[str, Any]) -> list[Markup]:
    """One histogram for each split, which the script puts into its place."""
    limit = data["arguments"].get("max_length")
    marks = [pages.Mark(limit, f"max_length {limit}")] if limit else []
    templates = []
    for name, split in data["splits"].items():
        if not split.get("lengths"):
            continue
        lengths = split["lengths"]["pair"]["before"]["histogram"]
        bars = [pages.Bars("", lengths["counts"], color=0)]
        chart = pages.histogram(
            lengths["edges"], bars, "Longer row of each pair", x_label="tokens", even=True, marks=marks, what="pairs"
        )
        templates.append(element("template", chart, id=f"lengths-{name}"))
    return templates


def _summary(data: Mapping[str, Any]) -> Markup:
    introduction = element("p", "Without JavaScript, this page shows the statistics and the first rows.")
    return pages.join([introduction, element("pre", as_text(data, width=110))])


def _compact(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose long texts have lost their middle, which `omitted` counts in tokens."""
    found = {**row, "omitted": {}}
    for name in ("prompt", "chosen", "rejected"):
        pieces, ids = row[name], row[f"{name}_ids"]
        ends = pages.kept_ends(pieces)
        if ends is None:
            continue
        head, tail = ends
        found[name], found[f"{name}_ids"] = [*pieces[:head], *pieces[tail:]], [*ids[:head], *ids[tail:]]
        found["omitted"][name] = [head, tail - head]
    return found


def _plain(row: Mapping[str, Any]) -> Markup:
    """A row without JavaScript."""
    parts = [element("h3", f"row {row['row']} of {row['split']}")]
    for name in ("prompt", "chosen", "rejected"):
        parts.append(element("p", element("b", name), " ", pages.data_text(visible(row[name]))))
    return pages.join(parts, "\n")
