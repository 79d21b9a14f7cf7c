"""Options of a score are checked from Python, too, where no parser has read them."""

from __future__ import annotations

import pytest

from trl_dpo_ext.scoring.arrangement import protocol_problems


@pytest.mark.parametrize(
    ("protocol", "normalize", "expected"),
    [
        ("rewardbench2", "sum", "protocol must be one of"),
        ("train", "avg", "normalize must be one of sum, mean; got 'avg'"),
    ],
)
def test_values_that_are_no_choice_are_named(protocol, normalize: str, expected: str) -> None:
    (problem,) = protocol_problems(protocol, normalize)
    assert expected in problem


@pytest.mark.parametrize("protocol", ["train", "rewardbench"])
def test_choices_are_taken(protocol) -> None:
    assert protocol_problems(protocol, "sum") == []
