"""The loss that is announced for the first step is the one that a first step has."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.support import runs, tiny
from trl_dpo_ext.estimate.initial_loss import describe_initial_loss, expected_initial_loss, expected_loss_of_lists

SETTINGS = {
    "sigmoid": {},
    "sigmoid_norm": {"beta": 5.0},
    "cdpo": {"label_smoothing": 0.1},
    "ipo": {},
    "hinge": {},
    "apo_zero": {"beta": 0.05},
    "dpop": {},
    "nca_pair": {"beta": 0.01},
    "kto_pair": {},
}


@pytest.mark.parametrize("loss", SETTINGS)
def test_the_first_step_has_the_expected_loss(tmp_path, loss: str) -> None:
    run = runs.trained(tmp_path, loss_type=loss, ref_model=tiny.model(), max_steps=1, **SETTINGS[loss])
    (term,) = run.mixture.terms
    expected = expected_initial_loss(term)
    assert run.state.log_history[0]["loss"] == pytest.approx(expected, abs=1e-4)
    assert describe_initial_loss(run.mixture) == f"{expected:.4f}"


def test_what_depends_on_the_model_is_named_and_not_guessed(tmp_path) -> None:
    run = runs.trained(
        tmp_path, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.2], ref_model=tiny.model(), max_steps=1
    )
    assert describe_initial_loss(run.mixture) == "0.6931 + 0.2 x loss/sft"
    log = run.state.log_history[0]
    assert log["loss"] == pytest.approx(0.6931 + 0.2 * log["loss/sft"], abs=1e-3)
    for loss in ("simpo", "orpo", "rdpo"):
        assert (
            describe_initial_loss(runs.config(tmp_path, loss_type=loss).loss_mixture()) == "depends on model and data"
        )


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("pl", math.log(24)),
        ("top1", math.log(4)),
        ("infonca:tau=1.0", math.log(4)),
        ("nca:tau=1.0", 2 * math.log(2)),
        ("sigmoid", math.log(2)),
        (["top1", "sigmoid"], math.log(8)),
        ("lipo:scale=10.0", 0.872682398540371),
        ("rrhf", None),
        ("rdpo", None),
        (["pl", "sft"], None),
        ("trl:hinge", None),
    ],
    ids=str,
)
def test_the_first_step_on_lists_depends_on_their_scores(tmp_path, loss: Any, expected: float | None) -> None:
    mixture = runs.config(tmp_path, loss_type=loss).loss_mixture()
    scores = [[2.0, 9.0, 5.0, 5.0]] if "lipo" in loss else [[1.0, 4.0, 2.0, 3.0]]
    found = [
        expected_loss_of_lists(mixture, scores),
        expected_loss_of_lists(mixture, [*scores, [7.0, 7.0, 7.0]]),  # all tied: worth 0
    ]
    if expected is None:
        assert found == [None, None]
    else:
        assert found == pytest.approx([expected, expected / 2], rel=1e-12)


@pytest.mark.parametrize(
    ("loss", "expected"), [("nca:tau=1.0", "1.3863"), ("pl", "depends on model and data"), (["nca:tau=1.0", "rrhf"], "1.3863 + 1 x loss/rrhf")], ids=str
)  # fmt: skip
def test_what_depends_on_the_number_of_answers_is_not_announced(tmp_path, loss: Any, expected: str) -> None:
    assert describe_initial_loss(runs.config(tmp_path, loss_type=loss).loss_mixture()) == expected
