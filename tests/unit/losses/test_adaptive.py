"""The parts of beta-DPO and alpha-DPO that no golden case reaches: the draw of pairs, floors, and small batches."""

from __future__ import annotations

import pytest
import torch

from trl_dpo_ext import Pairs, get_loss

FLOOR_OF_BETA = 1e-3


def pairs_with_margins(margins):
    """Pairs of one token per side whose margins are given."""
    margins = torch.tensor(margins, dtype=torch.float64)
    zeros, ones = torch.zeros_like(margins), torch.ones_like(margins, dtype=torch.long)
    return Pairs.from_logps(
        chosen=margins - 50,
        rejected=zeros - 50,
        ref_chosen=zeros - 50,
        ref_rejected=zeros - 50,
        chosen_lengths=ones,
        rejected_lengths=ones,
    )


def test_beta_dpo_draws_a_pair_as_often_as_its_distance_from_the_mean_says():
    # Six pairs, one of which is kept: the last is 2.04 standard deviations from the mean, the others 0.41.
    pairs, loss = pairs_with_margins([1.0] * 5 + [4.0]), get_loss("beta_dpo").make()
    kept = torch.stack([loss(pairs, beta=0.1, beta_dpo_rho=5 / 6) != 0 for _ in range(600)])
    assert (kept.sum(dim=1) == 1).all()
    z = (pairs.margin - pairs.margin.mean()) / pairs.margin.std()
    expected = 600 * torch.softmax(-0.5 * z**2, dim=0)
    spread = torch.sqrt(expected * (1 - expected / 600))
    assert ((kept.sum(dim=0) - expected).abs() < 3.5 * spread).all()
    assert kept[:, 5].sum() >= 5


def test_beta_dpo_never_trains_with_a_negative_beta():
    loss = get_loss("beta_dpo").make()
    loss(pairs_with_margins([40.0, 60.0, 50.0]), beta=0.1, beta_dpo_alpha=0.6, beta_dpo_rho=0.0)
    pairs = pairs_with_margins([-100.0, -90.0, -80.0])
    values = loss(pairs, beta=0.1, beta_dpo_alpha=0.6, beta_dpo_rho=0.0)
    expected = -torch.nn.functional.logsigmoid(FLOOR_OF_BETA * pairs.margin)
    torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-12)


def test_beta_dpo_leaves_the_authors_share_of_pairs_out_unless_told_otherwise():
    values = get_loss("beta_dpo")(pairs_with_margins([1.0, 2.0, 3.0, 4.0, 5.0]), beta=0.1)
    assert (values == 0).sum() == 1


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0])
def test_alpha_dpo_measures_distances_in_standard_deviations_however_small(scale):
    pairs = pairs_with_margins([0.0, scale, 2 * scale])
    values = get_loss("alpha_dpo")(pairs, alpha_dpo_beta=1.0, alpha_dpo_gamma_ratio=0.0, alpha_dpo_alpha=1.0)
    margins = -torch.log(torch.expm1(values))
    z = pairs.chosen.avg_logps - pairs.rejected.avg_logps - margins
    assert z.tolist() == pytest.approx([-1.0, 0.0, 1.0], abs=1e-7)


@pytest.mark.parametrize(("name", "hyper"), [("alpha_dpo", {}), ("beta_dpo", {"beta": 0.1, "beta_dpo_rho": 0.0})])
def test_a_batch_of_two_pairs_has_a_spread(name, hyper):
    loss = get_loss(name).make()
    untouched = loss.state_dict()
    loss(pairs_with_margins([1.0, 3.0]), **hyper)
    assert loss.state_dict() != untouched
