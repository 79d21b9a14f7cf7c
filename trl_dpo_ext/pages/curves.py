"""What a line chart draws, thinned to what a screen can show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MOST_POINTS = 2000
Points = tuple[list[float], list[float | None]]


@dataclass(frozen=True)
class Curve:
    """One curve of a chart."""

    label: str
    """What the legend and the values under the pointer call it; plain text."""
    x: Sequence[float]
    """Ascending."""
    y: Sequence[float | None]
    """As many as `x`; None and values that are not finite leave a gap."""
    color: int = 0
    """Place in the palette of all pages."""
    key: str = ""
    """What switches it off: a legend's `a` switches off the keys `a` and `a/...`. The label by default."""
    style: str = "line"
    """`line`, `dashed` or `dots`."""
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    """Bounds of an interval around `y`, as many as `x`, or none."""

    @property
    def name(self) -> str:
        """The key that switches this curve off."""
        return self.key or self.label


def thinned(x: Sequence[float], y: Sequence[float | None], most: int = MOST_POINTS) -> Points:
    """Return at most `most` points: the smallest and the largest value of each of `most / 2` stretches, in order.

    Spikes survive, as no mean would let them. A stretch with values that are not finite keeps one of them as a gap.

    Args:
        x: ascending.
        y: as many values.
        most: number of points, at least 4.
    """
    values = [value if value is not None and math.isfinite(value) else None for value in y]
    if len(values) <= most:
        return list(x), values
    stretches = most // 2
    places: list[int] = []
    for part in range(stretches):
        start, end = part * len(values) // stretches, (part + 1) * len(values) // stretches
        places += _extremes(values, range(start, end))
    places[0], places[-1] = 0, len(values) - 1  # a curve keeps its ends
    return [x[place] for place in places], [values[place] for place in places]


def _extremes(values: Sequence[float | None], stretch: range) -> list[int]:
    known = [(value, place) for place in stretch if (value := values[place]) is not None]
    if not known:
        return [stretch.start]
    found = {min(known)[1], max(known)[1]}
    missing = next((place for place in stretch if values[place] is None), None)
    if missing is not None and len(found) == 2:
        found = {max(known)[1], missing}
    return sorted(found)
