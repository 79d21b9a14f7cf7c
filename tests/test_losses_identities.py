"""Losses that must agree with one another: duplicates, special cases and limits known from the literature."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from batches import PUBLISHED, gradients, make_pairs, take

from trl_dpo_ext import get_loss

B = 0.1
OTHER = {
    "chosen": [-11.3, -20.9, -8.2, -30.1, -6.7],
    "rejected": [-15.8, -17.1, -9.4, -33.2, -12.6],
    "ref_chosen": [-13.1, -19.6, -8.9, -32.9, -7.0],
    "ref_rejected": [-14.4, -18.7, -9.1, -35.5, -9.8],
    "chosen_lengths": [6, 10, 4, 12, 3],
    "rejected_lengths": [8, 5, 4, 15, 7],
    "columns": {
        "score_chosen": [1.0, 7.0, 6.5, 9.0, 3.0],
        "score_rejected": [0.5, 6.5, 2.0, 8.0, 1.0],
        "p_chosen": [0.3, 0.6, 1.0, 0.0, 0.2],
        "delta_r": [0.0, 0.5, 0.25, 1.0, 0.3],
        "margin": [2.0, 0.0, -1.5, 6.0, -1.0],
    },
}
BATCHES = {"published": PUBLISHED, "other": OTHER, "one pair": take(PUBLISHED, [1])}


def loss(name, **hyper):
    """A loss of a batch; no ranges are checked, since some identities leave them."""
    return lambda pairs: get_loss(name).make()(pairs, **hyper)


def on(change, inner):
    """`inner`, on pairs that `change` has altered."""
    return lambda pairs: inner(change(pairs))


def with_sides(change):
    """Pairs with other fields on either side; the score follows the log-probs."""

    def altered(pairs):
        sides = {
            name: replace(getattr(pairs, name), **{"score": None, **change(pairs, getattr(pairs, name))})
            for name in ("chosen", "rejected")
        }
        return replace(pairs, **sides)

    return altered


without_reference = with_sides(lambda pairs, side: {"ref_logps": torch.zeros_like(side.logps)})
of_one_token = with_sides(lambda pairs, side: {"lengths": torch.ones_like(side.lengths)})
of_equal_lengths = with_sides(lambda pairs, side: {"lengths": pairs.chosen.lengths})
chosen_above_reference = with_sides(lambda pairs, side: {"ref_logps": side.logps.detach() - 0.75})
of_mean_logps = with_sides(lambda pairs, side: {"logps": side.avg_logps})
alone = with_sides(lambda pairs, side: {"logps": side.logps[:1], "ref_logps": side.ref_logps[:1]})


def opposite_rewards(pairs):
    """The rewards of all sides add up to zero."""
    rejected = replace(pairs.rejected, logps=pairs.rejected.ref_logps - pairs.chosen.logratio, score=None)
    return replace(pairs, rejected=rejected)


def column(name, value):
    """Pairs whose column holds `value`, or `value(columns)`."""

    def altered(pairs):
        filled = value(pairs.columns) if callable(value) else torch.full_like(pairs.chosen.ref_logps, value)
        return replace(pairs, columns={**pairs.columns, name: filled})

    return altered


def gaps(columns):
    return columns["score_chosen"] - columns["score_rejected"]


def score_gap(gap):
    return column("score_chosen", lambda columns: columns["score_rejected"] + gap)


def nll(norm):
    """The likelihood term in each of its three normalisations, by hand."""
    return {
        "seq_mean": lambda p: -p.chosen.logps / p.chosen.lengths,
        "seq_sum": lambda p: -p.chosen.logps,
        "token_mean": lambda p: (-p.chosen.logps.sum() / p.chosen.lengths.sum()).expand_as(p.chosen.logps),
    }[norm]


DPO = loss("sigmoid", beta=B)
E1 = math.log(0.9 / 0.1)  # logit of 0.9

SAME = {
    # one formula under two names
    "reference-free DPO is CPO without likelihood": (on(without_reference, DPO), loss("cpo", beta=B, cpo_alpha=0.0)),
    "CPO is its contrast and a likelihood term": (
        loss("cpo", beta=B, cpo_alpha=0.7),
        lambda p: loss("cpo", beta=B, cpo_alpha=0.0)(p) + 0.7 * loss("sft")(p),
    ),
    "SLiC's calibration is reference-free hinge": (
        loss("slic_hf", slic_hf_delta=2.0, slic_hf_lambda=0.0),
        on(without_reference, lambda p: 2.0 * loss("hinge", beta=0.5)(p)),
    ),
    "robust is cdpo outside its range": (
        loss("robust", beta=B, label_smoothing=0.1),
        loss("cdpo", beta=B, label_smoothing=-0.1 / 0.8),
    ),
    "cdpo is DPO and a linear pull": (
        loss("cdpo", beta=B, label_smoothing=0.2),
        lambda p: DPO(p) + 0.2 * B * p.margin,
    ),
    "soft labels of 1 - e are cdpo": (
        on(column("p_chosen", 0.8), loss("soft_dpo_p", beta=B)),
        loss("cdpo", beta=B, label_smoothing=0.2),
    ),
    "hard labels are DPO": (on(column("p_chosen", 1.0), loss("soft_dpo_p", beta=B)), DPO),
    "soft labels from scores are soft labels": (
        loss("soft_dpo", beta=B, soft_dpo_eta=0.5),
        on(
            column("p_chosen", lambda columns: torch.sigmoid(0.5 * gaps(columns))),
            loss("soft_dpo_p", beta=B),
        ),
    ),
    "exo is the forward reward-aware loss at a constant target": (
        loss("exo_pair", beta=B, label_smoothing=0.1),
        on(score_gap(E1), loss("rpo_fwd", beta=B, rpo_eta=1.0)),
    ),
    "regression on a gap of a half is IPO": (
        on(score_gap(0.5), loss("rpo_sq", beta=B, rpo_eta=1.0)),
        lambda p: B**2 * loss("ipo_sum", beta=B)(p),
    ),
    "Cal-DPO is DPO at beta 1 and half of SPPO": (
        loss("cal_dpo", cal_dpo_beta=B),
        lambda p: loss("sigmoid", beta=1.0)(p) + 0.5 * loss("sppo_hard", beta=B)(p),
    ),
    "SPPO with certain labels is half of the hard form": (
        on(column("p_chosen", 1.0), loss("sppo", sppo_beta=B)),
        lambda p: 0.5 * loss("sppo_hard", beta=B)(p),
    ),
    "DPO with a token-mean likelihood is the mix of sigmoid and sft": (
        loss("dpo_nll", beta=B, dpo_nll_weight=0.2, dpo_nll_norm="token_mean"),
        lambda p: DPO(p) + 0.2 * loss("sft")(p),
    ),
    "DPO with a sequence-mean likelihood": (
        loss("dpo_nll", beta=B, dpo_nll_weight=0.2, dpo_nll_norm="seq_mean"),
        lambda p: DPO(p) + 0.2 * nll("seq_mean")(p),
    ),
    "DPO with a summed likelihood": (
        loss("dpo_nll", beta=B, dpo_nll_weight=0.2, dpo_nll_norm="seq_sum"),
        lambda p: DPO(p) + 0.2 * nll("seq_sum")(p),
    ),
    "ORPO's likelihood is the sequence mean": (
        lambda p: loss("orpo", orpo_lambda=0.3)(p) - 0.3 * (loss("orpo", orpo_lambda=1.0)(p) - nll("seq_mean")(p)),
        nll("seq_mean"),
    ),
    "RePO is SLiC's calibration on means": (
        loss("repo", repo_gamma=0.6),
        on(of_mean_logps, loss("slic_hf", slic_hf_delta=0.6, slic_hf_lambda=0.0)),
    ),
    "SimPO's hinge is RePO": (
        loss("simpo", simpo_beta=2.0, simpo_gamma_beta_ratio=0.25, simpo_link="hinge"),
        lambda p: 2.0 * loss("repo", repo_gamma=0.25 + 1 / 2.0)(p),
    ),
    "SimPO's two margins": (
        loss("simpo", simpo_beta=2.5, simpo_gamma=1.0),
        loss("simpo", simpo_beta=2.5, simpo_gamma_beta_ratio=0.4),
    ),
    "SimPO's margin is 0.5 unless given": (loss("simpo"), loss("simpo", simpo_beta=2.0, simpo_gamma=0.5)),
    "an untransformed offset is a margin of the score gap": (
        loss("odpo", beta=B, odpo_alpha=0.5, odpo_transform="identity"),
        on(column("margin", gaps), loss("margin", beta=B, margin_scale=0.5)),
    ),
    # special cases that are DPO
    "DPOP without penalty is DPO": (loss("dpop", beta=B, dpop_lambda=0.0), DPO),
    "DPOP above the reference is DPO": (
        on(chosen_above_reference, loss("dpop", beta=B, dpop_lambda=50.0)),
        on(chosen_above_reference, DPO),
    ),
    "R-DPO without regulariser is DPO": (loss("rdpo", beta=B, rdpo_alpha=0.0), DPO),
    "R-DPO at equal lengths is DPO": (on(of_equal_lengths, loss("rdpo", beta=B, rdpo_alpha=0.5)), DPO),
    "a margin of nothing is DPO": (loss("margin", beta=B, margin_scale=0.0), DPO),
    "an offset of nothing is DPO": (loss("odpo", beta=B, odpo_alpha=0.0), DPO),
    "a score gap of 1 has the logarithm 0": (on(score_gap(1.0), loss("odpo", beta=B)), DPO),
    "cdpo with sure labels is DPO": (loss("cdpo", beta=B, label_smoothing=0.0), DPO),
    "robust with sure labels is DPO": (loss("robust", beta=B, label_smoothing=0.0), DPO),
    "AOT of one pair is DPO": (on(alone, loss("aot", beta=B, label_smoothing=0.0)), on(alone, DPO)),
    "unpaired AOT of one pair is DPO": (on(alone, loss("aot_unpaired", beta=B, label_smoothing=0.0)), on(alone, DPO)),
    "DPO with a likelihood of weight 0 is DPO": (loss("dpo_nll", beta=B, dpo_nll_weight=0.0), DPO),
    # special cases that are other losses
    "BCO with rewards around zero has no shift": (
        on(opposite_rewards, loss("bco_pair_delta", beta=B)),
        on(opposite_rewards, loss("bco_pair", beta=B)),
    ),
    "IPO of single tokens is IPO of sums": (on(of_one_token, loss("ipo", beta=B)), loss("ipo_sum", beta=B)),
    "normalised DPO of single tokens is DPO": (on(of_one_token, loss("sigmoid_norm", beta=B)), DPO),
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
}

SAME_GRADIENT = {
    "soft labels are the backward reward-aware loss": (
        loss("soft_dpo", beta=B, soft_dpo_eta=1.0),
        loss("rpo_bwd", beta=B, rpo_eta=1.0),
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
}


def value_and_gradients(side, inputs):
    pairs = make_pairs(inputs)
    value = side(pairs)
    return value, *gradients(value.sum(), pairs)


@pytest.mark.parametrize("inputs", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize(("left", "right"), SAME.values(), ids=SAME)
def test_values_and_gradients_agree(left, right, inputs):
    for ours, theirs in zip(value_and_gradients(left, inputs), value_and_gradients(right, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("inputs", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize(("left", "right"), SAME_GRADIENT.values(), ids=SAME_GRADIENT)
def test_gradients_agree_where_values_differ_by_a_constant(left, right, inputs):
    (value, *ours), (other, *theirs) = value_and_gradients(left, inputs), value_and_gradients(right, inputs)
    assert not torch.allclose(value, other)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("left", "right", "tolerance"), LIMITS.values(), ids=LIMITS)
def test_values_agree_in_the_limit(left, right, tolerance):
    ours, *_ = value_and_gradients(left, PUBLISHED)
    theirs, *_ = value_and_gradients(right, PUBLISHED)
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
