"""Columns whose allowed values depend on an option of the loss, and losses whose formula nobody could check."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests.support import runs, tiny
from tests.support.batches import required_hyper
from trl_dpo_ext import InputError, get_loss, list_losses


def with_quantiles(*values: float) -> Dataset:
    rows = tiny.preferences().select(range(len(values)))
    columns = {f"quantile_{side}": list(values) for side in ("chosen", "rejected")}
    return Dataset.from_dict({**rows.to_dict(), **columns})


@pytest.mark.parametrize("stated", [{"qrpo_transform": "log"}, {"loss_type": "qrpo:qrpo_transform=log"}], ids=str)
def test_a_quantile_of_zero_has_no_logarithm(tmp_path: Path, stated: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"'quantile_chosen' must be > 0 .* at least 1 / n.*wrong in 1 of 4 rows"):
        runs.trainer(tmp_path, train_dataset=with_quantiles(1.0, 0.5, 0.0, 0.25), **{"loss_type": "qrpo", **stated})


@pytest.mark.parametrize("quantiles", [(1.0, 0.5, 0.0, 0.25), (0.0, 0.0, 0.0, 0.0)])
def test_a_quantile_of_zero_is_a_reward_of_zero_without_the_logarithm(tmp_path: Path, quantiles: Any) -> None:
    trained = runs.trained(tmp_path, train_dataset=with_quantiles(*quantiles), loss_type="qrpo", max_steps=1)
    assert trained.state.log_history[0]["loss"] > 0


def test_a_mixture_with_the_logarithm_refuses_what_its_other_term_would_take(tmp_path: Path) -> None:
    mixed = ["sigmoid", "qrpo:qrpo_transform=log"]
    with pytest.raises(InputError, match="'quantile_rejected' must be > 0"):
        runs.trainer(tmp_path, train_dataset=with_quantiles(0.5, 0.5, 0.0, 0.5), loss_type=mixed)


def started(folder: Path, name: str) -> list[str]:
    """What a run with this loss says."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        variant = get_loss(name)
        rows = tiny.preferences()
        columns = {column: [0.25 + 0.5 * (column == "score_chosen")] * len(rows) for column in variant.columns}
        data = Dataset.from_dict({**rows.to_dict(), **columns})
        runs.trainer(folder, train_dataset=data, loss_type=name, **required_hyper(variant))
    return [str(warning.message) for warning in caught if "experimental" in str(warning.message)]


@pytest.mark.parametrize("name", [variant.name for variant in list_losses() if variant.experimental])
def test_a_loss_whose_source_was_not_seen_is_announced_once(tmp_path: Path, name: str) -> None:
    (said,) = started(tmp_path, name)
    assert said.startswith(f"{name}: experimental")
    assert f"trl-dpo-ext losses {name}" in said


@pytest.mark.parametrize("name", ["sigmoid", "ropo", "unlikelihood", "centered"])
def test_other_losses_are_not(tmp_path: Path, name: str) -> None:
    assert started(tmp_path, name) == []
