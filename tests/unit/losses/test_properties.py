"""What holds for every variant on any batch: shapes, dtypes, independence of pairs, and invariances."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.batches import AWKWARD, PUBLISHED, hypers_of, make_pairs, take
from trl_dpo_ext import get_loss, list_losses

VARIANTS = list_losses(reads="pairs")
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
few = settings(max_examples=12, deadline=None, derandomize=True)

COLUMNS = {
    "score_chosen": st.floats(3.0, 6.0),
    "score_rejected": st.floats(0.0, 2.9),
    "p_chosen": st.floats(0.0, 1.0),
    "delta_r": st.floats(0.0, 1.0),
    "margin": st.floats(-1.0, 4.0),
    "quantile_chosen": st.floats(0.02, 1.0),
    "quantile_rejected": st.floats(0.02, 1.0),
}


@st.composite
def batches(draw, min_size=1, max_size=5):
    """Batches of any size: lengths from 1, answers from sure to unlikely, policies near and far from the reference."""
    size = draw(st.integers(min_size, max_size))

    def per_pair(values):
        return draw(st.lists(values, min_size=size, max_size=size))

    batch = {"columns": {name: per_pair(values) for name, values in COLUMNS.items()}}
    for side in ("chosen", "rejected"):
        batch[f"{side}_lengths"] = per_pair(st.integers(1, 9))
        averages = per_pair(st.floats(-6.0, -0.01))
        batch[f"ref_{side}"] = [average * n for average, n in zip(averages, batch[f"{side}_lengths"], strict=True)]
        gaps = per_pair(st.floats(-4.0, 4.0))
        batch[side] = [min(-0.01, ref + gap) for ref, gap in zip(batch[f"ref_{side}"], gaps, strict=True)]
    return batch


def evaluate(variant, inputs, hyper, **options):
    """Values of a loss that has seen no other batch."""
    return variant.make()(make_pairs(inputs, **options), **hyper)


def assert_same(left, right):
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


def shifted(inputs, **constants):
    """The same number added to policy and reference of a side, per pair."""
    moved = dict(inputs)
    for side, values in constants.items():
        for name in (side, f"ref_{side}"):
            moved[name] = [logp + value for logp, value in zip(inputs[name], values, strict=True)]
    return moved


@each_variant
@few
@given(inputs=batches())
def test_one_finite_value_per_pair_in_the_dtype_of_the_log_probs(variant, inputs):
    for hyper in hypers_of(variant):
        for dtype in (torch.float32, torch.float64):
            values = evaluate(variant, inputs, hyper, dtype=dtype)
            assert values.shape == (len(inputs["chosen"]),)
            assert values.dtype == dtype
            assert values.isfinite().all()


@each_variant
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_stays_half_precision(variant, dtype):
    for hyper in hypers_of(variant):
        assert evaluate(variant, PUBLISHED, hyper, dtype=dtype).dtype == dtype


# Losses of log-ratios do not see a constant on policy and reference. These need a reference and see it all the same:
# a likelihood term, a policy margin of another weight than the reference's, a reference in the target margin alone, a weight.
READ_THE_POLICY_ALONE = {"dpo_nll", "hdpo", "alpha_dpo", "rainbowpo", "uni_dpo"}


@pytest.mark.parametrize(
    "variant",
    [v for v in VARIANTS if v.needs_reference and v.name not in READ_THE_POLICY_ALONE],
    ids=lambda variant: variant.name,
)
@few
@given(inputs=batches(), constants=st.tuples(st.floats(-5.0, 5.0), st.floats(-5.0, 5.0)))
def test_a_constant_on_policy_and_reference_of_a_side_changes_nothing(variant, inputs, constants):
    # Losses that sort margins do see another constant for every pair, but not one for all pairs.
    grows = 1.0 if variant.order_preserving else 0.0
    pairs = range(len(inputs["chosen"]))
    moved = shifted(
        inputs,
        chosen=[constants[0] - grows * pair for pair in pairs],
        rejected=[constants[1] + 0.5 * grows * pair for pair in pairs],
    )
    for hyper in hypers_of(variant):
        assert_same(evaluate(variant, inputs, hyper), evaluate(variant, moved, hyper))


@pytest.mark.parametrize("name", sorted(READ_THE_POLICY_ALONE))
def test_the_exceptions_do_see_a_constant_on_policy_and_reference(name):
    moved = shifted(PUBLISHED, chosen=[-1.0, -2.0, -3.0, -4.0], rejected=[-2.0] * 4)
    for hyper in hypers_of(get_loss(name)):
        if hyper.get("uni_dpo_gamma") == 0:  # switches its weight off
            continue
        assert not torch.allclose(evaluate(get_loss(name), PUBLISHED, hyper), evaluate(get_loss(name), moved, hyper))


@pytest.mark.parametrize("variant", [v for v in VARIANTS if not v.needs_reference], ids=lambda variant: variant.name)
@few
@given(inputs=batches())
def test_without_a_need_of_a_reference_the_reference_does_not_matter(variant, inputs):
    moved = inputs | {"ref_chosen": inputs["ref_rejected"], "ref_rejected": [-1.0] * len(inputs["chosen"])}
    for hyper in hypers_of(variant):
        assert torch.equal(evaluate(variant, inputs, hyper), evaluate(variant, moved, hyper))


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.independent_pairs], ids=lambda variant: variant.name)
@few
@given(inputs=batches(min_size=2), data=st.data())
def test_a_pair_alone_has_the_value_it_has_in_company(variant, inputs, data):
    pair = data.draw(st.integers(0, len(inputs["chosen"]) - 1))
    for hyper in hypers_of(variant):
        together = evaluate(variant, inputs, hyper)
        assert_same(together[pair], evaluate(variant, take(inputs, [pair]), hyper)[0])


@pytest.mark.parametrize("variant", [v for v in VARIANTS if not v.independent_pairs], ids=lambda variant: variant.name)
def test_company_matters_where_it_is_declared_to(variant):
    def value(inputs, hyper):
        loss = variant.make()
        if variant.stateful:
            loss(make_pairs(AWKWARD), **hyper)
        return loss(make_pairs(inputs), **hyper)

    def depends_on_company(hyper):
        together = value(PUBLISHED, hyper)
        alone = [value(take(PUBLISHED, [pair]), hyper) for pair in range(len(together))]
        return not torch.allclose(together, torch.cat(alone))

    assert any(depends_on_company(hyper) for hyper in hypers_of(variant))


@each_variant
@few
@given(inputs=batches(min_size=2), data=st.data())
def test_values_follow_their_pairs_exactly_where_declared(variant, inputs, data):
    order = data.draw(st.permutations(range(len(inputs["chosen"]))))
    for hyper in hypers_of(variant):
        before, after = evaluate(variant, inputs, hyper), evaluate(variant, take(inputs, order), hyper)
        assert_same(before[list(order)] if variant.order_preserving else before, after)


@each_variant
def test_nothing_that_goes_in_is_changed(variant):
    for hyper in hypers_of(variant):
        pairs = make_pairs(PUBLISHED)
        tensors = [
            getattr(side, name)
            for side in (pairs.chosen, pairs.rejected)
            for name in (
                "logps",
                "ref_logps",
                "score",
                "lengths",
                "token_logps",
                "mask",
                "ref_token_logps",
                "ref_entropy",
                "token_kl",
            )
        ] + list(pairs.columns.values())
        before = [tensor.detach().clone() for tensor in tensors]
        given_hyper = copy.deepcopy(hyper)
        variant.make()(pairs, **hyper)
        assert hyper == given_hyper
        for tensor, copied in zip(tensors, before, strict=True):
            assert torch.equal(tensor, copied)


@each_variant
def test_a_pure_variant_gives_the_same_value_twice(variant):
    for hyper in hypers_of(variant):
        assert torch.equal(evaluate(variant, PUBLISHED, hyper), evaluate(variant, PUBLISHED, hyper))
