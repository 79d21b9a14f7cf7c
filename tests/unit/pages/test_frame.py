"""The frame of a page: data cannot leave its place, and nothing is asked from outside."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.support.parsed_page import ParsedPage
from trl_dpo_ext import pages
from trl_dpo_ext.pages import Markup, element, frame

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!-- <script> @@data@@ @@script@@",
    "مرحبا 👩‍👩‍👧 \u2028 \u202e",
    "\ud800 a lone surrogate",
    "\" onload='x' & &lt;",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_data_cannot_leave_its_place(text: str) -> None:
    body = element("p", text, title=text)
    parsed = ParsedPage(pages.document(text, body, data={"text": text}, without_script=element("b", text)))
    assert parsed.count("script") == 2
    assert parsed.data == {"text": text}
    assert dict(parsed.tags)["p"]["title"] == text
    assert parsed.shown.count(text) == 3  # title, body, and what stands there without JavaScript


def test_lone_surrogates_do_not_keep_a_page_from_being_written() -> None:
    pages.as_json(HOSTILE).encode()


def test_a_page_asks_for_nothing_from_outside() -> None:
    text = pages.document("page", Markup(""))
    for _, attributes in ParsedPage(text).tags:
        assert not {"src", "href", "action", "srcset", "style"} & set(attributes)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", text)
    assert "default-src 'none'" in text
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text)


def test_what_fits_is_the_start_of_what_was_given(monkeypatch: Any) -> None:
    items = [{"text": "x" * 100}] * 50
    assert pages.fitting(items) == items
    assert len(pages.fitting(items, 1200)) == 10
    monkeypatch.setattr(frame, "LARGEST", 600)
    assert len(pages.fitting(iter(items))) == 5
    assert pages.fitting([{"text": "ü" * 100}], 150) == []  # bytes, not characters


def test_children_are_escaped_unless_they_are_markup() -> None:
    assert element("p", "a < b", Markup("<br>"), None, 3) == "<p>a &lt; b<br>3</p>"
    assert element("input", type="checkbox", checked=True, disabled=False, data_toggles=None) == (
        '<input type="checkbox" checked>'
    )
    assert pages.data_text("<i>") == '<bdi dir="auto">&lt;i&gt;</bdi>'


def test_tables_name_their_rows() -> None:
    made = pages.table(["", "loss"], [["first < last", "0.5"]], sortable=True)
    assert '<th scope="row">first &lt; last</th><td>0.5</td>' in made
    assert 'class="sortable"' in made
