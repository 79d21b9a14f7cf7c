"""What holds for every variant of lists: it does not depend on the order of answers, on company, or on a common shift."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from tests.support.list_batches import (
    SMOOTH_PROMPTS,
    Prompt,
    list_hypers_of,
    make_lists,
    permuted,
    slopes,
    some_list_hyper,
)
from tests.unit.losses.test_list_gradients import BY_DIFFERENCES, VARIANTS
from trl_dpo_ext import LossVariant, get_loss

each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)


def value_and_slopes(variant: LossVariant, prompts: list, hyper: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    lists = make_lists(prompts)
    values = variant(lists, **hyper)
    return values, slopes(values, lists)


def assert_same(left: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-12)


@each_variant
def test_the_order_of_answers_does_not_matter(variant: LossVariant) -> None:
    hyper = some_list_hyper(variant)
    for prompt in SMOOTH_PROMPTS[:3]:
        value, slope = value_and_slopes(variant, [prompt], hyper)
        for order in list(itertools.permutations(range(len(prompt["pi"]))))[1::4]:
            other, moved = value_and_slopes(variant, [permuted(prompt, order)], hyper)
            assert_same(other, value)
            assert_same(moved, slope[list(order)])


@each_variant
def test_the_order_of_answers_does_not_matter_at_the_reference(variant: LossVariant) -> None:
    # All rewards are equal there, which is where sorting by the policy's rewards would depend on the order.
    hyper = some_list_hyper(variant)
    prompt = SMOOTH_PROMPTS[3] | {"ref": SMOOTH_PROMPTS[3]["pi"]}
    value, slope = value_and_slopes(variant, [prompt], hyper)
    for order in ((4, 3, 2, 1, 0), (1, 0, 3, 2, 4), (2, 4, 0, 1, 3)):
        other, moved = value_and_slopes(variant, [permuted(prompt, order)], hyper)
        assert_same(other, value)
        assert_same(moved, slope[list(order)])


@each_variant
def test_the_order_of_prompts_does_not_matter(variant: LossVariant) -> None:
    for hyper in list_hypers_of(variant):
        values = variant(make_lists(SMOOTH_PROMPTS), **hyper)
        assert_same(variant(make_lists(SMOOTH_PROMPTS[::-1]), **hyper), values.flip(0))


@each_variant
def test_a_ragged_batch_is_its_prompts_one_by_one(variant: LossVariant) -> None:
    for hyper in list_hypers_of(variant):
        values, slope = value_and_slopes(variant, SMOOTH_PROMPTS, hyper)
        alone = [value_and_slopes(variant, [prompt], hyper) for prompt in SMOOTH_PROMPTS]
        assert values.shape == (4,)
        assert_same(values, torch.cat([value for value, _ in alone]))
        assert_same(slope, torch.cat([own for _, own in alone]))


@each_variant
def test_a_common_shift_of_the_log_ratios_matters_exactly_where_levels_are_read(variant: LossVariant) -> None:
    moved = [prompt | {"ref": [ref + 1.5 for ref in prompt["ref"]]} for prompt in SMOOTH_PROMPTS]
    for hyper in list_hypers_of(variant):
        same = torch.allclose(
            variant(make_lists(moved), **hyper), variant(make_lists(SMOOTH_PROMPTS), **hyper), rtol=1e-10
        )
        assert same == (variant in BY_DIFFERENCES or not variant.needs_reference)
        assert same == variant.shift_invariant


@pytest.mark.parametrize("variant", [v for v in VARIANTS if not v.needs_reference], ids=lambda variant: variant.name)
def test_without_a_reference_a_common_shift_per_token_is_read_where_it_should(variant: LossVariant) -> None:
    moved = [
        prompt | {"pi": [pi - 0.5 * n for pi, n in zip(prompt["pi"], prompt["n"], strict=True)]}
        for prompt in SMOOTH_PROMPTS
    ]
    hyper = some_list_hyper(variant)
    values, other = (variant(make_lists(prompts), **hyper) for prompts in (SMOOTH_PROMPTS, moved))
    assert torch.allclose(values, other, rtol=1e-10) == (variant.name == "pl_reference_free")


@each_variant
def test_exchanging_tied_answers_changes_nothing(variant: LossVariant) -> None:
    prompt = SMOOTH_PROMPTS[2]
    assert prompt["u"][2] == prompt["u"][3]
    exchanged = permuted(prompt, [0, 1, 3, 2])
    for hyper in list_hypers_of(variant):
        value, slope = value_and_slopes(variant, [prompt], hyper)
        other, moved = value_and_slopes(variant, [exchanged], hyper)
        assert_same(other, value)
        assert_same(moved, slope[[0, 1, 3, 2]])


@each_variant
def test_only_what_is_declared_of_the_order_is_read(variant: LossVariant) -> None:
    prompt = SMOOTH_PROMPTS[3]
    ranks = {u: -float(place) for place, u in enumerate(sorted(prompt["u"], reverse=True), 1)}
    by_rank = prompt | {"u": [ranks[u] for u in prompt["u"]]}
    best = prompt | {"u": [float(u == max(prompt["u"])) for u in prompt["u"]]}

    def is_enough(known: Prompt) -> bool:
        return all(
            torch.equal(variant(make_lists([known]), **hyper), variant(make_lists([prompt]), **hyper))
            for hyper in list_hypers_of(variant)
        )

    assert is_enough(by_rank) == (variant.order != "scores")
    assert is_enough(best) == (variant.order == "best")


@each_variant
def test_half_precision_stays_half_precision(variant: LossVariant) -> None:
    for hyper, dtype in itertools.product(list_hypers_of(variant), (torch.bfloat16, torch.float16)):
        assert variant(make_lists(SMOOTH_PROMPTS, dtype=dtype), **hyper).dtype == dtype


@each_variant
def test_scores_of_another_dtype_are_taken(variant: LossVariant) -> None:
    hyper, lists = some_list_hyper(variant), make_lists(SMOOTH_PROMPTS, dtype=torch.float32)
    object.__setattr__(lists, "scores", lists.scores.double())
    assert variant(lists, **hyper).dtype == torch.float32


def test_pl_is_the_negative_log_likelihood_of_drawing_the_ranking_without_replacement() -> None:
    lists = make_lists([SMOOTH_PROMPTS[3]])
    rewards = 0.1 * lists.answers.logratio.detach()
    left, total = lists.scores.argsort(descending=True).tolist(), 0.0
    while len(left) > 1:
        total -= torch.log_softmax(rewards[left], 0)[0].item()
        left = left[1:]
    assert get_loss("pl")(lists, beta=0.1).item() == pytest.approx(total, rel=1e-12)
    assert get_loss("pl")(lists, beta=0.1, pl_reduction="mean").item() == pytest.approx(total / 4, rel=1e-12)


def test_infonca_with_hard_labels_is_top1_and_pl_of_the_best_alone_is_top1() -> None:
    lists = make_lists([SMOOTH_PROMPTS[0], SMOOTH_PROMPTS[2], SMOOTH_PROMPTS[3]])  # without ties for best
    top1 = get_loss("top1")(lists, beta=0.1)
    assert_same(get_loss("infonca")(lists, beta=0.1, infonca_tau=1e-4), top1)
    object.__setattr__(lists, "scores", lists.best.double())
    assert_same(get_loss("pl")(lists, beta=0.1), top1)


def test_rpo_sq_on_all_pairs_is_the_group_centered_regression() -> None:
    from trl_dpo_ext.core.list_pairs import pair_lists

    # Of lists without ties, as tied answers form no pair.
    lists = make_lists([SMOOTH_PROMPTS[0], SMOOTH_PROMPTS[3]])
    paired = pair_lists(lists, "all")
    values = paired.by_prompt(get_loss("rpo_sq")(paired.pairs, beta=0.1, rpo_eta=2.0))
    x = 0.1 * lists.answers.logratio - 2.0 * lists.scores
    centered = lists.sum((x - lists.mean(x)[lists.prompt]) ** 2) * 2 / (lists.sizes - 1)
    assert_same(values, centered)
