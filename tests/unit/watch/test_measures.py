"""Measures of sampled answers, on token ids."""

from __future__ import annotations

import pytest

from trl_dpo_ext.watch.measures import Answer, summarize


def test_an_answer_ends_with_its_first_eos_and_counts_the_tokens_before() -> None:
    answer = Answer.of([5, 6, 2, 0, 0], [2, 3])
    assert (answer.ids, answer.ended, answer.length) == ((5, 6, 2), True, 2)
    cut = Answer.of([5, 6, 7], [2, 3])
    assert (cut.ids, cut.ended, cut.length) == ((5, 6, 7), False, 3)
    empty = Answer.of([3, 0], [2, 3])
    assert (empty.ids, empty.length, empty.repetition) == ((3,), 0, 0.0)


@pytest.mark.parametrize(
    ("tokens", "repetition"),
    [((1, 2, 3), 0.0), ((1, 2, 3, 4), 0.0), ((1, 1, 1, 1, 1), 0.5), ((1, 2, 1, 2, 1, 2, 1, 2), 1 - 2 / 5)],
)
def test_repetition_is_the_share_of_sequences_of_four_that_came_before(tokens, repetition: float) -> None:
    assert Answer(tokens, ended=False).repetition == pytest.approx(repetition)
    assert Answer((*tokens, 9), ended=True).repetition == pytest.approx(repetition)


def test_measures_are_means_over_answers_and_pairs_of_tokens_are_counted_over_all() -> None:
    answers = [Answer((1, 2, 3, 2), True), Answer((1, 2, 1, 2), False)]
    found = summarize(answers)
    assert found["length"] == 3.5
    assert found["eos_rate"] == 0.5
    assert found["distinct_2"] == pytest.approx(3 / 5)  # 12 23 | 12 21 12
