"""Every variant has the right gradient: stopped where the papers stop it, and finite wherever training goes."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.support.batches import AWKWARD, GOLDEN, PUBLISHED, SMOOTH, gradients, hypers_of, make_pairs, run_case, take
from trl_dpo_ext import get_loss, list_losses
from trl_dpo_ext.core.transforms import F_DIVERGENCES

each_variant = pytest.mark.parametrize("variant", list_losses(reads="pairs"), ids=lambda variant: variant.name)

# Variants of which a part is a constant to the optimizer although it is computed from the policy.
STOP_GRADIENT = {
    "tdpo2",
    "bco_pair_delta",
    "alpha_dpo",
    "beta_dpo",
    "kldpo",
    "kto_pair",
    "gamma_po",
    "focalpo",
    "arpo",
} | {"amapo"}


def loss_and_gradients(variant, inputs, hyper, dtype=torch.float64, f_divergence=None):
    pairs = make_pairs(inputs, dtype=dtype, f_divergence=f_divergence)
    loss = variant.make()(pairs, **hyper)
    return loss, *gradients(loss.mean(), pairs)


def assert_finite(variant, inputs, hyper, f_divergence=None):
    loss, *sides = loss_and_gradients(variant, inputs, hyper, torch.float32, f_divergence)
    assert loss.isfinite().all(), (variant.name, hyper, loss)
    for gradient in sides:
        assert gradient.isfinite().all(), (variant.name, hyper, gradient)


def one_pair(chosen, rejected, ref_chosen=0.0, ref_rejected=0.0, lengths=(1, 1)):
    return {
        "chosen": [chosen],
        "rejected": [rejected],
        "ref_chosen": [ref_chosen],
        "ref_rejected": [ref_rejected],
        "chosen_lengths": [lengths[0]],
        "rejected_lengths": [lengths[1]],
        "columns": {name: values[:1] for name, values in PUBLISHED["columns"].items()},
    }


@each_variant
def test_the_gradient_is_the_oracles_with_stop_gradients_held_constant(variant):
    for case in GOLDEN["cases"][variant.name]:
        if "gradient" not in case:  # the oracle differentiates reverse KL; other scores have their own test
            continue
        loss, pairs = run_case(variant, case, torch.float64)
        for gradient, expected in zip(gradients(loss.mean(), pairs), case["gradient"].values(), strict=True):
            smooth = [pair for pair, value in enumerate(expected) if value is not None]
            assert smooth
            assert gradient[smooth].tolist() == pytest.approx([expected[pair] for pair in smooth], rel=1e-9, abs=1e-12)


@each_variant
def test_automatic_and_numeric_gradient_differ_exactly_where_a_gradient_is_stopped(variant):
    def agree(hyper):
        def loss(chosen, rejected):
            fresh = variant.make()
            if variant.stateful:
                fresh(make_pairs(PUBLISHED), **hyper)
            return fresh(make_pairs(SMOOTH, chosen=chosen, rejected=rejected), **hyper).mean()

        pairs = make_pairs(SMOOTH)
        leaves = (pairs.chosen.logps, pairs.rejected.logps)
        return torch.autograd.gradcheck(loss, leaves, atol=1e-8, rtol=1e-5, raise_exception=False)

    agreements = [agree(hyper) for hyper in hypers_of(variant)]
    assert all(agreements) == (variant.name not in STOP_GRADIENT), (variant.name, agreements)


@each_variant
@pytest.mark.parametrize("pairs", [1, 4], ids=["one pair", "four pairs"])
def test_the_first_step_where_policy_and_reference_are_equal_is_finite(variant, pairs):
    inputs = take(PUBLISHED, list(range(pairs)))
    inputs |= {"ref_chosen": inputs["chosen"], "ref_rejected": inputs["rejected"]}
    for hyper in hypers_of(variant):
        assert_finite(variant, inputs, hyper)


@each_variant
@pytest.mark.parametrize("size", [100.0, 1000.0])
def test_log_ratios_of_any_size_give_finite_gradients(variant, size):
    far = {
        "chosen": [-size, -2.0, -size, -2.0],
        "rejected": [-2.0, -size, -size, -2.0],
        "ref_chosen": [-2.0, -size, -2.0, -size],
        "ref_rejected": [-size, -2.0, -2.0, -size],
        "chosen_lengths": [4, 3, 50, 1],
        "rejected_lengths": [2, 5, 10, 1],
        "columns": PUBLISHED["columns"],
    }
    for hyper in hypers_of(variant):
        assert_finite(variant, far, hyper)
        for pair in range(4):
            assert_finite(variant, take(far, [pair]), hyper)


@each_variant
def test_a_completion_that_truncation_has_emptied_gives_finite_gradients(variant):
    for side, rows in itertools.product(("chosen", "rejected"), ([0, 1, 2], [0])):
        emptied = take(PUBLISHED, rows)
        emptied[side] = [0.0, *emptied[side][1:]]
        emptied[f"ref_{side}"] = [0.0, *emptied[f"ref_{side}"][1:]]
        emptied[f"{side}_lengths"] = [0, *emptied[f"{side}_lengths"][1:]]
        for hyper in hypers_of(variant):
            assert_finite(variant, emptied, hyper)


@pytest.mark.parametrize("f_divergence_type", F_DIVERGENCES)
@pytest.mark.parametrize(
    "variant", [v for v in list_losses(reads="pairs") if v.f_divergence], ids=lambda variant: variant.name
)
def test_every_f_divergence_gives_finite_gradients_far_from_the_reference(variant, f_divergence_type):
    far = [one_pair(-200.0, -2.0, -100.0, -2.0), one_pair(-2.0, -200.0, -2.0, -100.0), one_pair(-1.0, -1.0, -300.0)]
    for hyper in hypers_of(variant):
        for inputs in (*far, AWKWARD):
            assert_finite(variant, inputs, hyper, {"f_divergence_type": f_divergence_type})


NEAR_ONE = (0.0, -1e-12, -1e-9, -1e-8, -1e-7, -1e-6, -1e-3)


@pytest.mark.parametrize("chosen", NEAR_ONE)
@pytest.mark.parametrize("rejected", [*NEAR_ONE, -2.0])
def test_orpo_survives_completions_that_the_model_is_sure_of(chosen, rejected):
    assert_finite(get_loss("orpo"), one_pair(chosen, rejected), {"orpo_lambda": 0.1})
    assert_finite(get_loss("orpo"), one_pair(rejected, chosen), {"orpo_lambda": 0.1})


def test_orpo_still_tells_sure_completions_apart():
    surer = get_loss("orpo")(make_pairs(one_pair(-1e-6, -2.0)), orpo_lambda=0.1)
    sure = get_loss("orpo")(make_pairs(one_pair(-1e-3, -2.0)), orpo_lambda=0.1)
    assert surer < sure


def test_dpop_starts_with_the_gradient_of_dpo_on_the_chosen_side():
    # At a log-ratio of exactly 0, max(0, .) has slopes from 0 to 1, and lambda = 50 multiplies them: 0 is meant.
    _, chosen, rejected = loss_and_gradients(
        get_loss("dpop"), one_pair(-12.0, -15.0, -12.0, -15.0), {"beta": 0.1, "dpop_lambda": 50.0}
    )
    assert chosen.item() == pytest.approx(-0.05)
    assert rejected.item() == pytest.approx(0.05)


def test_minor_dpo_starts_with_the_gradient_of_dpo_on_the_rejected_side():
    # The other choice at a log-ratio of exactly 0 would leave the rejected side at the reference for ever.
    _, chosen, rejected = loss_and_gradients(get_loss("minor_dpo"), one_pair(-12.0, -15.0, -12.0, -15.0), {"beta": 0.1})
    assert chosen.item() == pytest.approx(-0.05)
    assert rejected.item() == pytest.approx(0.05)


def test_bpo_starts_with_half_of_the_gradient_on_either_side():
    hyper = {"beta": 0.1, "bpo_alpha": 0.3, "bpo_link": "hinge"}
    _, chosen, rejected = loss_and_gradients(get_loss("bpo"), one_pair(-12.0, -15.0, -12.0, -15.0), hyper)
    assert chosen.item() == pytest.approx(-0.05)
    assert rejected.item() == pytest.approx(0.5 * 0.1 * 0.3)


def test_an_unlikely_answer_overflows_no_exponential():
    assert_finite(get_loss("discopop"), one_pair(-1000.0, -1.0), {"beta": 0.1, "discopop_tau": 0.05})
    assert_finite(get_loss("discopop"), one_pair(-100.0, -1.0, -1.0, -1.0), {"beta": 1.0, "discopop_tau": 0.05})
    assert_finite(get_loss("gpo_exp"), one_pair(-1000.0, -1.0), {"beta": 0.5})
    assert_finite(get_loss("focalpo"), one_pair(-1000.0, -1.0), {"beta": 1.0, "focalpo_gamma": 1.0})
    assert_finite(get_loss("alphapo"), one_pair(-1e5, -1e4), {"alphapo_alpha": 0.25})
    assert_finite(get_loss("alphapo"), one_pair(-1e5, -1e4), {"alphapo_alpha": -0.25})


@pytest.mark.parametrize("clip", [None, 0.25])
def test_a_likely_answer_overflows_no_exponential_of_chipo(clip):
    hyper = {"beta": 0.1, "chipo_clip": clip}
    assert_finite(get_loss("chipo"), one_pair(-1.0, -1.0, -101.0, -1.0), hyper)
    assert_finite(get_loss("chipo"), one_pair(-1.0, -1.0, -101.0, -101.0), hyper)
    assert_finite(get_loss("chipo"), one_pair(-1.0, -1.0, -1.0, -101.0), hyper)


def test_a_score_gap_that_is_not_positive_gives_no_infinity():
    inputs = take(PUBLISHED, [0, 1, 2])
    inputs["columns"] |= {"score_chosen": [2.0, 1.0, 3.0], "score_rejected": [2.0, 4.0, 1.0]}
    assert_finite(get_loss("odpo"), inputs, {"beta": 0.1, "odpo_transform": "log"})


def test_a_longer_chosen_answer_is_pushed_less_by_rdpo():
    shorter = one_pair(-12.0, -15.0, -13.0, -14.0, lengths=(4, 10))
    longer = one_pair(-12.0, -15.0, -13.0, -14.0, lengths=(30, 10))
    few, push_few, _ = loss_and_gradients(get_loss("rdpo"), shorter, {"beta": 0.1, "rdpo_alpha": 0.1})
    many, push_many, _ = loss_and_gradients(get_loss("rdpo"), longer, {"beta": 0.1, "rdpo_alpha": 0.1})
    assert many < few
    assert abs(push_many) < abs(push_few)
