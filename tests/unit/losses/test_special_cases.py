"""What a loss becomes at a special value of a hyperparameter or on special pairs, and in the limit."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import logsigmoid, softplus

from tests.support.altered_pairs import (
    BATCHES,
    alone,
    chosen_above_reference,
    column,
    loss,
    of_equal_lengths,
    of_one_token,
    on,
    opposite_rewards,
    score_gap,
    value_and_gradients,
    with_sides,
)
from tests.support.batches import PUBLISHED

B = 0.1
DPO = loss("sigmoid", beta=B)

rejected_above_reference = with_sides(
    lambda pairs, side: {"ref_logps": side.logps.detach() - 0.5} if side is pairs.rejected else {}
)
rejected_below_reference = with_sides(
    lambda pairs, side: {"ref_logps": side.logps.detach() + 0.5} if side is pairs.rejected else {}
)
chosen_below_reference = with_sides(
    lambda pairs, side: {"ref_logps": side.logps.detach() + 0.75} if side is pairs.chosen else {}
)
both_below_reference = with_sides(lambda pairs, side: {"ref_logps": side.logps.detach() + 0.5})
all_the_same = with_sides(
    lambda pairs, side: {
        "logps": side.logps[0].expand_as(side.logps),
        "ref_logps": side.ref_logps[0].expand_as(side.logps),
        "lengths": side.lengths[0].expand_as(side.lengths),
    }
)

of_tokens_alike = with_sides(
    lambda pairs, side: {"token_logps": (side.logps / side.mask.sum(dim=1)).unsqueeze(1) * side.mask}
)

SAME = {
    # special cases that are DPO
    "DPOP without penalty is DPO": (loss("dpop", beta=B, dpop_lambda=0.0), DPO),
    "DPOP above the reference is DPO": (
        on(chosen_above_reference, loss("dpop", beta=B, dpop_lambda=50.0)),
        on(chosen_above_reference, DPO),
    ),
    "R-DPO without regularizer is DPO": (loss("rdpo", beta=B, rdpo_alpha=0.0), DPO),
    "R-DPO at equal lengths is DPO": (on(of_equal_lengths, loss("rdpo", beta=B, rdpo_alpha=0.5)), DPO),
    "a margin of nothing is DPO": (loss("margin", beta=B, margin_scale=0.0), DPO),
    "an offset of nothing is DPO": (loss("odpo", beta=B, odpo_alpha=0.0), DPO),
    "a score gap of 1 has the logarithm 0": (on(score_gap(1.0), loss("odpo", beta=B)), DPO),
    "Uni-DPO without weights is length-normalized DPO": (
        on(score_gap(0.0), loss("uni_dpo", uni_dpo_gamma=0.0, uni_dpo_lambda=0.0)),
        lambda p: 0.5 * loss("sigmoid_norm", beta=2.0)(p),
    ),
    "Uni-DPO above the reference has no likelihood term": (
        on(chosen_above_reference, loss("uni_dpo", uni_dpo_lambda=5.0)),
        on(chosen_above_reference, loss("uni_dpo", uni_dpo_lambda=0.0)),
    ),
    "AMaPO of equal pairs is SimPO without a margin": (
        on(all_the_same, loss("amapo")),
        on(all_the_same, loss("simpo", simpo_gamma=0.0)),
    ),
    "AMaPO of one pair is SimPO without a margin": (
        on(alone, loss("amapo", amapo_label_smoothing=0.1)),
        on(alone, loss("simpo", simpo_gamma=0.0, simpo_label_smoothing=0.1)),
    ),
    "ConfPO of tokens alike is nothing": (
        on(of_tokens_alike, loss("confpo")),
        on(of_tokens_alike, lambda p: 0.0 * DPO(p)),
    ),
    "SymPO within its clip has no clip": (
        loss("sympo", beta=1e-3, sympo_clip=10.0),
        loss("sympo", beta=1e-3, sympo_clip=0.0),
    ),
    "the centered loss without beta is linear": (loss("centered", beta=0.0), lambda p: -0.5 * p.margin),
    "cdpo with sure labels is DPO": (loss("cdpo", beta=B, label_smoothing=0.0), DPO),
    "robust with sure labels is DPO": (loss("robust", beta=B, label_smoothing=0.0), DPO),
    "AOT of one pair is DPO": (on(alone, loss("aot", beta=B, label_smoothing=0.0)), on(alone, DPO)),
    "unpaired AOT of one pair is DPO": (on(alone, loss("aot_unpaired", beta=B, label_smoothing=0.0)), on(alone, DPO)),
    "DPO with a likelihood of weight 0 is DPO": (loss("dpo_nll", beta=B, dpo_nll_weight=0.0), DPO),
    "DPO-Shift at full weight is DPO": (loss("dpo_shift", beta=B, dpo_shift_lambda=1.0), DPO),
    "MaPPO with a certain loser is DPO": (on(column("delta_r", 1.0), loss("mappo", beta=B)), DPO),
    "MinorDPO above the reference is DPO": (
        on(rejected_above_reference, loss("minor_dpo", beta=B)),
        on(rejected_above_reference, DPO),
    ),
    "MinorDPO below the reference looks at the chosen side alone": (
        on(rejected_below_reference, loss("minor_dpo", beta=B)),
        lambda p: -logsigmoid(B * p.chosen.logratio),
    ),
    "Bounded DPO without a mixture is DPO": (loss("bdpo", beta=B, bdpo_lambda=1.0), DPO),
    "H-DPO without a say over entropy is DPO": (loss("hdpo", beta=B, hdpo_alpha=1.0), DPO),
    "FocalPO without focus is DPO": (loss("focalpo", beta=B, focalpo_gamma=0.0), DPO),
    "beta-DPO with a fixed beta and every pair is DPO": (
        loss("beta_dpo", beta=B, beta_dpo_alpha=0.0, beta_dpo_rho=0.0),
        DPO,
    ),
    "Dr. DPO of one pair is DPO": (on(alone, loss("dr_dpo", beta=B, dr_dpo_beta=1.0)), on(alone, DPO)),
    "KLDPO of one pair is DPO": (on(alone, loss("kldpo", beta=B, kldpo_tau=0.05)), on(alone, DPO)),
    "KLDPO of equal pairs is DPO": (on(all_the_same, loss("kldpo", beta=B)), on(all_the_same, DPO)),
    "Dr. DPO of equal pairs is DPO": (on(all_the_same, loss("dr_dpo", beta=B)), on(all_the_same, DPO)),
    # special cases that are other losses
    "BCO with rewards around zero has no shift": (
        on(opposite_rewards, loss("bco_pair_delta", beta=B)),
        on(opposite_rewards, loss("bco_pair", beta=B)),
    ),
    "IPO of single tokens is IPO of sums": (on(of_one_token, loss("ipo", beta=B)), loss("ipo_sum", beta=B)),
    "normalized DPO of single tokens is DPO": (on(of_one_token, loss("sigmoid_norm", beta=B)), DPO),
    "SimPO of single tokens without margin is CPO's contrast": (
        on(of_one_token, loss("simpo", simpo_beta=2.0, simpo_gamma=0.0)),
        loss("cpo", beta=2.0, cpo_alpha=0.0),
    ),
    "AlphaPO at alpha 0 is SimPO": (
        loss("alphapo", alphapo_beta=2.5, alphapo_alpha=0.0, alphapo_gamma=0.1),
        loss("simpo", simpo_beta=2.5, simpo_gamma=0.1),
    ),
    "AlphaPO at alpha -1 is the logistic of SimPER's margin": (
        loss("alphapo", alphapo_beta=2.5, alphapo_alpha=-1.0, alphapo_gamma=0.1),
        lambda p: -torch.nn.functional.logsigmoid(-2.5 * loss("simper")(p) - 0.1),
    ),
    "bounded DPO at one half measures the rejected side with a softplus": (
        loss("bdpo", beta=B, bdpo_lambda=0.5),
        lambda p: -logsigmoid(B * (p.chosen.logratio - softplus(p.rejected.logratio) + math.log(2))),
    ),
    "KTO on pairs with both sides below the reference is half of APO-zero": (
        on(both_below_reference, loss("kto_pair", beta=B)),
        on(both_below_reference, lambda p: 0.5 * loss("apo_zero", beta=B)(p)),
    ),
    "alpha-DPO with a fixed margin is SimPO": (
        loss("alpha_dpo", alpha_dpo_beta=2.5, alpha_dpo_gamma_ratio=0.6, alpha_dpo_alpha=0.0),
        loss("simpo", simpo_beta=2.5, simpo_gamma_beta_ratio=0.6),
    ),
    "gamma-PO of one pair is SimPO": (
        on(alone, loss("gamma_po", gamma_po_beta=2.5, gamma_po_ratio=0.4, gamma_po_tau=10.0)),
        on(alone, loss("simpo", simpo_beta=2.5, simpo_gamma_beta_ratio=0.4)),
    ),
    "gamma-PO of equal pairs is SimPO": (
        on(all_the_same, loss("gamma_po", gamma_po_beta=2.5, gamma_po_ratio=0.4, gamma_po_tau=10.0)),
        on(all_the_same, loss("simpo", simpo_beta=2.5, simpo_gamma_beta_ratio=0.4)),
    ),
    "ARPO with full rejection is CPO": (
        loss("arpo", beta=B, arpo_alpha=0.7, arpo_eta1=10.0),
        loss("cpo", beta=B, cpo_alpha=0.7),
    ),
    "BPO with a lagging chosen side looks at it alone": (
        on(
            rejected_below_reference,
            on(chosen_below_reference, loss("bpo", beta=B, bpo_alpha=0.3, bpo_link="logistic")),
        ),
        on(chosen_below_reference, lambda p: -logsigmoid(B * p.chosen.logratio)),
    ),
}

LIMITS = {
    "AlphaPO as alpha goes to 0 is SimPO": (
        loss("alphapo", alphapo_beta=2.5, alphapo_alpha=1e-7, alphapo_gamma=0.1),
        loss("simpo", simpo_beta=2.5, simpo_gamma=0.1),
        1e-5,
    ),
    "RePO is SimPO as beta goes to infinity": (
        lambda p: loss("simpo", simpo_beta=1e6, simpo_gamma=0.6e6)(p) / 1e6,
        loss("repo", repo_gamma=0.6),
        1e-5,
    ),
    "KLDPO as tau goes to infinity is DPO": (loss("kldpo", beta=B, kldpo_tau=1e8), DPO, 1e-6),
    "Dr. DPO as its beta goes to infinity is the mean of DPO": (
        lambda p: loss("dr_dpo", beta=B, dr_dpo_beta=1e8)(p).mean(),
        lambda p: DPO(p).mean(),
        1e-6,
    ),
    "gamma-PO as tau goes to infinity is SimPO": (
        loss("gamma_po", gamma_po_beta=2.5, gamma_po_ratio=0.4, gamma_po_tau=1e8),
        loss("simpo", simpo_beta=2.5, simpo_gamma_beta_ratio=0.4),
        1e-5,
    ),
    "bounded DPO as lambda goes to 0 leaves the rejected side": (
        loss("bdpo", beta=B, bdpo_lambda=1e-9),
        lambda p: -logsigmoid(B * p.chosen.logratio),
        1e-6,
    ),
}


@pytest.mark.parametrize("inputs", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize(("left", "right"), SAME.values(), ids=SAME)
def test_values_and_gradients_agree(left, right, inputs):
    for ours, theirs in zip(value_and_gradients(left, inputs), value_and_gradients(right, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("left", "right", "tolerance"), LIMITS.values(), ids=LIMITS)
def test_values_agree_in_the_limit(left, right, tolerance):
    ours, *_ = value_and_gradients(left, PUBLISHED)
    theirs, *_ = value_and_gradients(right, PUBLISHED)
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
