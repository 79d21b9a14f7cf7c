"""What holds for every variant on any batch: shapes, dtypes, independence of pairs, invariances, and running states."""

from __future__ import annotations

import copy

import pytest
import torch
from batches import PUBLISHED, hypers_of, make_pairs, take
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_dpo_ext import Need, get_loss, list_losses

VARIANTS = list_losses()
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
few = settings(max_examples=12, deadline=None, derandomize=True)

COLUMNS = {
    "score_chosen": st.floats(3.0, 6.0),
    "score_rejected": st.floats(0.0, 2.9),
    "p_chosen": st.floats(0.0, 1.0),
    "delta_r": st.floats(0.0, 1.0),
    "margin": st.floats(-1.0, 4.0),
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
    """Values of a fresh loss; random choices, where a variant makes any, are the same at every call."""
    torch.manual_seed(0)
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


# Differences of a policy's and a reference's log-probs do not see a constant on both. These see one all the same:
# a likelihood term.
READ_THE_POLICY_ALONE = {"dpo_nll"}


@pytest.mark.parametrize(
    "variant", [v for v in VARIANTS if Need.REFERENCE in v.needs], ids=lambda variant: variant.name
)
@few
@given(inputs=batches(min_size=2), constants=st.tuples(st.floats(-5.0, -0.5), st.floats(-4.0, -0.25)))
def test_a_constant_on_policy_and_reference_of_a_side_changes_nothing(variant, inputs, constants):
    # Losses that sort margins see a constant per pair, but not one for all pairs.
    ramp = 0.0 if not variant.aligned else 1.0
    pairs = range(len(inputs["chosen"]))
    moved = shifted(
        inputs,
        chosen=[constants[0] - ramp * pair for pair in pairs],
        rejected=[constants[1] - 0.5 * ramp * pair for pair in pairs],
    )
    for hyper in hypers_of(variant):
        before, after = evaluate(variant, inputs, hyper), evaluate(variant, moved, hyper)
        if variant.name in READ_THE_POLICY_ALONE:
            assert not torch.allclose(before, after)
        else:
            assert_same(before, after)


@pytest.mark.parametrize(
    "variant", [v for v in VARIANTS if Need.REFERENCE not in v.needs], ids=lambda variant: variant.name
)
@few
@given(inputs=batches())
def test_without_a_need_of_a_reference_the_reference_does_not_matter(variant, inputs):
    moved = inputs | {"ref_chosen": inputs["ref_rejected"], "ref_rejected": [-1.0] * len(inputs["chosen"])}
    for hyper in hypers_of(variant):
        assert torch.equal(evaluate(variant, inputs, hyper), evaluate(variant, moved, hyper))


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.per_pair], ids=lambda variant: variant.name)
@few
@given(inputs=batches(min_size=2))
def test_a_pair_alone_has_the_value_it_has_in_company(variant, inputs):
    for hyper in hypers_of(variant):
        together = evaluate(variant, inputs, hyper)
        alone = [evaluate(variant, take(inputs, [pair]), hyper) for pair in range(len(together))]
        assert_same(together, torch.cat(alone))


@pytest.mark.parametrize("variant", [v for v in VARIANTS if not v.per_pair], ids=lambda variant: variant.name)
def test_company_matters_where_it_is_declared_to(variant):
    def depends_on_company(hyper):
        together = evaluate(variant, PUBLISHED, hyper)
        alone = [evaluate(variant, take(PUBLISHED, [pair]), hyper) for pair in range(len(together))]
        return not torch.allclose(together, torch.cat(alone))

    assert any(depends_on_company(hyper) for hyper in hypers_of(variant))


@each_variant
@few
@given(inputs=batches(min_size=2), data=st.data())
def test_values_follow_their_pairs_exactly_where_declared(variant, inputs, data):
    order = data.draw(st.permutations(range(len(inputs["chosen"]))))
    for hyper in hypers_of(variant):
        before, after = evaluate(variant, inputs, hyper), evaluate(variant, take(inputs, order), hyper)
        assert_same(before[list(order)] if variant.aligned else before, after)


@each_variant
def test_nothing_that_goes_in_is_changed(variant):
    for hyper in hypers_of(variant):
        pairs = make_pairs(PUBLISHED)
        tensors = [
            getattr(side, name)
            for side in (pairs.chosen, pairs.rejected)
            for name in ("logps", "ref_logps", "score", "lengths", "token_logps", "mask", "ref_token_logps")
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


def farther(inputs):
    return inputs | {"chosen": [logp + 0.75 for logp in inputs["chosen"]]}


stateful = pytest.mark.parametrize("variant", [v for v in VARIANTS if v.stateful], ids=lambda variant: variant.name)


@stateful
def test_a_restored_state_goes_on_as_if_nothing_had_happened(variant):
    for hyper in hypers_of(variant):
        uninterrupted, restored = variant.make(), variant.make()
        uninterrupted(make_pairs(PUBLISHED), **hyper)
        saved = copy.deepcopy(uninterrupted.state_dict())
        restored.load_state_dict(saved)
        torch.manual_seed(1)
        expected = uninterrupted(make_pairs(farther(PUBLISHED)), **hyper)
        torch.manual_seed(1)
        assert torch.equal(restored(make_pairs(farther(PUBLISHED)), **hyper), expected)
        assert restored.state_dict() == uninterrupted.state_dict()
        assert restored.state_dict() != saved


@stateful
def test_a_state_moves_with_the_batches_of_training(variant):
    for hyper in hypers_of(variant):
        fresh, experienced = variant.make(), variant.make()
        experienced(make_pairs(farther(PUBLISHED)), **hyper)
        assert fresh.state_dict() != experienced.state_dict()
        assert not torch.equal(fresh(make_pairs(PUBLISHED), **hyper), experienced(make_pairs(PUBLISHED), **hyper))


@stateful
def test_evaluation_reads_the_state_and_leaves_it(variant):
    for hyper in hypers_of(variant):
        loss = variant.make()
        loss(make_pairs(PUBLISHED), **hyper)
        before = copy.deepcopy(loss.state_dict())
        values = loss(make_pairs(farther(PUBLISHED), training=False), **hyper)
        assert loss.state_dict() == before
        assert values.isfinite().all()
        assert torch.equal(values, loss(make_pairs(farther(PUBLISHED), training=False), **hyper))


@stateful
def test_evaluation_before_any_training_is_finite(variant):
    for hyper in hypers_of(variant):
        assert variant.make()(make_pairs(PUBLISHED, training=False), **hyper).isfinite().all()


@stateful
def test_two_losses_of_one_variant_do_not_share_a_state(variant):
    for hyper in hypers_of(variant):
        first, second = variant.make(), variant.make()
        untouched = copy.deepcopy(second.state_dict())
        first(make_pairs(PUBLISHED), **hyper)
        assert second.state_dict() == untouched


@stateful
def test_statistics_are_those_of_all_ranks(variant):
    # Each of two ranks sees half of the batch and gathers the whole: both get what one rank with everything gets.
    for hyper in hypers_of(variant):
        whole = make_pairs(PUBLISHED)
        torch.manual_seed(0)
        expected = variant.make()(whole, **hyper)
        halves = []
        for rows in ([0, 1], [2, 3]):
            torch.manual_seed(0)
            halves.append(variant.make()(make_pairs(take(PUBLISHED, rows), gather=gather_from(whole, rows)), **hyper))
        assert_same(torch.cat(halves), expected)


def gather_from(whole, rows):
    """Stands for a collective: recognises a rank's part of a known statistic and gives the statistic of all ranks."""
    known = [whole.chosen.logratio, whole.rejected.logratio, whole.margin]
    known += [whole.chosen.logps, whole.rejected.logps, whole.chosen.ref_logps, whole.rejected.ref_logps]

    def gather(part):
        assert not part.requires_grad
        for statistic in known:
            scale = (part / statistic[rows]).detach()
            if torch.allclose(scale, scale[0].expand_as(scale)):
                return (statistic * scale[0]).detach()
        raise AssertionError("a statistic this test does not know")

    return gather


def test_the_running_shift_is_the_mean_of_all_rewards_so_far():
    loss = get_loss("bco_pair_delta").make()
    loss(make_pairs(PUBLISHED), beta=0.1)
    second = make_pairs(farther(PUBLISHED))
    rewards = [
        0.1 * side.logratio for pairs in (make_pairs(PUBLISHED), second) for side in (pairs.chosen, pairs.rejected)
    ]
    delta = torch.cat(rewards).mean()
    expected = -torch.nn.functional.logsigmoid(0.1 * second.chosen.logratio - delta)
    expected = expected - torch.nn.functional.logsigmoid(delta - 0.1 * second.rejected.logratio)
    assert_same(loss(second, beta=0.1), expected)
