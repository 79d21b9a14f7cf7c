"""The plane of a chart: scales, ticks, grid, and the lines that mark a place on an axis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .markup import Markup, element, join

WIDTH, HEIGHT = 420, 240
_MARK_ROWS = 6
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 18, 12, 34


@dataclass(frozen=True)
class Mark:
    """A vertical line with a word, such as an alarm."""

    x: float
    label: str
    color: int | None = None
    """Place in the palette; the color of warnings by default."""
    key: str | None = None
    """What switches it off, as for curves."""
    is_written: bool = True
    """Whether the word stands beside the line; it is always shown under the pointer."""


@dataclass(frozen=True)
class Level:
    """A horizontal line with a word, such as chance."""

    y: float
    label: str


@dataclass(frozen=True)
class Scale:
    """Maps values to places between two ends of an axis."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The place of a value, in units of the drawing."""
        low, high = self._inner(self.low), self._inner(self.high)
        return self.start + (self.end - self.start) * (self._inner(value) - low) / (high - low)

    def shows(self, value: float | None) -> bool:
        """Whether a value has a place: a number, and on a logarithmic axis a positive one."""
        return value is not None and math.isfinite(value) and (value > 0 or not self.log)

    def ticks(self, count: int = 5) -> list[float]:
        """About `count` round values within the scale."""
        powers = _log_ticks(self.low, self.high) if self.log else []
        if len(powers) > 2:
            return powers
        step = _round_step((self.high - self.low) / count)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [place * step for place in range(first, last + 1)]

    def _inner(self, value: float) -> float:
        return math.log10(value) if self.log else value


def scale_of(values: Iterable[float | None], start: float, end: float, log: bool = False, pad: float = 0.0) -> Scale:
    """Return the scale that shows all values.

    Args:
        values: those that have no place are left out.
        start, end: places of the smallest and the largest value.
        log: whether the axis is logarithmic.
        pad: share of the range that is added at both ends.
    """
    known = [each for each in values if each is not None and math.isfinite(each) and (each > 0 or not log)]
    low, high = (min(known), max(known)) if known else (1.0, 10.0) if log else (0.0, 1.0)
    if log:
        margin = (high / low) ** pad if high > low else 2.0
        return Scale(low / margin, high * margin, start, end, log)
    if high == low:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    margin = (high - low) * pad
    return Scale(low - margin, high + margin, start, end)


def tick_text(value: float) -> str:
    """Format a value for an axis.

    >>> [tick_text(value) for value in (0.30000000000000004, -2.5, 15000, 2e6, 1e-5)]
    ['0.3', '−2.5', '15k', '2M', '1e-05']
    """
    size = abs(value)
    if size >= 1e6 and size < 1e12:
        text = f"{value / 1e6:.6g}M"
    elif size >= 1e4 and size < 1e6:
        text = f"{value / 1e3:.6g}k"
    else:
        text = f"{value:.6g}" if size > 1e-12 else "0"
    return "−" + text[1:] if text.startswith("-") else text


@dataclass(frozen=True)
class Plane:
    """The area of a chart with its two axes."""

    x: Scale
    y: Scale

    @classmethod
    def of(
        cls,
        x: Iterable[float | None],
        y: Iterable[float | None],
        log: bool = False,
        y_range: tuple[float, float] | None = None,
        x_range: tuple[float, float] | None = None,
    ) -> Plane:
        """The plane that shows all values, or these ranges."""
        bottom, top = HEIGHT - _BOTTOM, _TOP
        across = Scale(*x_range, _LEFT, WIDTH - _RIGHT) if x_range else scale_of(x, _LEFT, WIDTH - _RIGHT)
        up = Scale(*y_range, bottom, top, log) if y_range else scale_of(y, bottom, top, log, pad=0.05)
        return cls(across, up)

    def grid(self, x_label: str) -> Markup:
        """Grid lines with their values, and what the horizontal axis shows."""
        lines = self.rows()
        floor = HEIGHT - _BOTTOM
        for value in self.x.ticks():
            at = _place(self.x.at(value))
            lines.append(element("line", x1=at, x2=at, y1=floor, y2=floor + 4))
            lines.append(element("text", tick_text(value), x=at, y=floor + 15, text_anchor="middle"))
        middle = (_LEFT + WIDTH - _RIGHT) / 2
        lines.append(element("text", x_label, x=middle, y=HEIGHT - 4, text_anchor="middle"))
        return element("g", *lines, class_="grid")

    def rows(self) -> list[Markup]:
        """The horizontal grid lines with their values."""
        lines = []
        for value in self.y.ticks():
            at = _place(self.y.at(value))
            lines.append(element("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=at, y2=at))
            lines.append(element("text", tick_text(value), x=_LEFT - 5, y=float(at) + 4, text_anchor="end"))
        return lines

    def levels(self, levels: Sequence[Level]) -> Markup:
        """Horizontal lines with their words at the right."""
        drawn = []
        for level in levels:
            if not self.y.shows(level.y) or not self.y.low <= level.y <= self.y.high:
                continue
            at = float(_place(self.y.at(level.y)))
            drawn.append(element("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=at, y2=at))
            drawn.append(element("text", level.label, x=WIDTH - _RIGHT - 2, y=at - 3, text_anchor="end"))
        return element("g", *drawn, class_="level-line") if drawn else Markup("")

    def marks(self, marks: Sequence[Mark]) -> Markup:
        """Vertical lines with their words at the top, on several lines in turn."""
        drawn = []
        for number, mark in enumerate(sorted(marks, key=lambda mark: mark.x)):
            if not self.x.shows(mark.x) or not self.x.low <= mark.x <= self.x.high:
                continue
            at, high = float(_place(self.x.at(mark.x))), _TOP + 9 + 11 * (number % _MARK_ROWS)
            left = at > (WIDTH + _LEFT) / 2
            line = element("line", element("title", mark.label), x1=at, x2=at, y1=_TOP, y2=HEIGHT - _BOTTOM)
            word = element(
                "text", mark.label, x=at - 4 if left else at + 4, y=high, text_anchor="end" if left else None
            )
            word = word if mark.is_written else None
            color = "alarm" if mark.color is None else f"c{mark.color % 8}"
            drawn.append(element("g", line, word, class_=f"mark {color}", data_series=mark.key))
        return join(drawn)

    def frame(self, label: str, *content: Markup) -> Markup:
        """The drawing, with what a script needs to find a value under the pointer."""
        return element(
            "svg",
            *content,
            viewBox=f"0 0 {WIDTH} {HEIGHT}",
            role="img",
            aria_label=label,
            data_low=f"{self.x.low:.10g}",
            data_high=f"{self.x.high:.10g}",
            data_start=self.x.start,
            data_end=self.x.end,
        )


def path(points: Iterable[tuple[float, float] | None]) -> str:
    """The path through points in units of the drawing; None starts anew."""
    parts, command = [], "M"
    for point in points:
        if point is None:
            command = "M"
            continue
        parts.append(f"{command}{_place(point[0])},{_place(point[1])}")
        command = "L"
    return "".join(parts)


def _place(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= step * 0.999)


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, (last - first) // 6)
    factors = (1,) if last - first > 3 else (1, 2, 5)
    found = [factor * 10.0**power for power in range(first, last + 1, every) for factor in factors]
    return [value for value in found if low <= value <= high]
