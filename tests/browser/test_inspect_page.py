"""The page of `inspect` in a browser, from a file, at the width of a desktop and of a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests.browser.chromium import Chromium
from tests.support import runs, tiny
from trl_dpo_ext import inspect_preferences
from trl_dpo_ext.inspection.page import page

pytestmark = pytest.mark.browser

WIDTHS = {"desktop": 1280, "phone": 390}
NASTY = "</script><script>document.title='broken'</script>"
RIGHT_TO_LEFT, EMOJI = "مرحبا", "👩‍👩‍👧"
SHOWN = "return [...document.querySelectorAll('#rows .row')].map(row => Number(row.dataset.row))"


@pytest.fixture(scope="module")
def file(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("page")
    token = tiny.tokenizer()
    token.add_tokens([NASTY, RIGHT_TO_LEFT, EMOJI])
    words = tiny.SENTENCE.split()
    rows = [
        {
            "prompt": f"{words[at % 37]} {words[at // 37 % 37]} say ",
            "chosen": " ".join(words[at % 20 : at % 20 + 1 + at % 9]),
            "rejected": " ".join(words[at % 30 : at % 30 + 4 + at % 5]),
            "subset": "even" if at % 2 == 0 else "odd",
            "score_chosen": float(at % 10),
            "score_rejected": 3.0,
        }
        for at in range(2000)
    ]
    rows[7] |= {"chosen": f"{NASTY} yes", "rejected": f"{RIGHT_TO_LEFT} {EMOJI}"}
    rows[8] |= {"chosen": "yes <eos> ", "rejected": "no sky"}
    args = runs.config(folder, max_length=9)
    result = inspect_preferences(Dataset.from_list(rows), token, args, subset_column="subset")
    made = folder / "page.html"
    made.write_text(page(result.data, result.sample(2000)), encoding="utf-8")
    return made


@pytest.fixture(scope="module", params=list(WIDTHS))
def browser(request: Any, file: Path) -> Iterator[Chromium]:
    with Chromium(WIDTHS[request.param]) as chromium:
        yield chromium


def choose(browser: Chromium, name: str, value: str) -> None:
    browser.run(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        "e.dispatchEvent(new Event('change')); e.dispatchEvent(new Event('input'))",
        name,
        value,
    )


def count(browser: Chromium) -> int:
    return int(browser.run("return document.getElementById('count').textContent.split(' ')[0].replaceAll(',', '')"))


def test_it_opens_with_all_rows_and_without_errors(browser: Chromium, file: Path) -> None:
    browser.open(file)
    assert browser.errors() == []
    assert count(browser) == 2000
    assert browser.run(SHOWN) == [*range(25)]
    assert "2,000 of 2,000 loaded" in browser.run("return document.getElementById('count').textContent")
    assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.run("return document.querySelectorAll('#statistics svg rect').length > 1")
    assert "max_length 9" in browser.run("return document.querySelector('#statistics svg').textContent")


def test_rows_cannot_leave_their_place(browser: Chromium, file: Path) -> None:
    browser.open(file, "#search=row%3A7")
    assert browser.run(SHOWN) == [7]
    assert browser.run("return document.title") != "broken"
    assert NASTY in browser.run("return document.querySelector('#rows .chosen .text').textContent")
    said = browser.run("return document.querySelector('#rows .rejected .text').textContent")
    assert RIGHT_TO_LEFT in said
    assert EMOJI in said
    assert browser.run("return getComputedStyle(document.querySelector('#rows .rejected .text')).direction") == "rtl"
    assert "id " in browser.run("return document.querySelector('#rows .chosen .t').title")


def test_searching_filtering_and_sorting(browser: Chromium, file: Path) -> None:
    browser.open(file)
    choose(browser, "search", "SKY BLUE")
    found = count(browser)
    assert 0 < found < 2000
    choose(browser, "search", "")
    choose(browser, "subset", "odd")
    assert count(browser) == 1000
    choose(browser, "longer", "chosen")
    assert all(number % 2 for number in browser.run(SHOWN))
    choose(browser, "subset", "")
    choose(browser, "longer", "")
    choose(browser, "cut", "yes")
    assert 0 < count(browser) < 2000
    choose(browser, "cut", "")
    choose(browser, "sort", "score difference")
    browser.run("document.getElementById('descending').click()")
    assert [number % 10 for number in browser.run(SHOWN)] == [9] * 25
    browser.run("document.querySelector('input[value=double_eos]').click()")
    assert browser.run(SHOWN) == [8]
    browser.run("document.querySelector('input[value=length_bias]')?.click()")
    assert browser.errors() == []


def test_a_link_opens_the_same_view(browser: Chromium, file: Path) -> None:
    browser.open(file)
    choose(browser, "sort", "chosen")
    choose(browser, "subset", "even")
    browser.run("document.getElementById('next').click()")
    rows, fragment = browser.run(SHOWN), browser.run("return location.hash")
    browser.open(file, fragment)
    assert browser.run(SHOWN) == rows
    assert browser.run("return document.getElementById('subset').value") == "even"
    assert "page 2 of 40" in browser.run("return document.getElementById('place').textContent")


def test_the_keyboard_is_enough(browser: Chromium, file: Path) -> None:
    browser.open(file)
    browser.press("j", "j")
    assert browser.run("return document.activeElement.dataset.row") == "1"
    browser.press("k")
    assert browser.run("return document.activeElement.dataset.row") == "0"
    browser.press("right")
    assert browser.run(SHOWN)[0] == 25
    browser.press("left")
    assert browser.run(SHOWN)[0] == 0
    browser.press("/")
    assert browser.run("return document.activeElement.id") == "search"
    browser.press(*"row:12")
    assert browser.run(SHOWN) == [12]
    assert browser.run("return document.getElementById('search').value") == "row:12"


def test_what_is_cut_is_marked_and_raw_shows_the_whole(browser: Chromium, file: Path) -> None:
    browser.open(file, "#cut=yes")
    assert "[cut: " in browser.run("return document.querySelector('#rows .sides').textContent")
    browser.run("document.getElementById('raw').click()")
    assert "[cut: " not in browser.run("return document.querySelector('#rows').textContent")


def test_filtering_two_thousand_rows_is_quick(browser: Chromium, file: Path) -> None:
    """The limit is 100 ms on an idle machine; the best of several tries is far from it."""
    browser.open(file)
    milliseconds = browser.run(
        "const e = document.getElementById('search'); let best = Infinity;"
        "for (const text of ['sky', 'blue', 'dog', 'let me', 'color', 'sky', 'x']) {"
        "  const start = performance.now(); e.value = text; e.dispatchEvent(new Event('input'));"
        "  best = Math.min(best, performance.now() - start); } return best"
    )
    assert milliseconds < 100


def test_a_row_is_copied_as_json(browser: Chromium, file: Path) -> None:
    browser.open(file, "#search=row%3A12")
    browser.run(
        "window.copied = ''; Object.defineProperty(navigator, 'clipboard', {value: {writeText: async (text) => {"
        "window.copied = text}}}); document.querySelector('#rows button').click()"
    )
    assert browser.run("return JSON.parse(window.copied).row") == 12
