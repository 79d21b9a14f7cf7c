"""The page of `score` as a file: numbers of the JSON object, rows that cannot leave their place, nothing from outside."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from tests.support import tiny
from tests.support.parsed_page import ParsedPage
from tests.support.scored import random_scored, scored
from tests.support.scored_page import EMOJI, NASTY, RIGHT_TO_LEFT, SPECIAL_ROW, made_page, scores_of
from trl_dpo_ext import pages
from trl_dpo_ext.inspection.token_kinds import TokenKinds
from trl_dpo_ext.pages import frame
from trl_dpo_ext.scoring.measures import measure
from trl_dpo_ext.scoring.page import page, row_texts, sample
from trl_dpo_ext.scoring.page.rows import RowTexts
from trl_dpo_ext.scoring.summary import SummaryOptions, summarize


@pytest.fixture(scope="module")
def text() -> str:
    return made_page(60)


def test_a_page_asks_for_nothing_from_outside_and_rows_stay_in_their_place(text: str) -> None:
    elements = ParsedPage(text)
    for _, attributes in elements.tags:
        assert not {"src", "href", "action", "srcset", "onclick", "onerror"} & set(attributes)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "default-src 'none'" in text
    assert "innerHTML" not in text
    assert [tag for tag, _ in elements.tags].count("script") == 2
    (row,) = (row for row in ParsedPage(text).data["rows"] if row["row"] == SPECIAL_ROW)
    assert NASTY in "".join(row["chosen"])
    assert RIGHT_TO_LEFT in "".join(row["rejected"])
    assert EMOJI in "".join(row["rejected"])


def test_a_page_shows_the_numbers_of_the_json_object_without_its_script(text: str) -> None:
    data = summarize(scores_of(60))
    words = " ".join(" ".join(ParsedPage(text).texts).split())
    for part in (
        f"{100 * data['accuracy']['accuracy']:.1f} %",
        f"{data['margin']['mean']:+.3f} +- {data['margin']['std']:.3f}",
        f"ECE {data['calibration']['ece']:.3f}",
        "not AlpacaEval's length-controlled win rate",
        "score_chosen − score_rejected and margin: Pearson",
        "By subset",
        f"even {NASTY}",
        "Weights of 4 bits.",
        f"out {NASTY}",
        "Margins",
        "Reliability",
        "Margin and score difference",
        "Margin and length difference",
    ):
        assert part in words
    plain = text[text.index("<noscript>") : text.index("</noscript>")]
    assert plain.count("<h3>row ") == pages.WITHOUT_SCRIPT
    assert "error" not in words.replace("Expected calibration error", "").lower()


def test_rows_come_worst_first_with_what_was_found(text: str) -> None:
    rows, scores = ParsedPage(text).data["rows"], scores_of(60)
    measures = measure(scores)
    margins = [row["margin"] for row in rows]
    assert margins[:-1] == sorted(margins[:-1])
    assert (rows[-1]["row"], rows[-1]["status"], margins[-1]) == (3, "dropped", None)
    assert rows[-1]["rejected"] == ["assistant:", " no"]
    assert rows[-1]["ratios"] == {}
    for row in rows[:-1]:
        at = row["row"]
        assert row["margin"] == pytest.approx(measures.margin[at], abs=1e-6)
        assert row["rewards"] == pytest.approx([measures.reward_chosen[at], measures.reward_rejected[at]], abs=1e-6)
        assert row["tokens"] == [scores.chosen.tokens[at], scores.rejected.tokens[at]]
        assert row["gap"] == at % 10 - 3
        assert row["subset"] == (f"even {NASTY}" if at % 2 == 0 else "odd")
        assert [len(row["ratios"][side]) for side in ("chosen", "rejected")] == [
            len(row["chosen"]),
            len(row["rejected"]),
        ]


def test_the_worst_rows_and_an_even_sample_are_taken() -> None:
    scores = random_scored(200)
    measures = measure(scores)
    places = sample(scores, measures, 50)
    assert len(places) == 50
    assert places == sorted(set(places))
    order = [at for at in np.argsort(measures.margin, kind="stable") if at != 3]
    assert set(order[:25]) <= set(places)
    assert max(places) > 150
    assert sample(scores, measures, 500) == [*range(200)]
    assert sample(scored([], []), measure(scored([], [])), 500) == []


def test_a_character_of_several_tokens_is_one_text_with_the_sum_of_its_ratios() -> None:
    class Halves(TokenKinds):
        def texts(self, ids: Any, before: Any = ()) -> list[str | None]:
            return ["a", "é", None, None, "b"][: len(ids)]

    made = row_texts(Halves(tiny.tokenizer()), [1], [[1, 2, 3, 4, 5], [1]], [[0.5, 1.0, 2.0, 4.0, -1.0], [0.25]])
    assert (made.chosen, made.chosen_ratios) == (["a", "é", "b"], [0.5, 7.0, -1.0])
    assert (made.rejected, made.rejected_ratios) == (["a"], [0.25])
    assert row_texts(Halves(tiny.tokenizer()), [1], [[1, 2], [1]]).chosen_ratios == []


def test_long_texts_lose_their_middle_and_their_ratios_with_it() -> None:
    scores = scored([1.0], [0.0])
    words = [f"word{at} " for at in range(3000)]
    texts = RowTexts(words, words, ["no"], [at / 1000 for at in range(3000)], [0.0])
    (row,) = ParsedPage(page(summarize(scores), scores, {0: texts})).data["rows"]
    head, gap = row["omitted"]["chosen"]
    assert len(row["chosen"]) == len(row["ratios"]["chosen"]) == 3000 - gap
    assert row["chosen"][head] == words[head + gap]
    assert row["ratios"]["chosen"][head] == pytest.approx((head + gap) / 1000)
    assert "prompt" in row["omitted"]
    assert "rejected" not in row["omitted"]


def test_a_page_is_never_larger_than_its_limit_and_says_what_it_holds(monkeypatch: Any) -> None:
    monkeypatch.setattr(frame, "LARGEST", 6000)
    small = ParsedPage(made_page(60)).data
    assert 0 < len(small["rows"]) < 30
    assert small["total"] == 60


def test_colors_have_their_names_where_the_chosen_side_is_always_the_shorter() -> None:
    scores = scored([3.0] * 20, [0.0] * 20, [[2] * 20, [9] * 20])
    words = ParsedPage(page(summarize(scores), scores, {})).texts
    for name in ("chosen is longer", "chosen is shorter"):
        assert name in [word.strip() for word in words]
    assert "equally long" not in words


@pytest.mark.parametrize("number", [0, 1])
def test_hardly_any_rows_make_a_page(number: int) -> None:
    scores = scored([1.0] * number, [0.0] * number)
    texts = {at: RowTexts(["say"], ["yes"], ["no"]) for at in range(number)}
    made = page(summarize(scores, SummaryOptions(reference_free="mean")), scores, texts)
    assert ("no pair was scored" in made) == (number == 0)
    assert ("<svg" in made) == (number > 0)
    assert ParsedPage(made).data["free"] == "mean"
