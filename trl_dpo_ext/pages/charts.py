"""Charts as figures with inline SVG: curves over steps, points, and how well confidence fits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .axes import Level, Mark, Plane, path
from .curves import MOST_POINTS, Curve, thinned
from .markup import Markup, element, join

COLORS = 8
"""Colors of the palette in `charts.css`; a curve beyond them takes the first again, dashed."""


def line_chart(
    curves: Sequence[Curve],
    title: str,
    *,
    x_label: str = "step",
    unit: str = "",
    log: bool = False,
    marks: Sequence[Mark] = (),
    levels: Sequence[Level] = (),
    y_range: tuple[float, float] | None = None,
    note: str = "",
    most: int = MOST_POINTS,
) -> Markup:
    """Draw curves over one axis, with a legend that switches each key on and off.

    Args:
        curves: each thinned to `most` points. Those without a value are left out; if all are, the result is empty.
        title: of the figure.
        x_label: what the horizontal axis shows.
        unit: of the vertical axis, shown beside the title.
        log: whether the vertical axis is logarithmic; values of 0 and below have no place on it.
        marks: vertical lines.
        levels: horizontal lines, where they are within the curves' range.
        y_range: ends of the vertical axis; by default, what the curves need.
        note: a sentence under the chart.
        most: points of a curve.
    """
    drawn = [curve for curve in curves if any(value is not None for value in curve.y)]
    if not drawn:
        return Markup("")
    xs = [x for curve in drawn for x in curve.x]
    ys = [y for curve in drawn for part in (curve.y, curve.low, curve.high) for y in part]
    plane = Plane.of(xs, ys, log, y_range)
    bands = join(_band(plane, curve) for curve in drawn if curve.low)
    lines = join(_curve(plane, curve, most) for curve in drawn)
    svg = plane.frame(
        _spoken(title, drawn), plane.grid(x_label), plane.levels(levels), bands, lines, plane.marks(marks)
    )
    return figure(title, svg, unit=unit, legend=_legend(drawn), note=note, readout=x_label)


def scatter_chart(
    x: Sequence[float],
    y: Sequence[float],
    title: str,
    *,
    x_label: str,
    unit: str = "",
    labels: Sequence[str] = (),
    levels: Sequence[Level] = (),
    note: str = "",
) -> Markup:
    """Draw points, at most 2,000: every n-th of more.

    Args:
        x, y: as many values each.
        title, x_label, unit, levels, note: as for `line_chart`.
        labels: what is shown at a point under the pointer; as many as points, or none.
    """
    places = range(0, len(x), max(1, -(-len(x) // 2000)))
    plane = Plane.of(x, y)
    points = [
        _dot(plane, x[at], y[at], 2.5, labels[at] if labels else None)
        for at in places
        if plane.x.shows(x[at]) and plane.y.shows(y[at])
    ]
    left_out = f"{len(points):,} of {len(x):,} points are drawn." if len(points) < len(x) else ""
    dots = element("g", *points, class_="dots c0")
    svg = plane.frame(f"{title}: {len(x):,} points", plane.grid(x_label), plane.levels(levels), dots)
    return figure(title, svg, unit=unit, note=" ".join(filter(None, [note, left_out])))


def reliability_chart(
    bins: Iterable[tuple[float, float, int]],
    title: str,
    *,
    x_label: str = "confidence",
    unit: str = "share that is right",
    low: float = 0.5,
    note: str = "",
) -> Markup:
    """Draw how often predictions of each confidence are right; on the diagonal, confidence and share agree.

    Args:
        bins: mean confidence, share that is right, and number of predictions, for each bin; empty ones are left out.
        title, x_label, unit, note: as for `line_chart`.
        low: the smallest confidence.
    """
    known = [one for one in bins if one[2]]
    plane = Plane.of((), (), y_range=(-0.03, 1.03), x_range=(low, 1.0))
    most = max((number for _, _, number in known), default=1)
    points = [
        _dot(plane, c, hit, 3 + 7 * (number / most) ** 0.5, f"{number:,} at {c:.3f}: {100 * hit:.1f} % are right")
        for c, hit, number in known
    ]
    diagonal = path([(plane.x.at(low), plane.y.at(low)), (plane.x.at(1.0), plane.y.at(1.0))])
    line = path([(plane.x.at(c), plane.y.at(hit)) for c, hit, _ in known])
    content = (
        element("path", d=diagonal, class_="ideal"),
        element("path", d=line, class_="curve c0"),
        element("g", *points, class_="dots c0"),
    )
    spoken = "; ".join(f"{c:.2f}: {hit:.2f} of {number:,}" for c, hit, number in known)
    svg = plane.frame(f"{title}: {spoken}", plane.grid(x_label), *content)
    return figure(title, svg, unit=unit, note=note)


def figure(
    title: str, svg: Markup, *, unit: str = "", legend: Markup | None = None, note: str = "", readout: str = ""
) -> Markup:
    """Return a drawing with its caption, legend, note, and a line for the values under the pointer.

    Args:
        readout: what the horizontal axis shows, if a script should show values under the pointer.
    """
    caption = element("figcaption", element("b", title), element("small", f" {unit}") if unit else None)
    line = element("p", class_="readout", role="status", data_axis=readout) if readout else None
    return element("figure", caption, svg, line, legend, element("p", note, class_="about") if note else None)


def _curve(plane: Plane, curve: Curve, most: int) -> Markup:
    x, y = thinned(curve.x, curve.y, most)
    shown = [(a, b) if b is not None and plane.y.shows(b) else None for a, b in zip(x, y, strict=True)]
    if curve.style == "dots":
        drawn = [_dot(plane, *point, radius=1.8) for point in shown if point]
        content = element("g", *drawn, class_="dots faint")
    else:
        places = [(plane.x.at(point[0]), plane.y.at(point[1])) if point else None for point in shown]
        alone = [_dot(plane, *point, radius=2.4) for point in _alone(shown)]
        line = element("path", d=path(places), class_=f"curve{' dashed' if _dashed(curve) else ''}")
        content = join([line, element("g", *alone, class_="dots") if alone else None])
    known = [point for point in shown if point]
    return element(
        "g",
        content,
        class_=f"c{curve.color % COLORS}",
        data_series=curve.name,
        data_label=curve.label,
        data_x=" ".join(f"{a:.8g}" for a, _ in known),
        data_y=" ".join(f"{b:.5g}" for _, b in known),
    )


def _alone(points: Sequence[tuple[float, float] | None]) -> list[tuple[float, float]]:
    """Points that a line would not show, and all of them where they are few."""
    known = [point for point in points if point]
    if len(known) <= 25:
        return known
    around = [None, *points, None]
    return [p for at, p in enumerate(points, 1) if p and around[at - 1] is None and around[at + 1] is None]


def _band(plane: Plane, curve: Curve) -> Markup:
    corners = [
        (x, low, high)
        for x, low, high in zip(curve.x, curve.low, curve.high, strict=True)
        if low is not None and high is not None and plane.y.shows(low) and plane.y.shows(high)
    ]
    corners = corners[:: max(1, -(-len(corners) // 1000))]
    upper = [(plane.x.at(x), plane.y.at(high)) for x, _, high in corners]
    lower = [(plane.x.at(x), plane.y.at(low)) for x, low, _ in reversed(corners)]
    drawn = element("path", d=path([*upper, *lower]) + "Z", class_="band") if corners else None
    return element("g", drawn, class_=f"c{curve.color % COLORS}", data_series=curve.name)


def _dot(plane: Plane, x: float, y: float, radius: float = 2.0, label: str | None = None) -> Markup:
    spoken = element("title", label) if label else None
    return element("circle", spoken, cx=f"{plane.x.at(x):.1f}", cy=f"{plane.y.at(y):.1f}", r=f"{radius:.2g}")


def _dashed(curve: Curve) -> bool:
    return curve.style == "dashed" or curve.color >= COLORS


def _legend(curves: Sequence[Curve]) -> Markup | None:
    """One entry for each curve with a label; curves of one key share the first one's."""
    entries: dict[str, Markup] = {}
    for curve in curves:
        if curve.name in entries or len(curves) == 1:
            continue
        sign = element("span", class_=f"key c{curve.color % COLORS}{' dashed' if _dashed(curve) else ''}")
        box = element("input", type="checkbox", checked=True, data_toggles=curve.name)
        entries[curve.name] = element("label", box, sign, " ", curve.label)
    return element("div", *entries.values(), class_="legend") if entries else None


def _spoken(title: str, curves: Sequence[Curve]) -> str:
    """What is said in place of a chart: the last value of each curve."""
    last = [(curve.label, next(y for y in reversed(curve.y) if y is not None)) for curve in curves]
    return f"{title}. Last: " + ", ".join(f"{label} {value:.4g}" for label, value in last)
