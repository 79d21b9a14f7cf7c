"""The page of `report` in a browser, from a file, at the width of a desktop and of a phone, in light and in dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chromium import Chromium
from tests.unit.reports.folders import HOSTILE, write_run, write_watched
from trl_dpo_ext.reports.page import page
from trl_dpo_ext.reports.result import report_of
from trl_dpo_ext.reports.run_data import read_runs

pytestmark = pytest.mark.browser

WIDTHS = {"desktop": 1280, "phone": 390}
SHOWN = "return [...document.querySelectorAll('.charts')].filter(e => !e.hidden).map(e => e.dataset.axis)"
VISIBLE = (
    "return [...document.querySelectorAll('.charts:not([hidden]) figure:first-child [data-x]')]"
    ".filter(e => getComputedStyle(e).display !== 'none').map(e => e.dataset.label)"
)


def write(folder: Path, name: str, *runs: Path) -> Path:
    file = folder / name
    file.write_text(page(report_of(read_runs(runs), "0")), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def one(folder: Path) -> Path:
    return write(folder, "one.html", write_watched(write_run(folder / HOSTILE.replace("/", ""))))


@pytest.fixture(scope="module")
def several(folder: Path) -> Path:
    runs = (
        write_watched(write_run(folder / "first")),
        write_watched(write_run(folder / "second", beta=0.5, evaluated="9 rows, x")),
        write_run(folder / "killed", steps=13, finished=False),
    )
    return write(folder, "several.html", *runs, folder / "none")


@pytest.fixture(scope="module", params=list(WIDTHS))
def browser(request: Any) -> Iterator[Chromium]:
    with Chromium(WIDTHS[request.param]) as chromium:
        yield chromium


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_without_errors_and_fits_the_window(browser: Chromium, one: Path, several: Path, scheme: str) -> None:
    browser.prefer(scheme)
    for file in (one, several):
        browser.open(file)
        assert browser.errors() == []
        assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
        assert browser.run("return document.title") != "broken"
        assert browser.run("return performance.getEntriesByType('resource').length") == 0
    dark = browser.run("return getComputedStyle(document.documentElement).getPropertyValue('--c0').trim()") == "#56b4e9"
    assert dark is (scheme == "dark")


def test_text_from_a_run_is_shown_as_it_is(browser: Chromium, one: Path) -> None:
    browser.open(one)
    said = browser.run("return document.querySelector('.samples:nth-of-type(2)').textContent")
    assert HOSTILE in said
    assert HOSTILE in browser.run("return document.querySelector('.alarms').textContent")
    assert browser.run("return document.querySelectorAll('.samples ins').length") == 2
    direction = "return getComputedStyle(document.querySelector('.samples .text')).unicodeBidi"
    assert browser.run(direction) in ("isolate", "plaintext")


def test_the_axis_is_chosen_by_keyboard_and_kept_in_the_address(browser: Chromium, one: Path) -> None:
    browser.open(one)
    assert browser.run(SHOWN) == ["step"]
    browser.run("document.querySelector('.axes input').focus()")
    browser.press("down")
    assert browser.run(SHOWN) == ["samples"]
    fragment = browser.run("return location.hash")
    browser.open(one, fragment)
    assert browser.run(SHOWN) == ["samples"]
    ends = browser.run("return document.querySelector('[data-axis=samples] [data-x]').dataset.x.split(' ')")
    assert (ends[0], ends[-1]) == ("8", "320")  # 8 pairs in each step
    browser.open(one, "#axis=<script>")
    assert browser.run(SHOWN) == ["step"]


def test_a_legend_switches_a_curve_off_in_its_chart(browser: Chromium, one: Path) -> None:
    browser.open(one)
    assert browser.run(VISIBLE) == ["training", "evaluation"]
    browser.run("document.querySelector('.charts figure .legend input').focus()")
    browser.press("space")
    assert browser.run(VISIBLE) == ["evaluation"]
    browser.press("space")
    assert browser.run(VISIBLE) == ["training", "evaluation"]


def test_a_run_is_switched_off_on_the_whole_page(browser: Chromium, several: Path) -> None:
    browser.open(several)
    before = browser.run(VISIBLE)
    browser.run("document.querySelector('.runs input').click()")
    assert browser.run(VISIBLE) == [label for label in before if not label.startswith("first")]
    marks = "return [...document.querySelectorAll('.mark')].filter(e => getComputedStyle(e).display !== 'none').length"
    assert browser.run(marks) == browser.run("return document.querySelectorAll('.mark').length") / 2
    browser.run("document.querySelector('.charts figure .legend input').click()")  # of the same run, in a chart
    browser.run("document.querySelector('.runs input').click()")
    assert browser.run(VISIBLE) == [label for label in before if label != "first, training"]


def test_values_are_read_by_pointer_and_keyboard(browser: Chromium, one: Path) -> None:
    browser.open(one)
    read = "return document.querySelector('.charts figure .readout').textContent"
    browser.run("document.querySelector('.charts figure svg').focus()")
    browser.press("left")
    assert browser.run(read) == "step 40: training 0.2, evaluation 0.2"
    browser.press("left", "left")
    assert browser.run(read).startswith("step 38: training 0.225, evaluation 0.2 (at 40)")
    browser.press("right")
    assert browser.run(read).startswith("step 39")
    browser.run(
        "const svg = document.querySelector('.charts figure svg'); const box = svg.getBoundingClientRect();"
        "const at = {clientX: box.left + box.width * 46 / 420, clientY: box.top + 50, bubbles: true};"
        "svg.dispatchEvent(new PointerEvent('pointermove', at))"
    )
    assert browser.run(read).startswith("step 0: training 0.6875 (at 1), evaluation 0.7")
    assert browser.errors() == []


def test_tables_are_sorted_by_a_click(browser: Chromium, one: Path) -> None:
    browser.open(one)
    cells = (
        "return [...document.querySelectorAll('table.sortable')[0].tBodies[0].rows].map(r => r.cells[2].textContent)"
    )
    click = "document.querySelectorAll('table.sortable')[0].tHead.rows[0].cells[2].querySelector('button').click()"

    def numbers() -> list[float]:
        return [float(cell.replace("−", "-")) for cell in browser.run(cells)]

    browser.run(click)
    assert numbers() == sorted(numbers())
    browser.run(click)
    assert numbers() == sorted(numbers(), reverse=True)
    assert browser.run("return document.querySelectorAll('[aria-sort=descending]').length") == 1


def test_what_is_not_comparable_is_marked(browser: Chromium, several: Path) -> None:
    browser.open(several)
    assert "Not comparable" in browser.run("return document.querySelector('.warnings').textContent")
    assert "none" in browser.run("return document.querySelector('.missing').textContent")
    heads = browser.run("return [...document.querySelectorAll('.arguments thead th')].map(e => e.textContent.trim())")
    assert heads[1:4] == ["first evaluation data A", "second evaluation data B", "killed evaluation data A"]
    names = browser.run(
        "return [...document.querySelector('.arguments').tBodies[0].rows].map(r => r.cells[0].textContent)"
    )
    assert names == ["state", "beta", "evaluation data"]


def test_without_javascript_numbers_and_charts_are_there(browser: Chromium, one: Path) -> None:
    browser.scripts(False)
    try:
        browser.open(one)
        assert browser.run(SHOWN) == ["step"]
        assert browser.run("return document.querySelector('.charts figure svg').getBoundingClientRect().height > 100")
        assert browser.run("return document.querySelectorAll('.sortable td').length") > 20
        controls = "[...document.querySelectorAll('input, .sortable button, .readout')]"
        assert browser.run(f"return {controls}.filter(e => e.checkVisibility()).length") == 0
    finally:
        browser.scripts(True)
    browser.open(one)
    assert browser.run(f"return {controls}.filter(e => e.checkVisibility()).length") > 10
