"""Markup that data cannot leave: every string that is not markup already is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

_EMPTY = ("br", "col", "hr", "input", "meta")


class Markup(str):
    """HTML made here, which is put into a page as it stands."""

    __slots__ = ()


def element(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """Return an element. Children that are no `Markup` are text; attributes that are None or False are left out.

    Args:
        name: of the element, for HTML or SVG.
        *children: in their order; None is left out.
        **attributes: an underscore at the end is dropped, any other stands for a hyphen; True gives an attribute
            without a value.

    Example:
        >>> element("p", "1 < 2", class_="fact", data_row=3)
        '<p class="fact" data-row="3">1 &lt; 2</p>'
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(f" {key}" if value is True else f' {key}="{html.escape(str(value))}"')
    parts.append(">")
    if name not in _EMPTY:
        parts += [join(children), f"</{name}>"]
    return Markup("".join(parts))


def join(children: Iterable[Any], between: str = "") -> Markup:
    """Return children one after the other, text escaped; None is left out."""
    shown = [child if isinstance(child, Markup) else html.escape(str(child)) for child in children if child is not None]
    return Markup(between.join(shown))


def data_text(text: Any, name: str = "bdi", **attributes: Any) -> Markup:
    """Return text from data, which may be written from right to left, isolated from what is around it."""
    return element(name, text, dir="auto", **attributes)


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], sortable: bool = False, **attributes: Any) -> Markup:
    """Return a table whose first column names its rows.

    Args:
        head: cells of the first line; may be empty.
        rows: cells of each further line.
        sortable: whether a click on a column's head sorts by it; by number where its cells start with one.
        **attributes: of the table.
    """
    classes = " ".join(filter(None, [attributes.pop("class_", ""), "sortable" if sortable else ""])) or None
    top = element("thead", element("tr", *(element("th", cell, scope="col") for cell in head))) if head else None
    lines = [element("tr", *(_cell(cell, first=not place) for place, cell in enumerate(row))) for row in rows]
    made = element("table", top, element("tbody", *lines), class_=classes, **attributes)
    return element("div", made, class_="scroll", tabindex=0, role="group", aria_label="Table")


def _cell(cell: Any, first: bool) -> Markup:
    return element("th", cell, scope="row") if first else element("td", cell)
