"""Two answers: every loss of lists is the loss of pairs that it generalizes, with its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.support.batches import SMOOTH, gradients, make_pairs
from trl_dpo_ext import Lists, Pairs, get_loss
from trl_dpo_ext.core.mixture import LossMixture, Term

Hyper = dict[str, Any]

LIMITS: list[tuple[str, Hyper, Callable[[Pairs], torch.Tensor]]] = [
    ("pl", {"beta": 0.1}, lambda p: get_loss("sigmoid")(p, beta=0.1)),
    ("pl", {"beta": 0.1, "pl_reduction": "mean"}, lambda p: get_loss("sigmoid")(p, beta=0.1)),
    (
        "pl_reference_free",
        {"pl_reference_free_beta": 2.0},
        lambda p: get_loss("simpo")(p, simpo_beta=2.0, simpo_gamma=0.0),
    ),
    ("top1", {"beta": 0.1}, lambda p: get_loss("sigmoid")(p, beta=0.1)),
    ("infonca", {"beta": 0.1, "infonca_tau": 2.0}, lambda p: get_loss("soft_dpo")(p, beta=0.1, soft_dpo_eta=0.5)),
    ("nca", {"beta": 0.1, "nca_tau": 1e-4}, lambda p: get_loss("nca_pair")(p, beta=0.1)),
    (
        "rrhf",
        {"rrhf_nll_weight": 0.7},
        lambda p: get_loss("repo")(p, repo_gamma=0.0) - 0.7 * p.chosen.avg_logps,
    ),
    ("sppo_list", {"sppo_beta": 0.1, "sppo_eta": 0.5}, lambda p: get_loss("sppo")(_won(p, 0.5), sppo_beta=0.1)),
    ("lipo", {"beta": 0.1, "lipo_scale": 10.0}, lambda p: _lambda_weight(p) * get_loss("sigmoid")(p, beta=0.1)),
]


def _won(p: Pairs, eta: float) -> Pairs:
    gap = p.columns["score_chosen"] - p.columns["score_rejected"]
    return replace(p, columns={**p.columns, "p_chosen": torch.sigmoid(eta * gap)})


def _lambda_weight(p: Pairs) -> torch.Tensor:
    gain = 2 ** (p.columns["score_chosen"] / 10) - 2 ** (p.columns["score_rejected"] / 10)
    return gain * (1 / math.log(2) - 1 / math.log(3))


@pytest.mark.parametrize(("name", "hyper", "pairwise"), LIMITS, ids=[f"{name} {h}" for name, h, _ in LIMITS])
def test_two_answers_are_a_pair(name: str, hyper: Hyper, pairwise: Callable[[Pairs], torch.Tensor]) -> None:
    variant, pairs = get_loss(name), make_pairs(SMOOTH)
    values, expected = variant(pairs, **hyper), pairwise(pairs)
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)
    for found, wanted in zip(gradients(values.mean(), pairs), gradients(expected.mean(), pairs), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-13)
    of_lists = variant(Lists.of_pairs(pairs, scored=variant.order == "scores"), **hyper)
    assert torch.equal(of_lists, values)


@pytest.mark.parametrize("hyper", [{}, {"qrpo_transform": "log"}, {"qrpo_error": "mae"}], ids=str)
def test_two_answers_are_a_pair_of_qrpo(hyper: Hyper) -> None:
    pairs = make_pairs(SMOOTH)
    pairs = replace(pairs, columns={**pairs.columns, **_quantiles(pairs, "score", "quantile")})
    values = get_loss("qrpo_list")(pairs, qrpo_beta=0.1, **hyper)
    torch.testing.assert_close(values, get_loss("qrpo")(pairs, qrpo_beta=0.1, **hyper), rtol=1e-12, atol=1e-12)


def _quantiles(pairs: Pairs, to: str, source: str) -> dict[str, torch.Tensor]:
    return {f"{to}_{side}": pairs.columns[f"{source}_{side}"] for side in ("chosen", "rejected")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_loss_of_pairs_on_lists_of_two_is_the_loss_of_pairs_to_the_bit(dtype: torch.dtype) -> None:
    terms = [("sigmoid", {"beta": 0.1}, 1.0), ("rpo_sq", {"beta": 0.1, "rpo_eta": 1.0}, 0.3)]
    mixture = LossMixture(
        tuple(Term(get_loss(name), weight, hyper, name, get_loss(name).make()) for name, hyper, weight in terms)
    )
    pairs = make_pairs(SMOOTH, dtype=dtype)
    for weights in (None, torch.tensor([0.5, 2.0, 1.0, 0.0, 4.0], dtype=dtype)):
        on_pairs, each = mixture(pairs, weights)
        on_lists, each_of_lists = mixture.on_lists(Lists.of_pairs(pairs, scored=True), weights=weights)
        assert isinstance(on_pairs, torch.Tensor)
        assert isinstance(on_lists, torch.Tensor)
        assert torch.equal(on_pairs, on_lists)
        assert each == each_of_lists
        for found, wanted in zip(gradients(on_lists, pairs), gradients(on_pairs, pairs), strict=True):
            assert torch.equal(found, wanted)
