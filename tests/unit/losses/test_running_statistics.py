"""Losses that look at the whole batch or remember earlier ones: their state, and several processes."""

from __future__ import annotations

import copy
import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from tests.support.batches import PUBLISHED, gradients, hypers_of, make_pairs, take
from trl_dpo_ext import Need, get_loss, list_losses

VARIANTS = list_losses(reads="pairs")


def assert_same(left, right):
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


def farther(inputs):
    return inputs | {"chosen": [logp + 0.75 for logp in inputs["chosen"]]}


def uneven(seed):
    """A batch whose log-probs use all of their digits."""
    draw = random.Random(seed)
    return PUBLISHED | {side: [logp + draw.gauss(0, 1) for logp in PUBLISHED[side]] for side in ("chosen", "rejected")}


stateful = pytest.mark.parametrize("variant", [v for v in VARIANTS if v.stateful], ids=lambda variant: variant.name)


@stateful
def test_a_restored_state_goes_on_as_if_nothing_had_happened(variant):
    for hyper in hypers_of(variant):
        uninterrupted, restored = variant.make(), variant.make()
        uninterrupted(make_pairs(PUBLISHED), **hyper)
        saved = copy.deepcopy(uninterrupted.state_dict())
        restored.load_state_dict(saved)
        expected = uninterrupted(make_pairs(farther(PUBLISHED)), **hyper)
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


@pytest.mark.parametrize(
    ("running", "hyper", "plain", "plain_hyper"),
    [
        ("bco_pair_delta", {"beta": 0.1}, "bco_pair", {"beta": 0.1}),
        ("beta_dpo", {"beta": 0.1, "beta_dpo_alpha": 0.6}, "sigmoid", {"beta": 0.1}),
        ("alpha_dpo", {"alpha_dpo_beta": 2.5}, "simpo", {"simpo_beta": 2.5, "simpo_gamma_beta_ratio": 0.6}),
    ],
)
def test_evaluation_before_any_training_is_the_loss_without_a_memory(running, hyper, plain, plain_hyper):
    pairs = make_pairs(PUBLISHED, training=False)
    assert_same(get_loss(running)(pairs, **hyper), get_loss(plain)(pairs, **plain_hyper))


@pytest.mark.parametrize(("running", "hyper"), [("beta_dpo", {"beta": 0.1}), ("alpha_dpo", {})])
def test_a_batch_of_one_pair_has_no_spread_and_leaves_the_state_alone(running, hyper):
    loss = get_loss(running).make()
    loss(make_pairs(PUBLISHED), **hyper)
    before = copy.deepcopy(loss.state_dict())
    assert loss(make_pairs(take(PUBLISHED, [0])), **hyper).isfinite().all()
    assert loss.state_dict() == before


@stateful
def test_two_losses_of_one_variant_do_not_share_a_state(variant):
    for hyper in hypers_of(variant):
        first, second = variant.make(), variant.make()
        untouched = copy.deepcopy(second.state_dict())
        first(make_pairs(PUBLISHED), **hyper)
        assert second.state_dict() == untouched


# --- several processes ----------------------------------------------------------------------------------------------

across_ranks = pytest.mark.parametrize(
    "variant", [v for v in VARIANTS if Need.BATCH in v.needs and v.order_preserving], ids=lambda variant: variant.name
)


def on_two_ranks(variant, batches, hyper):
    """Values and gradients of the last batch, when each of two processes has one half of every batch."""
    exchange, barrier = {}, threading.Barrier(2, timeout=20)

    def gather_of(rank):
        def gather(part):
            exchange[rank] = part.detach()
            barrier.wait()
            whole = torch.cat([exchange[0], exchange[1]])
            barrier.wait()
            return whole

        return gather

    def run(rank):
        loss = variant.make()
        for inputs in batches:
            half = len(inputs["chosen"]) // 2
            rows = list(range(rank * half, (rank + 1) * half))
            pairs = make_pairs(take(inputs, rows), gather=gather_of(rank), rank=rank)
            values = loss(pairs, **hyper)
        return values, *gradients(values.sum(), pairs)

    with ThreadPoolExecutor(2) as processes:
        ranks = list(processes.map(run, range(2)))
    return [torch.cat(parts) for parts in zip(*ranks, strict=True)]


def on_one_rank(variant, batches, hyper):
    loss = variant.make()
    for inputs in batches:
        pairs = make_pairs(inputs)
        values = loss(pairs, **hyper)
    return [values, *gradients(values.sum(), pairs)]


@across_ranks
def test_statistics_are_those_of_all_ranks(variant):
    batches = [PUBLISHED, farther(PUBLISHED)]
    for hyper in hypers_of(variant):
        for alone, together in zip(
            on_one_rank(variant, batches, hyper), on_two_ranks(variant, batches, hyper), strict=True
        ):
            torch.testing.assert_close(alone, together, rtol=1e-9, atol=1e-12)


def test_all_ranks_of_beta_dpo_keep_the_same_pairs():
    hyper = {"beta": 0.1, "beta_dpo_alpha": 0.6, "beta_dpo_rho": 0.5}
    batches = [PUBLISHED, farther(PUBLISHED)]
    values, *_ = on_two_ranks(get_loss("beta_dpo"), batches, hyper)
    assert_same(values, on_one_rank(get_loss("beta_dpo"), batches, hyper)[0])
    assert (values != 0).sum() == 2


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_pairs_of_all_ranks_are_sorted_together_on_request(name, label_smoothing):
    hyper = {"beta": 0.1, "label_smoothing": label_smoothing}
    batches = [take(PUBLISHED, [0, 3, 1, 2])]
    separate = on_two_ranks(get_loss(name), batches, {**hyper, "aot_global": False})
    together = on_two_ranks(get_loss(name), batches, {**hyper, "aot_global": True})
    alone = on_one_rank(get_loss(name), batches, {**hyper, "aot_global": False})
    for ours, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(ours.sort().values, expected.sort().values, rtol=1e-9, atol=1e-12)
    for ours, expected in zip(together[1:], alone[1:], strict=True):  # gradients belong to pairs
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(separate[0].mean(), alone[0].mean())


# --- what each running state holds ----------------------------------------------------------------------------------


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


MANY = {
    "chosen": [-10.0 - pair % 3 for pair in range(10)],
    "rejected": [-12.0 - pair % 2 for pair in range(10)],
    "ref_chosen": [-10.5] * 10,
    "ref_rejected": [-12.0] * 9 + [-60.0],  # the last pair's margin is far from the others'
    "chosen_lengths": [5] * 10,
    "rejected_lengths": [5] * 10,
    "columns": {},
}


def test_beta_dpo_trains_on_the_pairs_it_keeps_with_one_beta_for_all():
    loss = get_loss("beta_dpo").make()
    loss(make_pairs(MANY), beta=0.1, beta_dpo_alpha=0.6, beta_dpo_rho=0.2)
    pairs = make_pairs(farther(MANY))
    values = loss(pairs, beta=0.1, beta_dpo_alpha=0.6, beta_dpo_rho=0.2)
    kept = values != 0
    assert kept.sum() == 8
    first, second = make_pairs(MANY).margin.mean(), pairs.margin.mean()
    running = (0.9 * first + second) / 1.9  # momentum 0.9, corrected for the start at zero
    used = 0.1 * (1 + 0.6 * (pairs.margin[kept].mean() - running))
    expected = -torch.nn.functional.logsigmoid(used * pairs.margin[kept])
    assert_same(values[kept], expected * 10 / 8)
    assert_same(values.mean(), expected.mean())


def test_beta_dpo_leaves_out_outliers_first_and_others_in_turn():
    loss = get_loss("beta_dpo").make()
    kept = torch.stack([loss(make_pairs(MANY), beta=0.1, beta_dpo_rho=0.2) != 0 for _ in range(50)])
    assert kept[:, 9].sum() <= 10
    assert (kept[:, :9].sum(dim=0) >= 30).all()
    assert (kept[:, :9].sum(dim=0) < 50).all()


def test_beta_dpo_does_not_touch_the_random_numbers_of_others():
    before = torch.get_rng_state()
    get_loss("beta_dpo")(make_pairs(MANY), beta=0.1, beta_dpo_rho=0.2)
    assert torch.equal(torch.get_rng_state(), before)


def test_beta_dpo_keeps_every_pair_in_evaluation():
    loss = get_loss("beta_dpo").make()
    loss(make_pairs(MANY), beta=0.1, beta_dpo_rho=0.5)
    assert (loss(make_pairs(MANY, training=False), beta=0.1, beta_dpo_rho=0.5) != 0).all()


def test_alpha_dpo_starts_without_a_bias_towards_zero():
    # After one batch the averages are that batch's own: its z-scores have mean 0 and standard deviation 1.
    pairs = make_pairs(PUBLISHED)
    values = get_loss("alpha_dpo")(pairs, alpha_dpo_beta=1.0, alpha_dpo_gamma_ratio=0.0, alpha_dpo_alpha=1.0)
    margins = -torch.log(torch.expm1(values))  # the argument of the log-sigmoid
    z = pairs.chosen.avg_logps - pairs.rejected.avg_logps - margins
    assert z.mean().item() == pytest.approx(0.0, abs=1e-9)
    assert z.std().item() == pytest.approx(1.0, abs=1e-9)


# --- schedules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("course", ["increase_linear", "decrease_linear"])
def test_a_schedule_of_dpo_shift_moves_the_weight_from_end_to_end(course, progress):
    risen = progress if course == "increase_linear" else 1 - progress
    pairs = replace(make_pairs(PUBLISHED), progress=progress)
    ends = {"dpo_shift_min": 0.5, "dpo_shift_max": 0.9}
    scheduled = get_loss("dpo_shift")(pairs, beta=0.1, dpo_shift_schedule=course, **ends)
    torch.testing.assert_close(scheduled, get_loss("dpo_shift")(pairs, beta=0.1, dpo_shift_lambda=0.5 + 0.4 * risen))


@stateful
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_state_that_went_through_json_goes_on_to_the_bit(variant, dtype):
    """Floats of Python are float64: what is computed with them rounds in another way than float32."""
    batches = [uneven(step) for step in range(24)]
    for hyper in hypers_of(variant):
        whole, resumed = variant.make(), variant.make()
        for batch in batches[:8]:
            whole(make_pairs(batch, dtype=dtype), **hyper)
        resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
        for batch in batches[8:]:
            expected = whole(make_pairs(batch, dtype=dtype), **hyper)
            assert torch.equal(resumed(make_pairs(batch, dtype=dtype), **hyper), expected)
            assert resumed.state_dict() == whole.state_dict()


@stateful
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_fresh_state_that_went_through_json_is_a_fresh_state(variant, dtype):
    for hyper in hypers_of(variant):
        fresh, restored = variant.make(), variant.make()
        restored.load_state_dict(json.loads(json.dumps(fresh.state_dict())))
        pairs = make_pairs(PUBLISHED, dtype=dtype)
        assert torch.equal(restored(pairs, **hyper), fresh(pairs, **hyper))
        assert restored.state_dict() == fresh.state_dict()


def test_states_of_former_versions_have_no_dtype():
    loss = get_loss("beta_dpo").make()
    loss.load_state_dict({"mean": 0.5, "std": 0.25, "batches": 3})
    assert loss.state_dict() == {"mean": 0.5, "std": 0.25, "batches": 3, "dtype": "float32"}
