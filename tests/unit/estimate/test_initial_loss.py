"""The loss that is announced for the first step is the one that a first step has."""

from __future__ import annotations

import pytest

from tests.support import runs, tiny
from trl_dpo_ext.estimate.initial_loss import describe_initial_loss, expected_initial_loss

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
