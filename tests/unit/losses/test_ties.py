"""The gradient where a loss has a kink: the same with every version of torch, and the one that its docstring states.

At the first step policy and reference are equal, so that every log-ratio is exactly 0: for several losses that is a
kink. torch 2.14 changed what `clamp` passes there, so the numbers here are written down, not computed by torch.
"""

from __future__ import annotations

import math

import pytest
import torch

from tests.support.batches import gradients
from trl_dpo_ext import Pairs, Side, get_loss
from trl_dpo_ext.core.transforms import f_divergence_score

START = {"logratios": (0.0, 0.0)}

E = torch.tensor(1.0, dtype=torch.float64).exp().item()
X_OF_CHIPO = (E - 1.0) + 1.0
"""phi(1) - phi(0), as float64 computes it: a clip at half of it is reached exactly."""


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slope_of_discopop(x: float, tau: float) -> float:
    m = sigmoid(x / tau)
    return m * (1 - m) / tau * (math.exp(-x) - math.log1p(math.exp(-x))) - (1 - m) * sigmoid(-x) - m * math.exp(-x)


HINGE = {"simpo_beta": 2.0, "simpo_gamma": 0.0, "simpo_link": "hinge"}
ARPO = {"beta": 0.5, "arpo_alpha": 0.0}
RAMP = {"sympo_link": "ramp", "sympo_clip": 0.0}
ALPHAPO = {"alphapo_beta": 1.0, "alphapo_alpha": 80.0, "alphapo_gamma": 0.0}

# What ties, the variant, its hyperparameters, where it ties, and the gradient of both sides' summed log-probs.
# Averages are those of 4 chosen and 2 rejected tokens.
TIES = {
    # dpop's penalty starts without gradient: the first step is DPO's
    "max(0, -lr_chosen) at 0": ("dpop", {"beta": 0.5, "dpop_lambda": 50.0}, START, (-0.25, 0.25)),
    # minor_dpo's rejected side starts with its full gradient: without one it would never move
    "max(0, lr_rejected) at 0": ("minor_dpo", {"beta": 0.5}, START, (-0.25, 0.25)),
    # the two sides of bpo share the gradient
    "min(c, r), hinge": ("bpo", {"beta": 0.5, "bpo_alpha": 0.25, "bpo_link": "hinge"}, START, (-0.25, 0.0625)),
    "min(c, r), logistic": ("bpo", {"beta": 0.5, "bpo_alpha": 0.25, "bpo_link": "logistic"}, START, (-0.125, 0.03125)),
    # a hinge that is just reached leaves the pair alone
    "bpo's hinge": (
        "bpo",
        {"beta": 0.5, "bpo_alpha": 1.0, "bpo_link": "hinge"},
        {"logratios": (2.0, -3.0)},
        (0.0, 0.0),
    ),
    "hinge": ("hinge", {"beta": 0.5}, {"logratios": (1.0, -1.0)}, (0.0, 0.0)),
    "squared hinge": ("gpo_truncquad", {"beta": 0.5}, {"logratios": (1.0, -1.0)}, (0.0, 0.0)),
    "simpo's hinge": ("simpo", HINGE, {"averages": (-1.0, -1.5)}, (0.0, 0.0)),
    "simpo's flipped hinge": (
        "simpo",
        {**HINGE, "simpo_label_smoothing": 0.25},
        {"averages": (-1.5, -1.0)},
        (-0.375, 0.75),
    ),
    "repo's hinge": ("repo", {"repo_gamma": 0.5}, {"averages": (-1.0, -1.5)}, (0.0, 0.0)),
    "slic's hinge": (
        "slic_hf",
        {"slic_hf_delta": 1.0, "slic_hf_lambda": 0.125},
        {"averages": (-1.0, -2.5)},
        (-0.125, 0.0),
    ),
    # arpo's weight has no gradient where both sides are alike: w = -0.5, x = -2.5
    "|distance| at 0": (
        "arpo",
        {**ARPO, "arpo_eta1": 0.5, "arpo_eta2": 0.5},
        {"averages": (-1.0, -1.0)},
        (-0.5 * sigmoid(2.5), -0.25 * sigmoid(2.5)),
    ),
    # whatever is clamped passes its gradient up to the bound and at it
    "min(1, w) at 1": (
        "arpo",
        {**ARPO, "arpo_eta1": 2 / E, "arpo_eta2": 1.0},
        {"averages": (-1.0, -2.0)},
        (-0.75, 1.25),
    ),
    "arpo's exponent at 80": (
        "arpo",
        {**ARPO, "arpo_eta1": 1.5 * math.exp(-80), "arpo_eta2": 80.0},
        {"averages": (-1.0, -2.0)},
        # w = 0.5, x = 0.5 * (-4 + 0.5 * 4) = -1, and the weight's slope is 1.5 * 80 per token and side
        (-sigmoid(1.0) * 0.5 * (1 + 4 * 1.5 * 80 / 4), sigmoid(1.0) * 0.5 * (0.5 + 4 * 1.5 * 80 / 2)),
    ),
    "gpo_exp's exponent at 30": ("gpo_exp", {"beta": 1.0}, {"logratios": (-15.0, 15.0)}, (-math.exp(30), math.exp(30))),
    "discopop's exponent at 80": (
        "discopop",
        {"beta": 1.0, "discopop_tau": 80.0},
        {"logratios": (-40.0, 40.0)},
        (slope_of_discopop(-80.0, 80.0), -slope_of_discopop(-80.0, 80.0)),
    ),
    "alphapo's exponent at 80": ("alphapo", ALPHAPO, {"averages": (-1.0, -1.0)}, (-math.exp(80) / 8, math.exp(80) / 4)),
    "chipo's exponents at 20": (
        "chipo",
        {"beta": 1.0},
        {"logratios": (20.0, 20.0)},
        (-0.5 * (math.exp(20) + 1), 0.5 * (math.exp(20) + 1)),
    ),
    "chipo's clip": (
        "chipo",
        {"beta": 1.0, "chipo_clip": X_OF_CHIPO / 2},
        {"logratios": (1.0, 0.0)},
        (-sigmoid(-X_OF_CHIPO) * (E + 1), sigmoid(-X_OF_CHIPO) * 2),
    ),
    "chipo's lower clip": (
        "chipo",
        {"beta": 1.0, "chipo_clip": X_OF_CHIPO / 2},
        {"logratios": (0.0, 1.0)},
        (-sigmoid(X_OF_CHIPO) * 2, sigmoid(X_OF_CHIPO) * (E + 1)),
    ),
    "sympo's clips": (
        "sympo",
        {"beta": 1.0, "sympo_clip": 1.0},
        {"logratios": (1.0, -1.0)},
        (-sigmoid(2.0) * sigmoid(-2.0), sigmoid(2.0) * sigmoid(-2.0)),
    ),
    # the ramp has a gradient between its ends alone
    "sympo's ramp at 0": ("sympo", {**RAMP, "beta": 0.5}, {"logratios": (1.0, -1.0)}, (0.0, 0.0)),
    "sympo's ramp at 1": ("sympo", {**RAMP, "beta": 0.5}, {"logratios": (-1.0, 1.0)}, (0.0, 0.0)),
    # log(1/2) is where the log transform puts beta 1 at rest
    "|error| at 0": ("qrpo", {"qrpo_beta": 1.0, "qrpo_transform": "log", "qrpo_error": "mae"}, START, (0.0, 0.0)),
    "(error)^2 at 0": ("qrpo", {"qrpo_beta": 1.0, "qrpo_transform": "log"}, START, (0.0, 0.0)),
}


def at(tie: dict[str, tuple[float, float]]) -> Pairs:
    """One pair with these log-ratios, or with these mean log-probs of 4 and 2 tokens."""

    def leaf(value: float) -> torch.Tensor:
        return torch.tensor([value], dtype=torch.float64, requires_grad=True)

    if "averages" in tie:
        sides = [
            Side(leaf(mean * n), lengths=torch.tensor([n])) for mean, n in zip(tie["averages"], (4, 2), strict=True)
        ]
    else:
        sides = [Side(leaf(-8.0 + lr), torch.tensor([-8.0], dtype=torch.float64)) for lr in tie["logratios"]]
    quantiles = {f"quantile_{side}": torch.tensor([0.5], dtype=torch.float64) for side in ("chosen", "rejected")}
    return Pairs(*sides, columns=quantiles)


@pytest.mark.parametrize("tie", TIES, ids=str)
def test_the_gradient_at_a_tie_is_the_one_that_is_written_down(tie):
    name, hyper, place, expected = TIES[tie]
    pairs = at(place)
    chosen, rejected = gradients(get_loss(name)(pairs, **hyper).mean(), pairs)
    assert (chosen.item(), rejected.item()) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("tie", TIES, ids=str)
def test_every_tie_is_one(tie):
    # A little to either side the gradient is another one, or the table above would show nothing.
    name, hyper, place, _ = TIES[tie]
    (kind, (chosen, rejected)), near = next(iter(place.items())), 1e-3
    found = set()
    for move in (-near, near):
        pairs = at({kind: (chosen + move, rejected - move)})
        found.add(tuple(round(g.item(), 4) for g in gradients(get_loss(name)(pairs, **hyper).mean(), pairs)))
    assert len(found) == 2


def two_pairs(chosen, rejected, ref_chosen, ref_rejected):
    leaves = [torch.tensor(values, dtype=torch.float64, requires_grad=True) for values in (chosen, rejected)]
    references = [torch.tensor(values, dtype=torch.float64) for values in (ref_chosen, ref_rejected)]
    return Pairs(*(Side(leaf, reference) for leaf, reference in zip(leaves, references, strict=True)))


@pytest.mark.parametrize("everywhere", [False, True], ids=["of one process", "of all processes"])
def test_of_pairs_that_tie_in_rank_the_first_of_the_batch_has_the_lower_rank(everywhere):
    hyper = {"beta": 1.0, "label_smoothing": 0.0, "aot_global": everywhere}
    paired = two_pairs([-4.0, -5.0], [-5.0, -6.0], [-4.0, -6.0], [-6.0, -6.0])  # margins 1, 1 and reference 2, 0
    chosen, rejected = gradients(get_loss("aot")(paired, **hyper).mean(), paired)
    assert chosen.tolist() == pytest.approx([-sigmoid(-1) / 2, -sigmoid(1) / 2])
    assert rejected.tolist() == pytest.approx([sigmoid(-1) / 2, sigmoid(1) / 2])

    unpaired = two_pairs([-4.0, -5.0], [-5.0, -7.0], [-4.0, -5.0], [-6.0, -6.0])  # log-ratios 0, 0 and 1, -1
    chosen, rejected = gradients(get_loss("aot_unpaired")(unpaired, **hyper).mean(), unpaired)
    assert chosen.tolist() == pytest.approx([-sigmoid(-1) / 2, -sigmoid(1) / 2])
    assert rejected.tolist() == pytest.approx([sigmoid(1) / 2, sigmoid(-1) / 2])


SCORES_AT_TIES = [
    ("forward_kl_linear", 0.5, -10.0, torch.float64, math.exp(10)),
    ("forward_kl_linear", 0.5, -10.0, torch.float32, math.exp(10)),
    ("forward_kl", 0.5, -80.0, torch.float64, math.exp(80)),
    ("forward_kl", 0.5, -80.0, torch.float32, math.exp(80)),
    ("forward_kl", 0.5, -11.0, torch.float16, math.exp(11)),
    ("alpha_divergence", 2.0, 80.0, torch.float64, math.exp(80)),
    ("alpha_divergence", 0.0, -80.0, torch.float64, math.exp(80)),
]


@pytest.mark.parametrize(("kind", "alpha", "logratio", "dtype", "slope"), SCORES_AT_TIES, ids=str)
def test_a_score_keeps_its_gradient_at_its_switch_and_at_its_clamp(kind, alpha, logratio, dtype, slope):
    lr = torch.tensor([logratio], dtype=dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(f_divergence_score(lr, kind, alpha).sum(), lr)
    assert gradient.item() == pytest.approx(slope, rel=1e-3 if dtype == torch.float16 else 1e-5)
