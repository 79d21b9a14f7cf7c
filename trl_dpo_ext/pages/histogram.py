"""Histograms as figures with inline SVG."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

from .axes import HEIGHT, WIDTH, Mark, Plane
from .charts import COLORS, figure
from .markup import Markup, element, join


@dataclass(frozen=True)
class Bars:
    """One series of a histogram."""

    label: str
    counts: Sequence[int]
    """Of each bin."""
    color: int = 0


def histogram(
    edges: Sequence[float],
    series: Sequence[Bars],
    title: str,
    *,
    x_label: str = "",
    even: bool = False,
    marks: Sequence[Mark] = (),
    what: str = "rows",
    note: str = "",
) -> Markup:
    """Draw counts between edges; several series stand in front of each other, half transparent.

    Args:
        edges: one more than bins, ascending.
        series: what is counted.
        title, note: of the figure.
        x_label: what is on the horizontal axis.
        even: whether all bins are drawn equally wide and labeled by their lower edge, as for powers of two.
        marks: vertical lines, in values of the axis.
        what: is counted, for the text under the pointer.
    """
    bins = len(edges) - 1
    places = [float(at) for at in range(bins + 1)] if even else list(edges)
    most = max((count for bars in series for count in bars.counts), default=0)
    plane = Plane.of((), (), x_range=(places[0], places[-1]), y_range=(0, 1.08 * max(1, most)))
    placed = [Mark(_between(edges, mark.x) if even else mark.x, mark.label, mark.color, mark.key) for mark in marks]
    grid = _even_grid(plane, edges, x_label) if even else plane.grid(x_label)
    drawn = join(_bars(plane, places, edges, bars, what, even) for bars in series)
    total = ", ".join(f"{bars.label} {sum(bars.counts):,}".strip() for bars in series)
    svg = plane.frame(f"{title}: {total} {what}", grid, drawn, plane.marks(placed))
    legend = [_entry(bars) for bars in series] if len(series) > 1 else []
    return figure(title, svg, legend=element("div", *legend, class_="legend") if legend else None, note=note)


def _bars(plane: Plane, places: Sequence[float], edges: Sequence[float], bars: Bars, what: str, whole: bool) -> Markup:
    drawn = []
    for at, count in enumerate(bars.counts):
        left, right = plane.x.at(places[at]), plane.x.at(places[at + 1])
        top, floor = plane.y.at(count), plane.y.at(0)
        last = f"{edges[at + 1] - 1:g}" if whole else f"{edges[at + 1]:.4g}"
        words = f"{edges[at]:.6g} to {last}: {count:,} {what}" + (f", {bars.label}" if bars.label else "")
        size = {"width": f"{max(1.0, right - left - 1):.1f}", "height": f"{max(0.0, floor - top):.1f}"}
        drawn.append(element("rect", element("title", words), x=f"{left + 0.5:.1f}", y=f"{top:.1f}", **size))
    return element("g", *drawn, class_=f"bars c{bars.color % COLORS}", data_series=bars.label)


def _entry(bars: Bars) -> Markup:
    box = element("input", type="checkbox", checked=True, data_toggles=bars.label)
    return element("label", box, element("span", class_=f"key c{bars.color % COLORS}"), " ", bars.label)


def _even_grid(plane: Plane, edges: Sequence[float], x_label: str) -> Markup:
    """Counts at the left, and the lower edge of every bin, or of every second one, under the bars."""
    every = max(1, math.ceil((len(edges) - 1) / 12))
    floor = plane.y.at(0)
    words = [
        element("text", f"{edges[at]:g}", x=f"{plane.x.at(at) + 1:.1f}", y=floor + 15)
        for at in range(0, len(edges) - 1, every)
    ]
    words.append(element("text", x_label, x=WIDTH / 2, y=HEIGHT - 4, text_anchor="middle"))
    return element("g", *plane.rows(), *words, class_="grid")


def _between(edges: Sequence[float], value: float) -> float:
    """The place of a value among bins that are drawn equally wide."""
    at = min(max(bisect.bisect_right(edges, value) - 1, 0), len(edges) - 2)
    return at + min(1.0, max(0.0, (value - edges[at]) / (edges[at + 1] - edges[at])))
