"""The page of `score --rank` in a browser, from a file, at the width of a desktop and of a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chromium import Chromium
from tests.browser.test_inspect_page import SHOWN, WIDTHS, choose, count
from tests.support.list_page import SPECIAL, made_list_page, rows_of, scored_lists
from tests.support.scored_page import NASTY, RIGHT_TO_LEFT
from trl_dpo_ext.data.lists.agreement import Agreement

pytestmark = pytest.mark.browser
NUMBER = 300


@pytest.fixture(scope="module")
def file(tmp_path_factory: Any) -> Path:
    made = tmp_path_factory.mktemp("page") / "page.html"
    made.write_text(made_list_page(NUMBER), encoding="utf-8")
    return made


@pytest.fixture(scope="module", params=list(WIDTHS))
def browser(request: Any, file: Path) -> Iterator[Chromium]:
    with Chromium(WIDTHS[request.param]) as chromium:
        yield chromium


def agreements() -> list[Agreement | None]:
    return [Agreement.of(*values) for values in scored_lists(rows_of(NUMBER))[0]]


def test_it_opens_with_the_worst_prompts_and_without_errors(browser: Chromium, file: Path) -> None:
    browser.open(file)
    assert browser.errors() == []
    assert count(browser) == NUMBER
    taus = [None if each is None else each.pairs.tau_b for each in agreements()]
    worst = sorted((at for at in range(NUMBER) if taus[at] is not None), key=lambda at: (taus[at], at))
    assert browser.run(SHOWN) == worst[:25]
    assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.run("return document.querySelectorAll('.cards svg').length") == 1
    rewards = browser.run(
        "return [...document.querySelectorAll('#rows .row:first-child .answer .facts')].map((p) => p.textContent)"
    )
    values = [float(words.split()[1].replace("\N{MINUS SIGN}", "-")) for words in rewards]
    assert values == sorted(values, reverse=True)


def test_texts_cannot_leave_their_place(browser: Chromium, file: Path) -> None:
    browser.open(file, f"#search=row%3A{SPECIAL}")
    assert browser.run(SHOWN) == [SPECIAL]
    assert browser.run("return document.title").startswith("score: out </script>")
    texts = browser.run("return [...document.querySelectorAll('#rows .answer .text')].map((p) => p.textContent)")
    assert {NASTY, RIGHT_TO_LEFT} <= {*texts}


def test_filtering_sorting_and_searching(browser: Chromium, file: Path) -> None:
    browser.open(file)
    choose(browser, "subset", "odd")
    assert count(browser) == NUMBER // 2
    choose(browser, "subset", "")
    found = agreements()
    choose(browser, "best", "the best has a lower reward")
    assert count(browser) == sum(each is not None and each.credit == 0 for each in found)
    choose(browser, "best", "nothing to compare")
    assert count(browser) == sum(each is None for each in found)
    choose(browser, "best", "")
    choose(browser, "many", "5")
    assert count(browser) == NUMBER // 4
    choose(browser, "sort", "place of the best")
    browser.run("document.getElementById('descending').click()")
    shown = [found[at] for at in browser.run(SHOWN)]
    places = [each.place for each in shown if each is not None]
    assert places == sorted(places, reverse=True)
    assert places[0] > 1
    choose(browser, "search", RIGHT_TO_LEFT)
    assert browser.run(SHOWN) == [SPECIAL]
    fragment = browser.run("return location.hash")
    browser.open(file, fragment)
    assert browser.run(SHOWN) == [SPECIAL]
    assert browser.errors() == []
