"""Statistics of scored pairs, against an independent implementation and by what must hold for all pairs."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as some

from tests.golden import score_cases
from tests.support.scored import random_scored, scored, side
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.scoring import blocks
from trl_dpo_ext.scoring.calibration import best_beta, calibration, nll
from trl_dpo_ext.scoring.measures import measure, swapped
from trl_dpo_ext.scoring.pair_scores import PairScores
from trl_dpo_ext.scoring.summary import SummaryOptions, summarize

GOLDEN = json.loads(score_cases.FILE.read_text(encoding="utf-8"))
MARGINS = some.lists(some.integers(-64, 64).map(lambda each: each / 8), min_size=1, max_size=60)
LENGTHS = some.integers(1, 30)
LENGTH_WORDS = (
    "longer_wins",
    "shorter_wins",
    "pearson",
    "accuracy_length_balanced",
    "accuracy_length_adjusted",
    "slope",
)


def of_case(name: str) -> PairScores:
    pairs = GOLDEN["cases"][name]["pairs"]
    sides = [
        side(*([pair[f"{what}_{which}"] for pair in pairs] for what in ("policy", "ref", "n")))
        for which in ("chosen", "rejected")
    ]
    gaps = [pair["gap"] for pair in pairs]
    columns = Dataset.from_dict({"score_chosen": gaps, "score_rejected": [0.0 for _ in pairs]})
    states = np.array([pair["status"] for pair in pairs], dtype=object)
    return PairScores(np.arange(len(pairs)), states, *sides, GOLDEN["beta"], columns)


def found(data: dict[str, Any]) -> dict[str, Any]:
    """The blocks of a summary in the words of the golden file."""
    margin, logps, free, scores = (data[name] for name in ("margin", "logps_per_token", "without_reference", "scores"))
    quantiles = ("min", "p5", "p25", "p50", "p75", "p95", "p99", "max")
    bins = data["calibration"]["bins"]
    return {
        **{name: data["accuracy"][name] for name in ("n", "accuracy", "interval", "strict", "ties")},
        "margin_mean": margin["mean"],
        "margin_std": margin["std"],
        "margin_quantiles": [margin[name] for name in quantiles],
        "rewards": [data["reward"][each]["mean"] for each in ("chosen", "rejected")],
        "margin_per_token": data["margin_per_token"]["mean"],
        "logps_per_token": [logps[each][whose] for each in ("chosen", "rejected") for whose in ("reference", "policy")],
        "free": {
            f"{short}_{kind}": free[whose][kind]["accuracy"]
            for short, whose in (("policy", "policy"), ("ref", "reference"))
            for kind in ("sum", "mean")
        },
        "calibration": {
            "counts": [each["count"] for each in bins],
            "confidence": [each["confidence"] for each in bins],
            "hit_rate": [each["hit_rate"] for each in bins],
            **{name: data["calibration"][name] for name in ("ece", "nll", "best_beta")},
        },
        "length": {name: data["length"][name] for name in LENGTH_WORDS},
        "scores": {
            **{name: scores[name] for name in ("n", "pearson", "spearman")},
            "deciles": [[*each.values()] for each in scores["deciles"]],
        },
    }


def flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {key: each for name, part in value.items() for key, each in flat(part, f"{path}.{name}").items()}
    if isinstance(value, list):
        return {key: each for at, part in enumerate(value) for key, each in flat(part, f"{path}[{at}]").items()}
    return {path: value}


@pytest.mark.parametrize("name", GOLDEN["cases"])
def test_every_statistic_equals_its_definition(name: str) -> None:
    expected, made = flat(GOLDEN["cases"][name]["statistics"]), flat(found(summarize(of_case(name))))
    assert made.keys() == expected.keys()
    for key, value in expected.items():
        close = 1e-6 if "best_beta" in key else 1e-12  # a minimum is known by values alone, to the root of float64
        assert made[key] == (value if value is None else pytest.approx(value, rel=close, abs=1e-12)), key


def test_the_golden_file_is_what_the_oracle_computes() -> None:
    again, stored = flat({"beta": score_cases.BETA, "cases": score_cases.vectors()}), flat(GOLDEN)
    assert again.keys() == stored.keys()
    for key, value in again.items():
        assert stored[key] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value), key


@given(MARGINS, some.data())
@settings(max_examples=60, deadline=None)
def test_exchanging_all_sides_turns_every_accuracy_over(ratios: list[float], data: Any) -> None:
    number = len(ratios)
    tokens = [data.draw(some.lists(LENGTHS, min_size=number, max_size=number)) for _ in range(2)]
    scores = scored(ratios, [0.0] * number, tokens)
    there, back = (summarize(each) for each in (scores, swapped(scores, np.ones(number, bool))))
    assert back["accuracy"]["accuracy"] == pytest.approx(1 - there["accuracy"]["accuracy"])
    assert back["accuracy"]["ties"] == there["accuracy"]["ties"]
    assert back["margin"]["mean"] == pytest.approx(-there["margin"]["mean"])
    assert back["length"]["longer_wins"] == pytest.approx(there["length"]["shorter_wins"])
    assert back["length"]["pearson"] == pytest.approx(there["length"]["pearson"])
    for name in ("accuracy_length_balanced", "accuracy_length_adjusted"):
        forward, backward = there["length"][name], back["length"][name]
        assert (forward is None) == (backward is None)
        assert forward is None or backward == pytest.approx(1 - forward)
    for whose, kinds in there["without_reference"].items():
        for kind, each in kinds.items():
            other = back["without_reference"][whose][kind]["accuracy"]
            assert other == pytest.approx(1 - each["accuracy"])


@given(MARGINS)
def test_parts_of_a_calibration_make_the_whole(margins: list[float]) -> None:
    made = calibration(np.array(margins), 0.1)
    bins = [each for each in made["bins"] if each["count"]]
    assert sum(each["count"] for each in bins) == len(margins)
    assert 0 <= made["ece"] <= 1
    assert all(each["low"] - 1e-12 <= each["confidence"] <= each["high"] + 1e-12 for each in bins)
    hits = sum(each["count"] * each["hit_rate"] for each in bins) / len(margins)
    assert hits == pytest.approx(blocks.accuracy(np.array(margins))["accuracy"])


@given(MARGINS, some.floats(0.01, 10))
def test_no_beta_is_better_than_the_best(margins: list[float], beta: float) -> None:
    best = best_beta(np.array(margins), beta)
    if best is None:
        rate = blocks.accuracy(np.array(margins))["accuracy"]
        assert rate <= 0.5 or min(margins) >= 0 or math.fsum(margins) <= 0
        return
    units = np.array(margins) / beta
    for other in (best * factor for factor in (0.5, 0.99, 1.01, 2)):
        assert nll(best * units) <= nll(other * units) + 1e-12


@given(MARGINS, some.integers(2, 40))
def test_bins_of_a_histogram_hold_every_margin_once(margins: list[float], most: int) -> None:
    values = np.array(margins)
    made = blocks.histogram(values, np.arange(len(values)) % 3 - 1, most)
    assert sum(made["counts"]) == len(values)
    assert len(made["counts"]) == len(made["edges"]) - 1 <= most
    parts = zip(made["longer"], made["shorter"], made["equal"], strict=True)
    assert [*map(sum, parts)] == made["counts"]
    bins = zip(made["edges"][:-1], made["edges"][1:], strict=True)
    assert [sum(low <= value < high for value in margins) for low, high in bins] == made["counts"]


def test_ties_count_one_half_and_are_counted() -> None:
    data = summarize(scored([1.0] * 4, [1.0] * 4))
    assert data["accuracy"] | {"interval": None} == {
        "n": 4, "accuracy": 0.5, "interval": None, "strict": 0.0, "right": 0, "ties": 4,
    }  # fmt: skip
    assert data["calibration"]["best_beta"] is None
    assert data["margin"]["mean"] == 0.0


def test_sides_that_truncation_makes_identical_are_a_tie_whatever_was_computed() -> None:
    data = summarize(scored([1.0, 3.0], [1.5, 1.0], status=["identical", "ok"]))
    assert data["accuracy"]["ties"] == 1
    assert data["accuracy"]["accuracy"] == 0.75


def test_rows_without_log_probs_are_counted_and_left_out() -> None:
    nan, infinite = float("nan"), float("inf")
    status = ["ok", "dropped", "nonfinite", "nonfinite", "cut"]
    data = summarize(
        scored([2, nan, infinite, nan, 1], [1, nan, 1, nan, 2], [[1, 0, 2, 2, 3], [2, 0, 2, 2, 3]], status)
    )
    assert data["rows"] == {
        "loaded": 5, "scored": 2, "ok": 1, "cut": 1, "identical": 0, "dropped": 1, "nonfinite": 2,
        "nonfinite_rows": [2, 3],
    }  # fmt: skip
    assert data["accuracy"]["n"] == 2
    assert data["margin"]["least"] == {"row": 4, "value": pytest.approx(-0.1)}
    assert "rows 2, 3" in data["notes"][0]
    json.dumps(data, allow_nan=False)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_hardly_any_rows_have_statistics_without_numbers_that_are_none(number: int) -> None:
    data = summarize(scored([1.0] * number, [0.0] * number, columns={"subset": ["a"] * number}))
    json.dumps(data, allow_nan=False)
    assert data["accuracy"]["accuracy"] == (1.0 if number else None)
    assert data["margin"]["std"] == (0.0 if number > 1 else None)
    assert len(data["subsets"]["values"]) == min(number, 1)


def test_lengths_that_tell_all_are_not_taken_out_of_the_accuracy() -> None:
    """With a chosen side that is always the shorter, a line through the origin would subtract the signal."""
    data = summarize(scored([2.0] * 30, [0.0] * 30, [[3] * 30, [9] * 30]))
    assert data["length"]["shorter_wins"] == 1.0
    assert data["length"]["accuracy_length_adjusted"] is None
    assert data["length"]["accuracy_length_balanced"] is None


def test_a_reward_that_is_length_alone_is_not_better_than_chance_at_equal_length() -> None:
    lengths = [[10 + at % 7, 10][:: 1 if at % 3 else -1] for at in range(90)]
    tokens = [[pair[at] for pair in lengths] for at in (0, 1)]
    scores = scored(tokens[0], tokens[1], tokens)
    data = summarize(scores)
    assert data["accuracy"]["accuracy"] == data["length"]["longer_wins"] > 0.6
    assert data["length"]["accuracy_length_balanced"] == 0.5
    assert data["length"]["accuracy_length_adjusted"] == pytest.approx(0.5, abs=0.35)


def test_rewards_without_a_reference_and_per_token() -> None:
    scores = scored([4.0, -3.0], [0.0, 0.0], [[4, 2], [8, 2]])
    assert measure(scores).margin == pytest.approx([0.4, -0.3])
    assert measure(scores, "mean").margin == pytest.approx([0.1, -0.15])
    assert measure(scores).margin_per_token == pytest.approx([0.1, -0.15])
    assert measure(scores, "mean").margin_per_token == pytest.approx([0.1, -0.15])  # not divided twice
    assert measure(scores, reference_free="mean").margin_per_token == pytest.approx([0.1, -0.15])
    # log-probs are 0 of 4 tokens, -5 of 2; and -8 of 8, -2 of 2
    assert measure(scores, reference_free="sum").margin == pytest.approx([0.8, -0.3])
    assert measure(scores, reference_free="mean").margin == pytest.approx([0.1, -0.15])
    assert measure(scores, reference_free="norm").margin == pytest.approx([0.1 * 8 / 8**0.5, -0.1 * 3 / 2**0.5])


def test_without_a_reference_its_numbers_are_missing_and_the_policys_are_not() -> None:
    scores = random_scored(40)
    blank = np.full(40, np.nan, np.float32)
    sides = {
        name: type(each)(each.policy, blank, each.policy_norm, blank, each.tokens)
        for name, each in (("chosen", scores.chosen), ("rejected", scores.rejected))
    }
    data = summarize(
        PairScores(scores.rows, scores.status, **sides, beta=0.1, columns=scores.columns),
        SummaryOptions(reference_free="mean"),
    )
    assert data["without_reference"]["reference"] == {"sum": None, "mean": None, "norm": None}
    assert data["without_reference"]["policy"]["mean"]["accuracy"] == data["accuracy"]["accuracy"]
    assert data["logps_per_token"]["chosen"]["reference"] is None


def test_subsets_are_those_of_the_column_and_make_the_whole() -> None:
    names = [None if at == 5 else "ab"[at % 2] for at in range(40)]
    data = summarize(random_scored(40, columns={"subset": names}))
    values = data["subsets"]["values"]
    assert [each["value"] for each in values] == ["a", "b", None]
    assert sum(each["accuracy"]["n"] for each in values) == data["accuracy"]["n"] == 39
    right = sum(each["accuracy"]["accuracy"] * each["accuracy"]["n"] for each in values)
    assert right == pytest.approx(data["accuracy"]["accuracy"] * 39)


@pytest.mark.parametrize(
    ("columns", "options", "match"),
    [
        ({}, SummaryOptions(subset_column="topic"), "--subset_column topic: no such column; the dataset has prompt"),
        ({}, SummaryOptions(score_columns=("a", "b")), "--score_columns a: no such column"),
        (
            {"a": ["x"] * 4},
            SummaryOptions(score_columns=("a", "a")),
            "--score_columns: column 'a' holds string; numbers are needed",
        ),
        ({"a": [[1]] * 4}, SummaryOptions(score_columns=("a", "a")), "'a' holds list"),
    ],
)
def test_columns_that_cannot_be_used_are_named(columns: Any, options: SummaryOptions, match: str) -> None:
    scores = scored([1.0] * 4, [0.0] * 4, columns=columns)
    missing = options.problems(scores.columns)
    assert match in missing[0]
    with pytest.raises(InputError, match=match):
        summarize(scores, options)


def test_score_columns_that_hold_no_numbers_are_used_only_if_they_are_named() -> None:
    scores = scored([1.0] * 4, [0.0] * 4, columns={"score_chosen": ["good"] * 4, "score_rejected": [1.0] * 4})
    assert summarize(scores)["scores"] is None
    large = {"score_chosen": [2**60, 0, 1, None], "score_rejected": [0] * 4}
    assert summarize(scored([1.0] * 4, [0.0] * 4, columns=large))["scores"]["n"] == 3


def test_a_reference_that_is_not_the_start_is_asked_about() -> None:
    assert "run started from?" in summarize(scored([-40.0] * 9, [0.0] * 9))["notes"][0]
    assert summarize(scored([-0.5] * 9, [0.0] * 9))["notes"] == []


def test_what_holds_for_all_rows_is_not_computed_for_each(monkeypatch: Any) -> None:
    """With 100,000 rows and a subset column, a mask that was made anew for each row once took six minutes."""
    scores, made = random_scored(300, columns={"subset": [str(at % 9) for at in range(300)]}), []
    mask = scores.scored
    monkeypatch.setattr(PairScores, "scored", property(lambda _: made.append(1) or mask))
    summarize(scores)
    assert 0 < len(made) < 30
