"""One formula under two names: duplicates known from the literature agree in value and gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from tests.support.altered_pairs import (
    BATCHES,
    column,
    gaps,
    loss,
    of_mean_logps,
    on,
    score_gap,
    value_and_gradients,
    with_sides,
    without_reference,
)

B = 0.1


def nll(norm):
    """The likelihood term in each of its three normalizations, by hand."""
    return {
        "seq_mean": lambda p: -p.chosen.logps / p.chosen.lengths,
        "seq_sum": lambda p: -p.chosen.logps,
        "token_mean": lambda p: (-p.chosen.logps.sum() / p.chosen.lengths.sum()).expand_as(p.chosen.logps),
    }[norm]


DPO = loss("sigmoid", beta=B)
E1 = math.log(0.9 / 0.1)  # logit of 0.9
LOG_Z = math.log(B * math.expm1(1 / B))  # QRPO's partition function at beta B

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
    "the square of SymPO is the savage loss": (
        lambda p: loss("sympo", beta=B, sympo_clip=0.0)(p) ** 2,
        loss("gpo_savage", beta=B),
    ),
    "SymPO is ROPO without DPO": (
        loss("sympo", beta=B, sympo_clip=0.0),
        lambda p: (2.0**40 + 1) ** 2 / (4 * 2.0**80) * loss("ropo", beta=B, ropo_alpha=2.0**40)(p),
    ),
    "the centered loss is DPO over beta": (
        loss("centered", beta=B),
        lambda p: (DPO(p) - math.log(2)) / B,
    ),
    "QRPO is half of SPPO where the quantiles ask for it": (
        on(
            column("quantile_chosen", 0.5 + B * LOG_Z),
            on(column("quantile_rejected", -0.5 + B * LOG_Z), loss("qrpo", qrpo_beta=B)),
        ),
        lambda p: 0.5 * B**2 * loss("sppo_hard", beta=B)(p),
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
    "a lighter rejected side is a constant column": (
        loss("dpo_shift", beta=B, dpo_shift_lambda=0.75),
        on(column("delta_r", 0.75), loss("mappo", beta=B)),
    ),
    "anchored DPO is DPO and a classifier of the chosen side": (
        loss("anc_dpo", beta=B, anc_dpo_delta=0.5),
        lambda p: DPO(p) - logsigmoid(B * p.chosen.logratio - 0.5),
    ),
    "the truncated quadratic is the square of the hinge": (
        loss("gpo_truncquad", beta=0.5),
        lambda p: loss("hinge", beta=0.5)(p) ** 2,
    ),
    "the Savage loss is the square of a mistake's probability": (
        loss("gpo_savage", beta=0.5),
        lambda p: torch.exp(-loss("sigmoid", beta=0.5)(p) - 0.5 * p.margin) ** 2,
    ),
    "chi-PO is DPO with another score": (
        loss("chipo", beta=B),
        on(with_sides(lambda pairs, side: {"score": side.logratio + side.logratio.exp()}), DPO),
    ),
    "ROPO mixes DPO with a bounded loss": (
        loss("ropo", beta=B, ropo_alpha=14.0),
        lambda p: 56 / 225 * (DPO(p) + 14 * torch.sigmoid(-B * p.margin)),
    ),
}

SAME_GRADIENT = {
    "soft labels are the backward reward-aware loss": (
        loss("soft_dpo", beta=B, soft_dpo_eta=1.0),
        loss("rpo_bwd", beta=B, rpo_eta=1.0),
    ),
}


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
