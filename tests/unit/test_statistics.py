"""Statistics of arrays, against values computed by hand, or by another way."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from trl_dpo_ext import statistics

COUNTS = some.lists(some.integers(0, 5000), min_size=1, max_size=60)


@given(COUNTS)
def test_a_quantile_is_the_smallest_value_with_enough_at_or_below_it(values: list[int]) -> None:
    found = statistics.quantiles(np.array(values))
    for name, share in statistics.QUANTILES.items():
        enough = [value for value in values if sum(each <= value for each in values) >= share * len(values) - 1e-9]
        assert found[name] == min(enough)


@given(COUNTS)
def test_bins_of_a_histogram_are_powers_of_two(values: list[int]) -> None:
    found = statistics.histogram(np.array(values))
    bins = zip(found["edges"][:-1], found["edges"][1:], strict=True)
    assert found["counts"] == [sum(low <= value < high for value in values) for low, high in bins]
    assert sum(found["counts"]) == len(values)
    assert found["edges"][:3] == [0, 1, 2][: len(found["edges"])]


@pytest.mark.parametrize(
    ("right", "number", "expected"),
    [
        # Wilson (1927): the roots of (p - x)^2 = z^2 x (1 - x) / n
        (0, 285, (0.0, 0.013300)),
        (81.5, 285, (0.236622, 0.341001)),
        (65, 65, (0.944198, 1.0)),
        (1, 1, (0.206549, 1.0)),
    ],
)
def test_an_interval_has_the_roots_of_wilsons_equation(right: float, number: int, expected: tuple) -> None:
    interval = statistics.wilson(right, number)
    assert interval == pytest.approx(expected, abs=1e-6)
    share = right / number
    for edge in interval:
        if 0 < edge < 1:
            assert (share - edge) ** 2 == pytest.approx(1.959964**2 * edge * (1 - edge) / number, rel=1e-5)


def test_there_is_no_interval_without_data() -> None:
    assert statistics.wilson(0, 0) is None


def test_ranks_of_ties_are_their_mean() -> None:
    left, right = np.array([1, 2, 2, 4]), np.array([10.0, 30.0, 20.0, 20.0])
    # ranks 1, 2.5, 2.5, 4 and 1, 4, 2.5, 2.5: covariance 1.125 + 0 + 0 + 0, each with the sum of squares 4.5
    assert statistics.spearman(left, right) == pytest.approx(2.25 / 4.5)
    assert statistics.pearson(left, right) == pytest.approx(np.corrcoef(left, right)[0, 1])
    assert statistics.pearson(np.array([1, 1]), np.array([1, 2])) is None
    assert statistics.spearman(np.array([1]), np.array([1])) is None


def test_ties_of_length_count_one_half() -> None:
    bias = statistics.length_bias(np.array([3, 2, 5, 1]), np.array([1, 2, 7, 0]))
    assert (bias["longer"], bias["equal"], bias["shorter"]) == (2, 1, 1)
    assert bias["accuracy"] == 2.5 / 4
    assert (bias["mean_difference"], bias["median_difference"]) == (0.25, 0)
    assert bias["total_ratio"] == 11 / 10


def test_json_holds_no_number_that_is_none() -> None:
    made = statistics.finite({"a": [math.nan, np.float32(1.5), (math.inf, np.int64(2))], 3: None})
    assert json.dumps(made, allow_nan=False) == '{"a": [null, 1.5, [null, 2]], "3": null}'
