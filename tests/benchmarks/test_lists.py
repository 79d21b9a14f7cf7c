"""What the benchmark of lists says of lists and of their pairs is what they cost, counted by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import lengths  # noqa: E402
import lists as benchmark  # noqa: E402
import steps as harness  # noqa: E402
from counting import Counts, Seconds  # noqa: E402


def list_of(prompt: int, *answers: int) -> dict[str, Any]:
    """A list with a prompt and answers of so many tokens."""
    return {"prompt_ids": [1] * prompt, "list_ids": [[2] * answer for answer in answers]}


THREE, FOUR = list_of(10, 5, 3, 4), list_of(20, 9, 1, 2, 6)
BY_HAND = {  # fed, scored where the head scores every position, and where it scores answers alone
    "TRL, all pairs": (6 * 15, 6 * 14, (5 + 3) + (5 + 4) + (3 + 4)),
    "TRL, pair by pair": (2 * 15 + 2 * 15 + 2 * 14, 2 * 14 + 2 * 14 + 2 * 13, 24),
    "pairs": (6 * 15, 6 * 14, 24),
    "pairs, share_prompt": (10 + 4 + 2 + 3, 24, 24),
    "lists": (4 * 15, 4 * 14, 5 + 3 + 4 + 3),  # the shortest answer stands there once more
    "lists, share_prompt": (10 + 4 + 2 + 3, 15, 15),
    "pl": (4 * 15, 4 * 14, 15),
    "pl, share_prompt": (10 + 4 + 2 + 3, 15, 15),
}


@pytest.mark.parametrize("name", benchmark.WAYS)
def test_three_answers_cost_what_one_counts_by_hand(name: str) -> None:
    fed, dense, answers = BY_HAND[name]
    assert benchmark.positions(name, [THREE], dense_head=True) == (fed, dense)
    assert benchmark.positions(name, [THREE], dense_head=False) == (fed, answers)


@pytest.mark.parametrize(
    ("name", "fed", "answers"),
    [
        ("TRL, all pairs", (12 + 6) * 29, 3 * (9 + 1 + 2 + 6) + 24),  # all rows as wide as the longest of both lists
        ("TRL, pair by pair", 2 * (29 + 29 + 29 + 22 + 26 + 26) + 88, 3 * 18 + 24),
        ("lists", (4 + 4) * 29, 18 + 15),
        ("lists, share_prompt", 20 + 8 + 0 + 1 + 5 + 19, 18 + 15),
    ],
)
def test_two_lists_in_a_step_cost_what_one_counts_by_hand(name: str, fed: int, answers: int) -> None:
    assert benchmark.positions(name, [FOUR, THREE], dense_head=False) == (fed, answers)


@pytest.mark.parametrize("answers", [2, 4, 7, 8])
def test_answers_of_one_length_save_what_the_number_of_rows_says(answers: int) -> None:
    row = list_of(100, *[50] * answers)
    pairs, whole, once = (
        benchmark.positions(name, [row], dense_head=False)[0] for name in ("pairs", "lists", "lists, share_prompt")
    )
    rows = answers + answers % 2
    assert pairs / whole == answers * (answers - 1) / rows
    assert once == 100 + 49 * answers


def test_the_pairs_of_a_list_are_all_with_the_better_answer_chosen() -> None:
    (row,) = lengths.lists("hh", 1, 4, 300, seed=0)
    found = [(pair["chosen_ids"], pair["rejected_ids"]) for pair in benchmark.pairs_of(row)]
    scores = {tuple(ids): score for ids, score in zip(row["list_ids"], row["list_scores"], strict=True)}
    assert len(found) == len({(tuple(a), tuple(b)) for a, b in found}) == 6
    assert all(scores[tuple(chosen)] > scores[tuple(rejected)] for chosen, rejected in found)


def test_lists_are_drawn_again_alike_and_share_nothing_but_the_prompt() -> None:
    rows = lengths.lists("hh", 5, 7, 20, seed=1)
    assert rows == lengths.lists("hh", 5, 7, 20, seed=1) != lengths.lists("hh", 5, 7, 20, seed=2)
    for row in rows:
        assert len({ids[0] for ids in row["list_ids"]}) == len(row["list_scores"]) == 7


def contestant(found: tuple[float, float], fed: int = 10, seconds: float = 1.0) -> harness.Contestant:
    """One that has run a single step, and gives this loss and norm."""
    step = harness.Step(Seconds(seconds, seconds / 2), fed, fed, 2)
    return harness.Contestant(lambda *_: found, "some", Counts(7, 2**20), [step])


def test_ways_with_another_loss_or_gradient_do_not_pass() -> None:
    first = contestant((0.7, 2.0))
    harness.agree({"a": first, "b": contestant((0.70001, 2.001))}, "float32")
    for other in ((0.701, 2.0), (0.7, 2.1)):
        with pytest.raises(AssertionError, match="'b'"):
            harness.agree({"a": first, "b": contestant(other)}, "float32")


class Made:
    """Stands for `ListSteps` with its default options."""

    options = benchmark.parse([])


@pytest.mark.parametrize(("fed", "scored"), [(19, 2 * 24), (2 * 19, 24), (2 * 19 + 1, 2 * 24)])
def test_positions_that_differ_from_what_the_lengths_give_do_not_pass(fed: int, scored: int) -> None:
    one = contestant((0, 0))
    one.steps[0].fed, one.steps[0].scored = 2 * 19, 2 * 24
    benchmark.check(Made(), [[THREE]], {"pairs, share_prompt": one})  # type: ignore[arg-type]
    one.steps[0].fed, one.steps[0].scored = fed, scored
    with pytest.raises(AssertionError, match="share_prompt"):
        benchmark.check(Made(), [[THREE]], {"pairs, share_prompt": one})  # type: ignore[arg-type]


def test_a_ratio_above_one_says_that_trl_is_slower_and_feeds_more() -> None:
    ran = {benchmark.BASE: contestant((0, 0), fed=60, seconds=6.0), "lists": contestant((0, 0), fed=20, seconds=2.0)}
    found = benchmark.records(ran, 1, "processor")
    assert found["lists"]["fed_relative"] == found["lists"]["wall"][0] == found["lists"]["processor"][0] == 3.0
    assert "| lists | 20 | 3.00 | 20 | 2 | 7 | 1 | 1.0 | 3.00 (3.00 to 3.00) | 3.00" in benchmark.table(found)


TOY = ["--vocab-size", "97", "--hidden-size", "36", "--intermediate-size", "32", "--steps", "1"]


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["live", "stored"])
def test_the_benchmark_runs_and_finds_its_ways_alike(reference: str) -> None:
    """Loss, gradient, and positions of all ways are checked inside."""
    made = benchmark.ListSteps(benchmark.parse([*TOY, "--reference", reference]))
    rows = [
        {
            **row,
            "prompt_ids": row["prompt_ids"][:10],
            "list_ids": [ids[: 9 + at] for at, ids in enumerate(row["list_ids"])],
        }
        for row in lengths.lists("ultrafeedback", 2, 5, 97, seed=0)
    ]
    found = benchmark.records(benchmark.compare(made, [[row] for row in rows]), 1, "processor")
    assert {*found} == {*benchmark.WAYS}
    models = 2 if reference == "live" else 1
    assert {one["forwards"] for name, one in found.items() if name != benchmark.SINGLE} == {models}
    assert found[benchmark.SINGLE]["forwards"] == models * 10
    assert found["lists, share_prompt"]["fed"] == models * (10 + sum(range(8, 13)))
    losses = {name: made.agree(name)[0] for name in ("pairs", "pl")}
    assert losses["pairs"] != pytest.approx(losses["pl"], rel=0.1)
