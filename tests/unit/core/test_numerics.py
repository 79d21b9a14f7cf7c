"""Functions with a kink: torch's values everywhere, and the written gradient at the kink with every version of torch."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
import torch

import trl_dpo_ext
from trl_dpo_ext.core import numerics

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
VALUES = [-math.inf, -3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0, math.inf, math.nan]

# ours, torch's, and the gradients at -3, -1, -0.5, 0, 0.5, 1, 3
FUNCTIONS = {
    "clamp_min at 0": (lambda x: numerics.clamp_min(x, 0.0), lambda x: x.clamp(min=0), [0, 0, 0, 1, 1, 1, 1]),
    "clamp_min at 1": (lambda x: numerics.clamp_min(x, 1.0), lambda x: x.clamp(min=1), [0, 0, 0, 0, 0, 1, 1]),
    "clamp_max at 0": (lambda x: numerics.clamp_max(x, 0.0), lambda x: x.clamp(max=0), [1, 1, 1, 1, 0, 0, 0]),
    "clamp_max at -1": (lambda x: numerics.clamp_max(x, -1.0), lambda x: x.clamp(max=-1), [1, 1, 0, 0, 0, 0, 0]),
    "relu": (numerics.relu, torch.relu, [0, 0, 0, 0, 1, 1, 1]),
    "absolute": (numerics.absolute, torch.abs, [-1, -1, -1, 0, 1, 1, 1]),
    "minimum with 0": (
        lambda x: numerics.minimum(x, torch.zeros_like(x)),
        lambda x: torch.minimum(x, torch.zeros_like(x)),
        [1, 1, 1, 0.5, 0, 0, 0],
    ),
    "minimum with 1, as the second": (
        lambda x: numerics.minimum(torch.ones_like(x), x),
        lambda x: torch.minimum(torch.ones_like(x), x),
        [1, 1, 1, 1, 1, 0.5, 0],
    ),
}
each_function = pytest.mark.parametrize("name", FUNCTIONS)


@each_function
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_are_torchs_infinities_and_nan_included(name, dtype):
    ours, torchs, _ = FUNCTIONS[name]
    x = torch.tensor(VALUES, dtype=dtype)
    assert ours(x).dtype == dtype
    torch.testing.assert_close(ours(x), torchs(x), rtol=0, atol=0, equal_nan=True)


@each_function
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradient_at_the_kink_is_the_one_that_is_written_down(name, dtype):
    ours, _, expected = FUNCTIONS[name]
    x = torch.tensor(VALUES[1:-2], dtype=dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(ours(x).sum(), x)
    assert gradient.tolist() == expected


@each_function
def test_a_gradient_is_finite_beside_infinities(name):
    ours, _, _ = FUNCTIONS[name]
    x = torch.tensor([-math.inf, 0.0, math.inf], requires_grad=True)
    (gradient,) = torch.autograd.grad(ours(x)[1], x)
    assert gradient.isfinite().all()


def test_both_arguments_of_minimum_share_the_gradient_where_they_tie():
    a, b = torch.tensor([0.0, 1.0, 2.0], requires_grad=True), torch.tensor([-0.0, 2.0, 1.0], requires_grad=True)
    first, second = torch.autograd.grad(numerics.minimum(a, b).sum(), (a, b))
    assert (first.tolist(), second.tolist()) == ([0.5, 1.0, 0.0], [0.5, 0.0, 1.0])


def test_whole_numbers_are_clamped_too():
    assert numerics.clamp_min(torch.tensor([0, 1, 5]), 1).tolist() == [1, 1, 5]


def test_sorting_gives_equal_values_their_gradients_in_their_order():
    x = torch.tensor([2.0, 1.0, 2.0, 1.0] * 20, requires_grad=True)  # more than fit one insertion sort
    in_order = numerics.sort(x)
    assert in_order.tolist() == [1.0] * 40 + [2.0] * 40
    (gradient,) = torch.autograd.grad((in_order * torch.arange(80)).sum(), x)
    ones, twos = gradient[1::2].tolist(), gradient[::2].tolist()
    assert (ones, twos) == ([*range(40)], [*range(40, 80)])


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_square_keeps_its_gradient_at_the_largest_gap(sign, dtype):
    largest = 0.5 * torch.finfo(dtype).max ** 0.5
    gap = torch.tensor([sign * largest, sign * 2 * largest], dtype=dtype, requires_grad=True)
    square = numerics.squared(gap)
    (gradient,) = torch.autograd.grad(square.sum(), gap)
    assert square.isfinite().all()
    assert gradient.tolist() == pytest.approx([sign * 2 * largest, 0.0], rel=1e-6)


def test_a_log_prob_at_its_bound_keeps_its_gradient_and_one_above_has_none():
    log_p = torch.tensor([-1e-7, -1e-8, 0.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(numerics.log1mexp(log_p).sum(), log_p)
    assert gradient.tolist() == pytest.approx([-1e7, 0.0, 0.0], rel=1e-6)


def test_the_two_forms_of_log1mexp_have_one_gradient_where_they_meet():
    log_p = torch.tensor([-math.log(2)], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(numerics.log1mexp(log_p).sum(), log_p)
    assert gradient.item() == pytest.approx(-1.0)


# --- nobody goes around them ----------------------------------------------------------------------------------------

PACKAGE = Path(trl_dpo_ext.__file__).parent
FORMULAS = [path for room in ("core", "losses") for path in sorted((PACKAGE / room).glob("*.py"))]
KINKED = {"clamp", "clamp_", "clamp_min", "clamp_max", "clip", "relu", "minimum", "maximum", "fmin", "fmax", "abs"}
KINKED |= {"absolute", "hardtanh", "threshold", "sort", "msort", "max", "min", "amax", "amin", "relu6", "sign"}


@pytest.mark.parametrize("path", FORMULAS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_has_a_kink_comes_from_numerics(path):
    if path.name == "numerics.py":
        return
    called = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    wrong = [f"line {f.lineno}: {ast.unparse(f)}" for f in called if isinstance(f, ast.Attribute) and f.attr in KINKED]
    assert not wrong, f"use trl_dpo_ext.core.numerics, whose gradient at a tie no version of torch changes: {wrong}"
