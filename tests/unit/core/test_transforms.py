"""From token log-probs to one number per side, to a score against the reference, to the weight of a pair."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import golden
from tests.golden import oracle_transforms
from tests.golden.oracle import ls, mpf
from trl_dpo_ext.core.transforms import F_DIVERGENCES, f_divergence_score, sum_logps, wpo_weights

PUBLISHED = json.loads((Path(golden.__file__).parent / "published.json").read_text())["stages"]
few = settings(max_examples=40, deadline=None, derandomize=True)

logps = st.floats(-12.0, -1e-3)
completions = st.lists(logps, min_size=1, max_size=7)


def rows(chosen, rejected):
    """Token tensors of several pairs, chosen half first; completions start behind prompts of 0, 1 or 2 tokens."""
    sides = [*chosen, *rejected]
    width = max(map(len, sides)) + 2
    tokens, mask = torch.zeros(len(sides), width, dtype=torch.float64), torch.zeros(len(sides), width, dtype=torch.bool)
    for row, side in enumerate(sides):
        start = row % 3
        tokens[row, start : start + len(side)] = torch.tensor(side, dtype=torch.float64)
        mask[row, start : start + len(side)] = True
    return tokens, mask


def published_tokens(model):
    """Log-probs of the labels, and of each position the log of the sum of squared probabilities."""
    sides = [PUBLISHED["token_fixture"][side] for side in ("w", "l")]
    taken = [[math.log(p[y]) for p, y in zip(side[model], side["y"], strict=True)] for side in sides]
    squared = [[math.log(sum(q * q for q in p)) for p in side[model]] for side in sides]
    return taken, squared


def dpo(policy, reference, ld_alpha):
    (pi_w, pi_l), (ref_w, ref_l) = sum_logps(*policy, ld_alpha), sum_logps(*reference, ld_alpha)
    return -torch.nn.functional.logsigmoid(0.1 * (pi_w - ref_w - pi_l + ref_l))


def close(value, expected):
    assert value == pytest.approx(float(expected), rel=1e-10, abs=1e-12)


# --- sum ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ld_alpha", "name"), [(None, "sigmoid"), (1.0, "sigmoid"), (0.5, "ld_alpha=0.5")])
def test_dpo_on_reduced_tokens_is_the_published_number(ld_alpha, name):
    (chosen, rejected), _ = published_tokens("pi")
    (ref_chosen, ref_rejected), _ = published_tokens("ref")
    loss = dpo(rows([chosen], [rejected]), rows([ref_chosen], [ref_rejected]), ld_alpha)
    assert loss.item() == pytest.approx(PUBLISHED[name], rel=1e-12)


def test_the_oracles_dpo_on_tokens_is_the_published_number():
    (pi_w, pi_l), (ref_w, ref_l) = (
        oracle_transforms.sum_logps(*published_tokens(model)[0], 0.5) for model in ("pi", "ref")
    )
    assert float(-ls(mpf(0.1) * (pi_w - ref_w - pi_l + ref_l))) == pytest.approx(PUBLISHED["ld_alpha=0.5"], rel=1e-12)


@few
@given(
    pairs=st.lists(st.tuples(completions, completions), min_size=1, max_size=4),
    ld_alpha=st.one_of(st.none(), st.floats(0.0, 1.0)),
)
def test_each_side_is_reduced_as_the_oracle_does(pairs, ld_alpha):
    chosen, rejected = zip(*pairs, strict=True)
    reduced = sum_logps(*rows(chosen, rejected), ld_alpha)
    expected = [oracle_transforms.sum_logps(w, l, ld_alpha) for w, l in pairs]  # noqa: E741
    assert reduced.shape == (2 * len(pairs),)
    for value, numbers in zip(reduced.tolist(), [*(e[0] for e in expected), *(e[1] for e in expected)], strict=True):
        close(value, numbers)


def test_only_tokens_beyond_the_shorter_side_count_less():
    tokens, mask = rows([[-1.0, -2.0, -4.0]], [[-8.0]])
    assert sum_logps(tokens, mask, 0.5).tolist() == [-1.0 + 0.5 * -6.0, -8.0]
    assert sum_logps(tokens, mask, 0.0).tolist() == [-1.0, -8.0]
    assert sum_logps(tokens, mask, 1.0).tolist() == sum_logps(tokens, mask).tolist() == [-7.0, -8.0]


@pytest.mark.parametrize("ld_alpha", [None, 0.5])
def test_an_empty_completion_sums_to_zero(ld_alpha):
    tokens, mask = rows([[-1.0, -2.0]], [[-3.0]])
    mask[1], tokens[1] = False, 0.0
    expected = -3.0 if ld_alpha is None else -1.5
    assert sum_logps(tokens, mask, ld_alpha).tolist() == [expected, 0.0]


# --- score ----------------------------------------------------------------------------------------------------------

SCORES = [
    *({"f_divergence_type": name} for name in F_DIVERGENCES),
    *({"f_divergence_type": "alpha_divergence", "alpha": alpha} for alpha in (-1.0, 0.0, 0.3, 0.9, 1.0, 2.0)),
]
FAR = [0.0, 1e-9, -1e-9, 0.25, -3.0, 20.0, -20.0, 79.0, -79.0, 90.0, -90.0, 400.0, -400.0]


@pytest.mark.parametrize("f_divergence", SCORES, ids=str)
def test_scores_are_the_oracles(f_divergence):
    scores = f_divergence_score(torch.tensor(FAR, dtype=torch.float64), **f_divergence)
    assert scores.dtype == torch.float64
    for value, lr in zip(scores.tolist(), FAR, strict=True):
        close(value, oracle_transforms.f_divergence_score(lr, **f_divergence))


@pytest.mark.parametrize("f_divergence", SCORES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_scores_and_their_gradients_are_finite_however_far_from_the_reference(f_divergence, dtype):
    lr = torch.tensor(FAR, dtype=dtype, requires_grad=True)
    scores = f_divergence_score(lr, **f_divergence)
    assert scores.dtype == dtype
    assert scores.isfinite().all()
    (gradient,) = torch.autograd.grad(scores.float().sum(), lr)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("f_divergence", SCORES, ids=str)
def test_a_score_is_zero_at_the_reference_and_grows_with_slope_one_there(f_divergence):
    lr = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    value = f_divergence_score(lr, **f_divergence)
    (slope,) = torch.autograd.grad(value.sum(), lr)
    assert value.item() == pytest.approx(0.0, abs=1e-15)
    expected = 0.5 if f_divergence["f_divergence_type"] == "js_divergence" else 1.0
    assert slope.item() == pytest.approx(expected)


def test_linear_forward_kl_keeps_its_gradient_where_the_answer_is_very_unlikely():
    lr = torch.tensor([5.0, 0.0, -9.99, -10.0, -10.01, -50.0, -1000.0], dtype=torch.float64, requires_grad=True)
    linear, exact = f_divergence_score(lr, "forward_kl_linear"), f_divergence_score(lr, "forward_kl")
    (slopes,) = torch.autograd.grad(linear.sum(), lr)
    (exact_slopes,) = torch.autograd.grad(exact.sum(), lr)
    torch.testing.assert_close(linear[:4], exact[:4])
    torch.testing.assert_close(slopes[:4], exact_slopes[:4])
    assert slopes[4:].tolist() == pytest.approx([math.exp(10)] * 3)
    assert linear[4].item() == pytest.approx(exact[4].item(), rel=1e-3)
    assert exact_slopes[6] == 0


def test_forward_kl_is_the_alpha_divergence_of_alpha_zero():
    lr = torch.linspace(-5, 5, 11, dtype=torch.float64)
    torch.testing.assert_close(f_divergence_score(lr, "forward_kl"), f_divergence_score(lr, "alpha_divergence", 0.0))


@pytest.mark.parametrize("near", [1 - 1e-7, 1 + 1e-7, 1 - 1e-5, 1 + 1e-5])
def test_an_alpha_near_one_is_reverse_kl(near):
    lr = torch.linspace(-5, 5, 11, dtype=torch.float64)
    torch.testing.assert_close(f_divergence_score(lr, "alpha_divergence", near), lr, rtol=1e-4, atol=1e-9)


def test_the_papers_alpha_is_one_minus_ours():
    lr = torch.linspace(-3, 3, 7, dtype=torch.float64)
    papers = 0.3
    torch.testing.assert_close(
        f_divergence_score(lr, "alpha_divergence", 1 - papers), (1 - torch.exp(-papers * lr)) / papers
    )


def test_an_unknown_divergence_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match="Unknown f_divergence_type 'kl'; one of reverse_kl, forward_kl"):
        f_divergence_score(torch.zeros(1), "kl")


# --- weight ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("clamp", "name"), [(False, "wpo"), (True, "wpo clamped")])
def test_a_weighted_dpo_loss_is_the_published_number(clamp, name):
    (chosen, rejected), (squared_w, squared_l) = published_tokens("pi")
    tokens, mask = rows([chosen], [rejected])
    squares, _ = rows([squared_w], [squared_l])
    weight = wpo_weights(tokens, squares, mask, clamp)
    assert weight.item() * PUBLISHED["sigmoid"] == pytest.approx(PUBLISHED[name], rel=1e-12)
    if not clamp:
        assert weight.item() == pytest.approx(math.prod(PUBLISHED["wpo sides"]), rel=1e-12)


tokens_with_squares = st.lists(st.tuples(logps, st.floats(-6.0, -0.01)), min_size=1, max_size=6)


@few
@given(pairs=st.lists(st.tuples(tokens_with_squares, tokens_with_squares), min_size=1, max_size=4), clamp=st.booleans())
def test_weights_are_the_oracles(pairs, clamp):
    chosen, rejected = zip(*pairs, strict=True)
    tokens, mask = rows(*([[token for token, _ in side] for side in sides] for sides in (chosen, rejected)))
    squares, _ = rows(*([[square for _, square in side] for side in sides] for sides in (chosen, rejected)))
    squares[~mask] = -123.0  # what a head gives for the prompt and the padding must not count
    weights = wpo_weights(tokens, squares, mask, clamp)
    assert weights.shape == (len(pairs),)
    for weight, (w, l) in zip(weights.tolist(), pairs, strict=True):  # noqa: E741
        close(weight, oracle_transforms.wpo_weight(w, l, clamp))


def test_weights_carry_no_gradient_and_change_nothing():
    tokens, mask = rows([[-1.0, -2.0]], [[-3.0]])
    tokens.requires_grad_()
    squares = torch.full_like(tokens, -0.5)
    weights = wpo_weights(tokens, squares, mask)
    assert not weights.requires_grad
    assert tokens.grad is None
    assert (squares == -0.5).all()


def test_an_empty_completion_has_a_finite_weight():
    tokens, mask = rows([[-1.0, -2.0]], [[-3.0]])
    mask[1], tokens[1] = False, 0.0
    assert wpo_weights(tokens, torch.full_like(tokens, -0.5), mask).isfinite().all()
