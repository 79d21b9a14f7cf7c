"""The documentation in a browser, from files, at the width of a desktop and of a phone, in light and in dark."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chromium import Chromium
from tools.site.__main__ import build

pytestmark = pytest.mark.browser

WIDTHS = {"desktop": 1280, "phone": 390}
PAGES = ("index", "reference/losses", "reference/losses/dpop", "reference/overlay", "reference/cli", "search")
OVERLAY = "reference/overlay.html"
DRAWN = "return [...document.querySelectorAll('#plot [data-loss]')].map(line => line.dataset.loss)"


@pytest.fixture(scope="module")
def site(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("built") / "site"
    assert build(folder) == 0
    return folder


@pytest.fixture(scope="module", params=list(WIDTHS))
def browser(request: Any) -> Iterator[Chromium]:
    with Chromium(WIDTHS[request.param]) as chromium:
        yield chromium


def waited(browser: Chromium, script: str) -> Any:
    """What a script returns, once that is not empty."""
    for _ in range(100):
        if found := browser.run(script):
            return found
        time.sleep(0.1)
    raise TimeoutError(f"nothing from {script}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_without_errors_and_fits_the_window(browser: Chromium, site: Path, name: str, scheme: str) -> None:
    browser.prefer(scheme)
    browser.open(site / f"{name}.html")
    assert browser.errors() == []
    assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.run("return [...document.images].filter(one => one.complete && !one.naturalWidth).length") == 0
    assert (
        browser.run(
            "return performance.getEntriesByType('resource').map(one => one.name).filter(name => !name.startsWith('file:'))"
        )
        == []
    )
    text, back = browser.run(
        "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]"
        ".map(color => color.match(/[0-9.]+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) / 3)"
    )
    assert (text > 180 and back < 60) if scheme == "dark" else (text < 60 and back > 200)


@pytest.mark.parametrize("word", ["dpop_lambda", "precompute", "quantized"])
def test_the_search_finds_a_word(browser: Chromium, site: Path, word: str) -> None:
    browser.open(site / "search.html", f"?q={word}")
    assert waited(browser, "return document.querySelectorAll('#search-results li a').length") >= 1
    assert "reference/" in waited(
        browser, "return [...document.querySelectorAll('#search-results li a')].map(link => link.href).join(' ')"
    )
    assert browser.errors() == []


def test_every_loss_is_one_click_from_the_table_and_shows_its_curves(browser: Chromium, site: Path) -> None:
    from tools.site.losses import losses

    browser.open(site / "reference" / "losses.html")
    links = browser.run("return [...document.querySelectorAll('article td:first-child a')].map(link => link.href)")
    assert {Path(link).stem for link in links} >= {variant.name for variant in losses()}
    assert browser.run("return document.querySelectorAll('svg.spark').length") == len(losses())
    browser.open(site / "reference" / "losses" / "dpop.html")
    assert browser.run("return document.querySelectorAll('figure svg').length") == 6
    assert browser.run("return document.querySelector('figure svg').getBoundingClientRect().height > 100")
    browser.run("document.querySelector('figure .legend input').focus()")
    visible = "return [...document.querySelectorAll('figure')][0].querySelectorAll('[data-x]:not(.off-here)').length"
    before = browser.run(visible)
    browser.press("space")
    assert browser.run(visible) == before - 1


def test_losses_are_chosen_by_keyboard_and_kept_in_the_address(browser: Chromium, site: Path) -> None:
    browser.open(site / OVERLAY, "#losses=sigmoid")
    assert browser.run(DRAWN) == ["sigmoid"]
    browser.run("document.querySelector('.families input[value=hinge]').focus()")
    browser.press("space")
    assert browser.run(DRAWN) == ["sigmoid", "hinge"]
    browser.run("document.querySelector('input[value=value]').focus()")
    browser.press("right")
    assert browser.run("return document.querySelector('input[value=gradient]').checked")
    fragment = browser.run("return location.hash")
    browser.open(site / OVERLAY, fragment)
    assert browser.run(DRAWN) == ["sigmoid", "hinge"]
    assert browser.run("return document.querySelector('#plot').getAttribute('aria-label')").startswith(
        "gradient of sigmoid"
    )
    browser.open(site / OVERLAY, "#losses=none_of_this_name,<script>")
    assert browser.run(DRAWN) == []
    assert browser.errors() == []


def test_values_are_read_by_pointer_and_keyboard(browser: Chromium, site: Path) -> None:
    browser.open(site / OVERLAY, "#losses=sigmoid,hinge")
    read = "return document.querySelector('#said').textContent.trim()"
    assert browser.run(read) == "At margin 0: sigmoid 0.6931, hinge 1"
    browser.run("document.querySelector('#plot').focus()")
    browser.press("right")
    assert browser.run(read).startswith("At margin 1: sigmoid 0.6444")
    browser.run("document.querySelector('#scaled').click()")
    assert "sigmoid 12.89" in browser.run(read)  # divided by beta / 2


def test_every_loss_can_be_drawn(browser: Chromium, site: Path) -> None:
    browser.open(site / OVERLAY)
    names = browser.run("return Object.keys(page.data.curves)")
    for name in names:
        browser.run(f"location.hash = 'losses={name}&show=gradient'")
        points = waited(browser, f"return document.querySelector('#plot [data-loss={name}]')?.getAttribute('points')")
        assert "NaN" not in points, name
    assert browser.errors() == []
