"""Means over batches of different sizes, and losses with a mean over the tokens of their batch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.support.batches import SMOOTH, hypers_of, make_pairs, take
from trl_dpo_ext import Need, list_losses
from trl_dpo_ext.core.mixture import LossMixture, Term
from trl_dpo_ext.core.registry import LossVariant
from trl_dpo_ext.evaluation import BatchCounts, Evaluated, WeightedMean

VARIANTS = list_losses(reads="pairs")
OVER_TOKENS = [variant for variant in VARIANTS if variant.token_sums]


def complete_hypers(variant: LossVariant) -> list[dict[str, Any]]:
    """The hyperparameters of each tested setting, defaults included, as a mixture has them."""
    return [{p.name: hyper.get(p.name, p.default) for p in variant.hyperparameters} for hyper in hypers_of(variant)]


def mean(*batches: tuple[float, float]) -> float:
    total = WeightedMean()
    for value, weight in batches:
        total.add(value, weight)
    return total.result()


def test_a_mean_weighs_its_batches() -> None:
    assert mean((1.0, 3), (5.0, 1)) == 2.0


def test_with_equal_weights_a_mean_is_the_one_that_trl_computes_to_the_last_bit() -> None:
    values = [0.1, 0.2, 0.7, 1 / 3]
    assert mean(*((value, 7) for value in values)) == sum(values) / len(values)


def test_a_batch_without_tokens_does_not_count_even_if_its_value_is_nan() -> None:
    assert mean((math.nan, 0), (3.0, 2)) == 3.0


def test_where_nothing_has_a_weight_the_mean_is_the_plain_one() -> None:
    assert mean((1.0, 0), (3.0, 0)) == 2.0


def test_what_is_not_a_number_is_seen_in_the_mean() -> None:
    assert math.isnan(mean((math.nan, 1), (3.0, 2)))


def test_variants_with_a_mean_over_tokens_say_so() -> None:
    assert {variant.name for variant in OVER_TOKENS} == {"sft", "dpo_nll", "cpo", "arpo"}
    sorted_or_compared = {"aot", "aot_unpaired"} | {v.name for v in VARIANTS if v.needs & (Need.BATCH | Need.STATE)}
    dependent = {variant.name for variant in VARIANTS if not variant.independent_pairs}
    assert dependent <= sorted_or_compared | {variant.name for variant in OVER_TOKENS}


@pytest.mark.parametrize("variant", OVER_TOKENS, ids=lambda variant: variant.name)
def test_without_its_mean_over_tokens_a_pair_has_the_value_that_it_has_alone(variant: LossVariant) -> None:
    def rest(inputs: dict[str, Any], hyper: dict[str, Any]) -> torch.Tensor:
        pairs = make_pairs(inputs)
        return variant.make()(pairs, **hyper) - token_sums(pairs, hyper).sum() / pairs.chosen.lengths.sum()

    def token_sums(pairs: Any, hyper: dict[str, Any]) -> torch.Tensor:
        assert variant.token_sums
        return variant.token_sums(pairs, **hyper)

    hypers = complete_hypers(variant)
    assert any(token_sums(make_pairs(SMOOTH), hyper).abs().sum() > 0 for hyper in hypers)
    for hyper in hypers:
        alone = [rest(take(SMOOTH, [pair]), hyper) for pair in range(5)]
        torch.testing.assert_close(rest(SMOOTH, hyper), torch.cat(alone), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("variant", OVER_TOKENS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("batches", [[[0], [1], [2], [3], [4]], [[0, 1], [2, 3], [4]], [[0, 1, 2], [3, 4]]], ids=str)
def test_the_loss_over_batches_is_that_of_all_pairs_as_one_batch(
    variant: LossVariant, batches: list[list[int]], weighted: bool
) -> None:
    weights = torch.tensor([0.5, 2.0, 1.0, 0.0, 4.0], dtype=torch.float64) if weighted else None
    for hyper in complete_hypers(variant):
        mixture = LossMixture((Term(variant, 1.0, hyper, "x", variant.make()),))
        seen = Evaluated()
        for rows in batches:
            pairs, own = make_pairs(take(SMOOTH, rows)), None if weights is None else weights[rows]
            seen.batch = BatchCounts.gathered(pairs, own, mixture.token_sums(pairs))
            seen.add({"loss/x": float(mixture(pairs, own)[1]["x"])})
        expected = float(mixture(make_pairs(SMOOTH), weights)[1]["x"])
        assert seen.metrics()["loss/x"] == pytest.approx(expected, rel=1e-6)
        assert seen.pairs == 5
