"""Charts: every value at its place, whatever the values are."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from trl_dpo_ext.pages import Bars, Curve, Level, Mark, histogram, line_chart, reliability_chart, scatter_chart, thinned
from trl_dpo_ext.pages.axes import HEIGHT, WIDTH, scale_of, tick_text


def drawing(chart: str) -> ElementTree.Element:
    """The SVG of a figure, which is well-formed."""
    found = re.search("<svg.*</svg>", chart, re.DOTALL)
    assert found
    return ElementTree.fromstring(found[0])


def line_of(chart: str, series: str) -> list[tuple[float, float]]:
    path = drawing(chart).find(f".//g[@data-series='{series}']/path")
    assert path is not None
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.-]+),([\d.-]+)", path.attrib["d"])]


def test_a_curve_goes_through_its_values() -> None:
    chart = line_chart([Curve("loss", [0, 5, 10], [0.0, 1.0, 0.5])], "Loss", y_range=(0.0, 1.0))
    (x0, y0), (x1, y1), (x2, y2) = line_of(chart, "loss")
    assert x0 < x1 < x2
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y1 < y2 < y0  # the vertical axis of a drawing points down
    assert y2 - y1 == pytest.approx(y0 - y2, abs=0.2)


def test_a_logarithmic_axis_gives_each_power_the_same_height() -> None:
    chart = line_chart([Curve("norm", [0, 1, 2], [0.1, 1.0, 10.0])], "Norm", log=True)
    heights = [y for _, y in line_of(chart, "norm")]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)


@pytest.mark.parametrize("gap", [None, math.nan, math.inf, -math.inf])
def test_values_that_are_no_numbers_leave_a_gap(gap: float | None) -> None:
    chart = line_chart([Curve("loss", [0, 1, 2, 3, 4], [1.0, 0.9, gap, 0.7, 0.6])], "Loss")
    path = drawing(chart).find(".//path")
    assert path is not None
    assert path.attrib["d"].count("M") == 2
    assert "nan" not in chart.lower().replace("finance", "")
    assert "inf" not in chart


@pytest.mark.parametrize(
    ("values", "log"),
    [([0.0], False), ([5.0, 5.0], False), ([-1e-9, 1e-9], False), ([1e300, 1.0], False), ([0.0, -1.0], True),
     ([1e-30, 1e30], True), ([3.0], True)],
)  # fmt: skip
def test_every_value_is_within_the_drawing(values: list[float], log: bool) -> None:
    root = drawing(line_chart([Curve("x", range(len(values)), values)], "x", log=log))
    for node in root.iter():
        for name in ("x1", "x2", "x", "cx"):
            assert 0 <= float(node.attrib.get(name, 0)) <= WIDTH
        for name in ("y1", "y2", "y", "cy"):
            assert 0 <= float(node.attrib.get(name, 0)) <= HEIGHT


def test_nothing_is_drawn_without_values() -> None:
    assert line_chart([Curve("loss", [], []), Curve("none", [1], [None])], "Loss") == ""


def test_long_curves_keep_their_spikes() -> None:
    values: list[float | None] = [math.sin(at / 500) for at in range(100_000)]
    values[54_321], values[77_777] = 99.0, -99.0
    x, y = thinned(range(100_000), values)
    assert len(x) == len(y) <= 2000
    assert (x[y.index(99.0)], x[y.index(-99.0)]) == (54_321, 77_777)
    assert x == sorted(x)
    assert (x[0], x[-1]) == (0, 99_999)
    assert thinned([1, 2], [3.0, None]) == ([1, 2], [3.0, None])


def test_long_gaps_are_kept() -> None:
    values: list[float | None] = [1.0] * 3000 + [None] * 3000 + [2.0] * 3000
    x, y = thinned(range(9000), values)
    missing = [a for a, b in zip(x, y, strict=True) if b is None]
    assert missing
    assert all(3000 <= each < 6000 for each in missing)


def test_the_legend_switches_what_it_names_and_one_curve_needs_none() -> None:
    two = line_chart([Curve("a", [1], [1.0], 0, "run-0"), Curve("b", [1], [2.0], 1, "run-1")], "x")
    assert re.findall('data-toggles="([^"]+)"', two) == ["run-0", "run-1"]
    assert "data-toggles" not in line_chart([Curve("a", [1], [1.0])], "x")


def test_names_from_data_are_text() -> None:
    hostile = '</text><script>"&'
    chart = line_chart(
        [Curve(hostile, [1, 2], [1.0, 2.0]), Curve("b", [1], [1.0])],
        hostile, unit=hostile, x_label=hostile, marks=[Mark(1, hostile)], levels=[Level(1.5, hostile)], note=hostile,
    )  # fmt: skip
    assert "<script" not in chart
    assert [text.text for text in drawing(chart).iter("text")].count(hostile) == 3


def test_marks_stand_at_their_step_and_only_within_the_curves() -> None:
    curve = Curve("loss", [0, 10], [1.0, 0.0])
    root = drawing(line_chart([curve], "Loss", marks=[Mark(5, "kl_high"), Mark(11, "later")]))
    lines = [node.find("line") for node in root.iter("g") if "mark" in node.attrib.get("class", "")]
    assert len(lines) == 1
    assert lines[0] is not None
    (left, _), (right, _) = line_of(line_chart([curve], "Loss"), "loss")
    assert float(lines[0].attrib["x1"]) == pytest.approx((left + right) / 2, abs=0.2)


def test_bars_are_as_high_as_their_counts() -> None:
    chart = histogram([0, 1, 2, 4], [Bars("a", [1, 0, 4]), Bars("b", [2, 2, 0], 1)], "Margins", x_label="margin")
    bars = [float(node.attrib["height"]) for node in drawing(chart).iter("rect")]
    assert bars[2] == pytest.approx(4 * bars[0], abs=0.3)
    assert bars[3] == bars[4] == pytest.approx(2 * bars[0], abs=0.2)
    assert bars[1] == bars[5] == 0
    assert "2 to 4: 4 rows, a" in chart


def test_a_mark_among_even_bins_stands_between_their_edges() -> None:
    chart = histogram([0, 1, 2, 4, 8], [Bars("", [1, 1, 1, 1])], "Tokens", even=True, marks=[Mark(6, "limit")])
    root = drawing(chart)
    last = list(root.iter("rect"))[-1]
    line = root.find(".//g[@class='mark alarm']/line")
    assert line is not None
    middle = float(last.attrib["x"]) + float(last.attrib["width"]) / 2
    assert float(line.attrib["x1"]) == pytest.approx(middle, abs=0.6)


def test_reliability_leaves_out_empty_bins_and_says_the_counts() -> None:
    chart = reliability_chart([(0.55, 0.6, 10), (0.65, 0.0, 0), (0.95, 1.0, 1200)], "Calibration")
    assert len(list(drawing(chart).iter("circle"))) == 2
    assert "1,200 at 0.950: 100.0 % are right" in chart


def test_many_points_are_drawn_in_part_and_that_is_said() -> None:
    chart = scatter_chart([float(x) for x in range(5000)], [1.0] * 5000, "Scores", x_label="score")
    assert len(list(drawing(chart).iter("circle"))) <= 2000
    assert "of 5,000 points are drawn" in chart


def test_ticks_are_round_and_within_their_scale() -> None:
    for low, high in ((0.0, 1.0), (-3.7, 12.2), (0.00012, 0.00013), (0, 123_456)):
        scale = scale_of([low, high], 0, 100)
        ticks = scale.ticks()
        assert 3 <= len(ticks) <= 8
        tolerance = 1e-9 * (high - low)
        assert all(scale.low - tolerance <= tick <= scale.high + tolerance for tick in ticks)
    assert tick_text(0.1 + 0.2) == "0.3"
