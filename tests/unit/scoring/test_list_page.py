"""The page of `score --rank`: completions in the order of their rewards, the data's own order beside them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.support.list_page import SPECIAL, made_list_page, rows_of, scored_lists
from tests.support.parsed_page import ParsedPage
from tests.support.scored_page import NASTY, RIGHT_TO_LEFT
from trl_dpo_ext.data.lists.agreement import Agreement
from trl_dpo_ext.scoring.ranking.groups import ranking_summary


@pytest.fixture(scope="module")
def text() -> str:
    return made_list_page(40)


def test_a_page_asks_for_nothing_from_outside_and_texts_stay_in_their_place(text: str) -> None:
    elements = ParsedPage(text)
    for _, attributes in elements.tags:
        assert not {"src", "href", "action", "srcset", "onclick", "onerror"} & set(attributes)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "innerHTML" not in text
    assert [tag for tag, _ in elements.tags].count("script") == 2
    (row,) = (row for row in elements.data["rows"] if row["row"] == SPECIAL)
    assert {NASTY, RIGHT_TO_LEFT} <= {each["text"] for each in row["completions"]}


def test_prompts_come_with_the_worst_agreement_first_and_completions_with_the_best_reward_first(text: str) -> None:
    found, _ = scored_lists(rows_of(40))
    rows = ParsedPage(text).data["rows"]
    taus = [row["tau"] for row in rows]
    known = [tau for tau in taus if tau is not None]
    assert known == sorted(known)
    assert taus[len(known) :] == [None] * (40 - len(known))
    values = list(found)
    for row in rows:
        rewards, scores = values[row["row"]]
        shown = [each["reward"] for each in row["completions"]]
        finite = sorted(rewards[np.isfinite(rewards)].tolist(), reverse=True)
        assert shown == finite + [None] * int(np.isnan(rewards).sum())
        agreement = Agreement.of(rewards, scores)
        assert row["place"] == (agreement.place if agreement else None)
        if agreement is None:
            assert row["label"] == "nothing to compare"
            continue
        best = [place for place, each in enumerate(row["completions"], 1) if each["best"]]
        assert min(best) == agreement.place or None in shown
        assert ("has the highest" in row["label"]) == (agreement.credit == 1)


def test_scores_and_ranks_are_shown_as_they_are_given(text: str) -> None:
    rows = {row["row"]: row for row in ParsedPage(text).data["rows"]}
    by_text = {each["text"]: each for each in rows[1]["completions"]}
    assert [by_text[f"answer {at} of 1"]["given"] for at in range(3)] == ["rank 3", "rank 2", "rank 1"]
    assert [by_text[f"answer {at} of 1"]["given_place"] for at in range(3)] == [3, 2, 1]
    assert {each["given"] for each in rows[0]["completions"]} == {"score 0", "score 3"}
    assert {each["given"] for each in rows[2]["completions"]} == {None}
    assert sorted(each["where"] for each in rows[0]["completions"]) == ["completion 0", "completion 1"]


def test_the_statistics_are_those_of_the_json_object(text: str) -> None:
    found = ranking_summary(scored_lists(rows_of(40))[0])
    words = " ".join(" ".join(ParsedPage(text).texts).split())
    assert f"{100 * found['top1']['accuracy']:.1f} %" in words
    assert f"{found['tau_b']['mean']:.3f}" in words
    assert sum(found["place_of_best"]) == found["compared"]
    assert f"Place of the best completion by reward: {found['compared']} prompts" in text
    for part in ("Weights of 4 bits.", "completions", "Without JavaScript, this page shows the first prompts."):
        assert part in words


def test_a_long_set_is_sampled_and_a_long_text_is_shortened() -> None:
    shown = ParsedPage(made_list_page(60, most=20)).data
    assert (len(shown["rows"]), shown["total"]) == (20, 60)
    found, _ = scored_lists(rows_of(60))
    taus = sorted(each.pairs.tau_b for each in (Agreement.of(*values) for values in found) if each is not None)
    assert [row["tau"] for row in shown["rows"][:10]] == pytest.approx(taus[:10], abs=1e-6)
    rows = [{"prompt": "p" * 9000, "completions": ["a" * 5000, "b"], "scores": [1.0, 2.0]}]
    (row,) = ParsedPage(made_list_page(1, rows=rows)).data["rows"]
    assert "5000 characters are not in this page" in row["prompt"]
    assert "1000 characters are not in this page" in "".join(each["text"] for each in row["completions"])


def test_completions_in_several_rows_are_named_by_their_row() -> None:
    rows = [
        {"prompt": p, "completion": c, "score": s} for p, c, s in (("a", "x", 1.0), ("b", "y", 0.0), ("a", "z", 2.0))
    ]
    shown = {row["row"]: row for row in ParsedPage(made_list_page(3, rows=rows)).data["rows"]}
    assert {each["where"] for each in shown[0]["completions"]} == {"row 0", "row 2"}
    assert [each["where"] for each in shown[1]["completions"]] == ["row 1"]


def test_a_prompt_with_one_completion_has_nothing_to_compare() -> None:
    rows = [{"prompt": "a", "completions": ["x"], "scores": [1.0]}]
    (row,) = ParsedPage(made_list_page(1, rows=rows)).data["rows"]
    assert (row["tau"], row["label"]) == (None, "nothing to compare")
