"""Lists of answers: what they hold, what they are made of, and sums over the answers to each prompt."""

from __future__ import annotations

import math

import pytest
import torch

from tests.support.batches import SMOOTH, make_pairs
from tests.support.list_batches import SMOOTH_PROMPTS, make_lists
from trl_dpo_ext import Lists, Need, Pairs, get_loss, list_losses
from trl_dpo_ext.core.lists import interleave, take_answers
from trl_dpo_ext.core.segments import (
    segment_log_softmax,
    segment_logsumexp,
    segment_max,
    segment_mean,
    segment_place,
    segment_sum,
    within_segments,
)

SEGMENT = torch.tensor([0, 0, 1, 2, 2, 2])
VALUES = torch.tensor([1.0, -2.0, 5.0, 0.5, 0.5, -3.0], dtype=torch.float64)
PARTS = [VALUES[:2], VALUES[2:3], VALUES[3:]]


def test_reductions_are_those_of_each_segment() -> None:
    for ours, each in (
        (segment_sum, torch.sum),
        (segment_mean, torch.mean),
        (segment_max, torch.max),
        (segment_logsumexp, lambda part: part.logsumexp(0)),
    ):
        torch.testing.assert_close(ours(VALUES, SEGMENT, 3), torch.stack([each(part) for part in PARTS]))
    expected = torch.cat([part.log_softmax(0) for part in PARTS])
    torch.testing.assert_close(segment_log_softmax(VALUES, SEGMENT, 3), expected)


def test_a_log_sum_exp_neither_overflows_nor_underflows() -> None:
    values = torch.tensor([800.0, -800.0, -900.0, -901.0], requires_grad=True)
    found = segment_logsumexp(values, torch.tensor([0, 0, 1, 1]), 2)
    assert found.tolist() == pytest.approx([800.0, -900 + math.log1p(math.exp(-1))])
    (gradient,) = torch.autograd.grad(found.sum(), values)
    assert gradient.tolist() == pytest.approx([1.0, 0.0, 0.7310586, 0.2689414])


def test_the_gradient_of_a_log_sum_exp_is_the_softmax() -> None:
    values = VALUES.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: segment_logsumexp(v, SEGMENT, 3), (values,))


def test_an_empty_segment_has_the_sum_and_the_mean_zero() -> None:
    assert segment_sum(VALUES[:2], torch.tensor([0, 2]), 4).tolist() == [1, 0, -2, 0]
    assert segment_mean(VALUES[:2], torch.tensor([2, 2]), 4).tolist() == [0, 0, -0.5, 0]


def test_places_start_over_with_each_segment() -> None:
    assert segment_place(SEGMENT).tolist() == [0, 1, 0, 0, 1, 2]
    assert segment_place(SEGMENT[:0]).tolist() == []


def test_pairs_within_segments_are_all_of_them() -> None:
    found = set(zip(*(index.tolist() for index in within_segments(SEGMENT, 3)), strict=True))
    assert found == {(i, j) for i in range(6) for j in range(6) if SEGMENT[i] == SEGMENT[j]}


def test_lists_know_their_sizes_their_best_answers_and_their_ties() -> None:
    lists = make_lists([*SMOOTH_PROMPTS[:3], {"pi": [-1.0] * 2, "ref": [-1.0] * 2, "n": [1, 1], "u": [3.0, 3.0]}])
    assert lists.prompts == 4
    assert lists.sizes.tolist() == [2, 3, 4, 2]
    assert lists.best.tolist() == [True, False, True, True, False, False, True, False, False, True, True]
    assert lists.tied.tolist() == [False, False, False, True]
    assert lists.zero_if_tied(torch.ones(4)).tolist() == [1, 1, 1, 0]
    assert make_lists([]).prompts == 0


def test_lists_from_log_probs_have_a_checked_shape() -> None:
    with pytest.raises(ValueError, match=r"shape \(answers,\) = \(2,\); got scores \(3,\), lengths \(1,\)\."):
        Lists.from_logps(logps=[-1.0, -2.0], prompt=[0, 0], scores=[1.0, 2.0, 3.0], lengths=[4])
    with pytest.raises(ValueError, match=r"shape \(prompts,\) = \(1,\); got weight \(2,\)\."):
        Lists.from_logps(logps=[-1.0, -2.0], prompt=[0, 0], scores=[1.0, 2.0], columns={"weight": [1.0, 2.0]})


@pytest.mark.parametrize("prompt", [[1, 1], [0, 2], [0, -1], [1, 0]])
def test_prompts_ascend_from_zero(prompt: list[int]) -> None:
    with pytest.raises(ValueError, match="prompt must ascend from 0"):
        Lists.from_logps(logps=[-1.0, -2.0], prompt=prompt, scores=[1.0, 2.0])


def test_integers_are_taken_for_scores() -> None:
    lists = Lists.from_logps(logps=[-1.0, -2.0], ref_logps=[-2.0, -1.0], prompt=[0, 0], scores=[2, 1])
    assert get_loss("pl")(lists, beta=0.1).item() == pytest.approx(math.log1p(math.exp(-0.2)))


def test_pairs_are_lists_of_two() -> None:
    pairs = make_pairs(SMOOTH, training=False, rank=3)
    lists = Lists.of_pairs(pairs)
    assert (lists.prompts, lists.training, lists.rank, lists.gather) == (5, False, 3, pairs.gather)
    assert lists.scores.tolist() == [1, 0] * 5
    assert Lists.of_pairs(pairs, scored=True).scores.tolist() == [8, 6, 7, 6.5, 6.5, 5, 9, 3, 3, 1]
    for place, side in enumerate((pairs.chosen, pairs.rejected)):
        of_lists = take_answers(lists.answers, torch.arange(5) * 2 + place)
        for name in ("logps", "ref_logps", "score", "lengths", "ref_entropy"):
            assert torch.equal(getattr(of_lists, name), getattr(side, name))
        width = side.mask.shape[1]
        for name in ("token_logps", "mask", "ref_token_logps", "token_kl"):
            padded = getattr(of_lists, name)
            assert torch.equal(padded[:, :width], getattr(side, name))
            assert not padded[:, width:].any()


def test_rows_of_two_widths_are_filled_up() -> None:
    assert interleave(torch.ones(2, 1), 2 * torch.ones(2, 2)).tolist() == [[1, 0], [2, 2], [1, 0], [2, 2]]


def test_what_lists_lack_is_named() -> None:
    bare = Lists.from_logps(logps=[-1.0, -2.0], prompt=[0, 0], scores=[1.0, 0.0])
    with pytest.raises(ValueError, match=r"^loss_type 'pl' needs reference log-probs: pass ref_logps=\.$"):
        get_loss("pl")(bare, beta=0.1)
    with pytest.raises(ValueError, match=r"^loss_type 'rrhf' needs completion lengths: pass lengths=\.$"):
        get_loss("rrhf")(bare)
    assert bare.available & (Need.REFERENCE | Need.LENGTHS) == Need.NONE


def test_a_loss_of_pairs_refuses_lists_and_says_how_to_make_pairs() -> None:
    with pytest.raises(ValueError, match=r"^loss_type 'sigmoid' reads pairs: make them of the lists with pairs_of"):
        get_loss("sigmoid")(make_lists(SMOOTH_PROMPTS), beta=0.1)


@pytest.mark.parametrize(
    "variant", [v for v in list_losses(reads="lists") if v.order == "scores"], ids=lambda v: v.name
)
def test_a_loss_of_scores_names_the_columns_that_pairs_lack(variant) -> None:
    pairs = Pairs.from_logps(chosen=[-1.0], rejected=[-2.0], ref_chosen=[-1.0], ref_rejected=[-2.0])
    with pytest.raises(ValueError, match=r"'score_chosen': pass .*'score_rejected'"):
        variant(pairs, beta=0.1)
