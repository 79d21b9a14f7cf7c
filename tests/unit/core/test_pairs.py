"""The one object that every loss reads."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from trl_dpo_ext import Need, Pairs, Side, implicit_reward

FULL = {
    "chosen": [-12.0, -20.0],
    "rejected": [-15.0, -18.0],
    "ref_chosen": [-13.0, -19.5],
    "ref_rejected": [-14.0, -19.0],
    "chosen_lengths": [6, 10],
    "rejected_lengths": [8, 5],
}


def test_log_ratios_averages_and_margin_follow_from_the_log_probs():
    pairs = Pairs.from_logps(**FULL)
    assert pairs.chosen.logratio.tolist() == [1.0, -0.5]
    assert pairs.rejected.logratio.tolist() == [-1.0, 1.0]
    assert pairs.margin.tolist() == [2.0, -1.5]
    assert pairs.chosen.avg_logps.tolist() == [-2.0, -2.0]
    assert pairs.rejected.avg_score.tolist() == [-0.125, pytest.approx(0.2)]


def test_a_score_that_is_given_takes_the_log_ratios_place_in_the_margin():
    logps, ref_logps = torch.tensor([-3.0]), torch.tensor([-4.0])
    scored = Side(logps, ref_logps, score=torch.tensor([0.25]), lengths=torch.tensor([2]))
    pairs = Pairs(scored, Side(logps, ref_logps))
    assert pairs.margin.tolist() == [-0.75]
    assert scored.logratio.tolist() == [1.0]
    assert scored.avg_score.tolist() == [0.125]


def test_an_empty_completion_counts_as_one_token():
    side = Side(torch.tensor([0.0, -4.0]), torch.tensor([0.0, -6.0]), lengths=torch.tensor([0, 2]))
    assert side.avg_logps.tolist() == [0.0, -2.0]
    assert side.avg_score.tolist() == [0.0, 1.0]


def test_a_log_ratio_without_a_reference_names_what_is_missing():
    pairs = Pairs.from_logps(chosen=[-1.0], rejected=[-2.0])
    with pytest.raises(ValueError, match="reference log-probs: pass ref_chosen= and ref_rejected="):
        _ = pairs.chosen.logratio


def test_what_is_available_is_what_both_sides_have():
    everything = Pairs.from_logps(**FULL)
    assert everything.available == Need.REFERENCE | Need.LENGTHS | Need.BATCH | Need.STATE
    one_side = Pairs(everything.chosen, Side(everything.rejected.logps))
    assert one_side.available == Need.BATCH | Need.STATE
    assert Pairs.from_logps(chosen=[-1.0], rejected=[-2.0]).available == Need.BATCH | Need.STATE


def test_everything_that_is_missing_is_named_at_once():
    lines = Pairs.from_logps(chosen=[-1.0], rejected=[-2.0]).missing(
        Need.REFERENCE | Need.LENGTHS | Need.TOKENS | Need.TOKEN_REFERENCE | Need.BATCH, ["score_chosen"]
    )
    assert len(lines) == 5
    for line, words in zip(
        lines,
        (
            "reference log-probs: ",
            "completion lengths: ",
            "log-probs per token: ",
            "reference log-probs per token: ",
            "column 'score_chosen': ",
        ),
        strict=True,
    ):
        assert line.startswith(words)


def test_nothing_is_missing_where_nothing_is_asked_for():
    assert Pairs.from_logps(**FULL).missing(Need.REFERENCE | Need.LENGTHS | Need.BATCH) == []


@pytest.mark.parametrize(
    ("name", "value"), [("rejected", [-1.0]), ("ref_chosen", [[-1.0, -2.0]]), ("chosen_lengths", [1, 2, 3])]
)
def test_shapes_that_differ_are_refused_and_named(name, value):
    with pytest.raises(ValueError, match=rf"shape \(pairs,\) = \(2,\); got {name} \("):
        Pairs.from_logps(**{**FULL, name: value})


def test_a_column_of_another_shape_is_refused_and_named():
    with pytest.raises(ValueError, match=r"got margin \(3,\)"):
        Pairs.from_logps(**FULL, columns={"margin": [1.0, 2.0, 3.0]})


def test_a_column_does_not_stand_in_for_a_log_prob():
    chosen = torch.tensor([-12.0, -20.0])
    pairs = Pairs.from_logps(**{**FULL, "chosen": chosen}, columns={"chosen": [5.0, 6.0]})
    assert torch.equal(pairs.chosen.logps, chosen)
    assert pairs.columns["chosen"].tolist() == [5.0, 6.0]


def test_tensors_are_taken_as_they_are_with_dtype_and_gradient():
    chosen = torch.tensor([-12.0, -20.0], dtype=torch.float64, requires_grad=True)
    pairs = Pairs.from_logps(chosen=chosen, rejected=torch.tensor([-15.0, -18.0], dtype=torch.float64))
    assert pairs.chosen.logps is chosen


def test_pairs_and_sides_cannot_be_changed():
    pairs = Pairs.from_logps(**FULL)
    with pytest.raises(dataclasses.FrozenInstanceError):
        pairs.chosen = pairs.rejected
    with pytest.raises(dataclasses.FrozenInstanceError):
        pairs.chosen.logps = pairs.rejected.logps


def test_alone_a_gathered_statistic_is_the_statistic_without_its_gradient():
    logps = torch.tensor([-1.0, -2.0], requires_grad=True)
    gathered = Pairs.from_logps(chosen=logps, rejected=[-1.0, -2.0]).gather(logps)
    assert gathered.tolist() == [-1.0, -2.0]
    assert not gathered.requires_grad


def test_the_implicit_reward_is_beta_times_the_log_ratio():
    reward = implicit_reward(torch.tensor([-50.0, -45.0]), torch.tensor([-51.0, -46.5]), beta=0.5)
    assert reward.tolist() == [0.5, 0.75]
