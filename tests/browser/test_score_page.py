"""The page of `score` in a browser, from a file, at the width of a desktop and of a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chromium import Chromium
from tests.browser.test_inspect_page import SHOWN, WIDTHS, choose, count
from tests.support.scored_page import EMOJI, NASTY, RIGHT_TO_LEFT, SPECIAL_ROW, made_page, scores_of
from trl_dpo_ext.scoring.measures import measure

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def file(tmp_path_factory: Any) -> Path:
    made = tmp_path_factory.mktemp("page") / "page.html"
    made.write_text(made_page(2000), encoding="utf-8")
    return made


@pytest.fixture(scope="module", params=list(WIDTHS))
def browser(request: Any, file: Path) -> Iterator[Chromium]:
    with Chromium(WIDTHS[request.param]) as chromium:
        yield chromium


def margins() -> list[float]:
    return measure(scores_of(2000)).margin.tolist()


def test_it_opens_with_the_worst_rows_and_without_errors(browser: Chromium, file: Path) -> None:
    browser.open(file)
    assert browser.errors() == []
    assert count(browser) == 2000
    values = margins()
    assert browser.run(SHOWN) == sorted((at for at in range(2000) if at != 3), key=lambda at: values[at])[:25]
    assert "2,000 of 2,000 loaded" in browser.run("return document.getElementById('count').textContent")
    assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.run("return window.innerWidth") in WIDTHS.values()  # a phone's grows with what does not fit
    assert browser.run("return document.querySelectorAll('.charts svg').length") == 4
    assert browser.run("return document.querySelectorAll('.charts figure:first-child g.bars').length") == 3


def test_rows_cannot_leave_their_place(browser: Chromium, file: Path) -> None:
    browser.open(file, f"#search=row%3A{SPECIAL_ROW}")
    assert browser.run(SHOWN) == [SPECIAL_ROW]
    assert browser.run("return document.title").startswith("score: out </script>")
    assert NASTY in browser.run("return document.querySelector('#rows .chosen .text').textContent")
    said = browser.run("return document.querySelector('#rows .rejected .text').textContent")
    assert RIGHT_TO_LEFT in said
    assert EMOJI in said
    assert browser.run("return getComputedStyle(document.querySelector('#rows .rejected .text')).direction") == "rtl"


def test_tokens_are_shaded_by_their_log_ratio_and_say_it(browser: Chromium, file: Path) -> None:
    browser.open(file)
    shaded = browser.run(
        "return [...document.querySelectorAll('#rows .chosen .t')].map((t) => [t.title, t.classList.contains('less'),"
        "getComputedStyle(t).backgroundColor, getComputedStyle(t).textDecorationLine])"
    )
    assert len({color for _, _, color, _ in shaded}) > 5
    assert all((title[0] == "\N{MINUS SIGN}") == less == (line == "underline") for title, less, _, line in shaded)
    assert browser.run("return document.querySelectorAll('#rows sub').length") == 0
    browser.run("document.getElementById('values').click()")
    assert browser.run("return document.querySelectorAll('#rows .chosen sub').length") == len(shaded)
    assert browser.run("return document.querySelectorAll('#scale .t').length") == 4


def test_filtering_sorting_and_searching(browser: Chromium, file: Path) -> None:
    browser.open(file)
    choose(browser, "subset", "odd")
    assert count(browser) == 1000
    choose(browser, "label", "disagrees")
    values = margins()
    assert count(browser) == sum(values[at] < 0 for at in range(1, 2000, 2))
    choose(browser, "label", "tie")
    choose(browser, "subset", "")
    assert browser.run(SHOWN) == [0]
    choose(browser, "label", "")
    choose(browser, "status", "dropped")
    assert browser.run(SHOWN) == [3]
    assert "row 3: dropped" in browser.run("return document.querySelector('#rows h3').textContent")
    choose(browser, "status", "")
    choose(browser, "sort", "score difference")
    browser.run("document.getElementById('descending').click()")
    assert [number % 10 for number in browser.run(SHOWN)] == [9] * 25
    choose(browser, "sort", "margin")
    assert browser.run(SHOWN)[0] == max((at for at in range(2000) if at != 3), key=lambda at: values[at])
    choose(browser, "search", RIGHT_TO_LEFT)
    assert browser.run(SHOWN) == [SPECIAL_ROW]
    assert browser.errors() == []


def test_a_link_opens_the_same_view(browser: Chromium, file: Path) -> None:
    browser.open(file)
    choose(browser, "sort", "length difference")
    choose(browser, "longer", "rejected")
    browser.run("document.getElementById('next').click()")
    rows, fragment = browser.run(SHOWN), browser.run("return location.hash")
    browser.open(file, fragment)
    assert browser.run(SHOWN) == rows
    assert browser.run("return document.getElementById('longer').value") == "rejected"
    assert "page 2 of" in browser.run("return document.getElementById('place').textContent")


def test_the_keyboard_is_enough(browser: Chromium, file: Path) -> None:
    browser.open(file)
    first, second = browser.run(SHOWN)[:2]
    browser.press("j", "j")
    assert browser.run("return document.activeElement.dataset.row") == str(second)
    browser.press("k")
    assert browser.run("return document.activeElement.dataset.row") == str(first)
    browser.press("right")
    assert browser.run(SHOWN)[0] not in (first, second)
    browser.press("left", "/")
    assert browser.run("return document.activeElement.id") == "search"
    browser.press(*"row:12")
    assert browser.run(SHOWN) == [12]


def test_a_legend_switches_bars_off_and_subsets_are_sorted(browser: Chromium, file: Path) -> None:
    browser.open(file)
    browser.run("document.querySelector('.charts .legend input').click()")
    assert browser.run("return document.querySelector('.charts g.bars').classList.contains('off-here')")
    names = "return [...document.querySelectorAll('table.sortable tbody tr')].map((tr) => tr.cells[0].textContent)"
    browser.run("document.querySelector('table.sortable thead button').click()")
    before = browser.run(names)
    browser.run("document.querySelector('table.sortable thead button').click()")
    assert browser.run(names) == before[::-1]


def test_a_row_is_copied_as_json(browser: Chromium, file: Path) -> None:
    browser.open(file, "#search=row%3A12")
    browser.run(
        "window.copied = ''; Object.defineProperty(navigator, 'clipboard', {value: {writeText: async (text) => {"
        "window.copied = text}}}); document.querySelector('#rows button').click()"
    )
    assert browser.run("return JSON.parse(window.copied).row") == 12


def test_filtering_two_thousand_rows_is_quick(browser: Chromium, file: Path) -> None:
    browser.open(file)
    milliseconds = browser.run(
        "const e = document.getElementById('search'); let best = Infinity;"
        "for (const text of ['sky', 'blue', 'dog', 'let me', 'color', 'sky', 'x']) {"
        "  const start = performance.now(); e.value = text; e.dispatchEvent(new Event('input'));"
        "  best = Math.min(best, performance.now() - start); } return best"
    )
    assert milliseconds < 100
