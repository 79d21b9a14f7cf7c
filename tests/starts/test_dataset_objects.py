"""Datasets whose rows are not read as they are stored, or that have columns which a run does not read."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests.support import runs, tiny
from trl_dpo_ext.errors import InputError

from .listing import Kind

datasets_ = Kind("Formats and columns of a dataset")


@pytest.mark.parametrize(
    "kind",
    [
        datasets_.case("`with_format('numpy')`", "trains as without", "numpy"),
        datasets_.case("`with_format('torch')`", "trains as without", "torch"),
        datasets_.case("`with_format('pandas')`", "trains as without", "pandas"),
        datasets_.case("`with_format('arrow')`", "trains as without", "arrow"),
    ],
)
@pytest.mark.parametrize("conversational", [False, True])
def test_formats(tmp_path: Path, kind: str, conversational: bool) -> None:
    rows = tiny.preferences(4, conversational=conversational)
    run = runs.trainer(tmp_path, train_dataset=rows.with_format(kind), eval_dataset=rows.with_format(kind))
    plain = runs.trainer(tmp_path, train_dataset=rows)
    assert run.train_dataset[0] == plain.train_dataset[0] == run.eval_dataset[0]


@datasets_("`with_transform` on texts", "error: apply it with `map`")
def test_transform(tmp_path: Path) -> None:
    rows = tiny.preferences().with_transform(lambda rows: rows)
    with pytest.raises(InputError, match=r"train_dataset has a transform.*dataset\.map"):
        runs.trainer(tmp_path, train_dataset=rows)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        datasets_.case("a column `image`, and a tokenizer", "error before a model is loaded", "image", "a.png"),
        datasets_.case("a column `images`, and a tokenizer", "error before a model is loaded", "images", []),
    ],
)
def test_images(tmp_path: Path, column: str, value: Any) -> None:
    rows = Dataset.from_list([{"prompt": "say", "chosen": " yes", "rejected": " no", column: value}] * 4)
    with pytest.raises(InputError, match=f"has the column '{column}', and the model reads texts alone"):
        runs.trainer(tmp_path, train_dataset=rows)


@pytest.mark.parametrize(
    ("columns", "settings"),
    [
        datasets_.case(
            "columns of reference log-probs without `precompute_ref_log_probs`",
            "warning: they are not read",
            ("ref_chosen_logps", "ref_rejected_logps"),
            {},
        ),
        datasets_.case(
            "one column of reference log-probs without the other, and no `precompute_ref_log_probs`",
            "warning: it is not read",
            ("ref_chosen_logps",),
            {},
        ),
        datasets_.case(
            "columns of reference log-probs with their names of older versions",
            "warning: they are not read",
            ("reference_chosen_logps", "reference_rejected_logps"),
            {"precompute_ref_log_probs": True},
        ),
    ],
)
def test_ignored_reference_columns(tmp_path: Path, columns: tuple[str, ...], settings: dict[str, Any]) -> None:
    rows = tiny.preferences(4, **{name: [-1.0] * 4 for name in columns})
    with pytest.warns(UserWarning, match=r"has reference log-probs \(.*not read.*precompute_ref_log_probs=True"):
        runs.trainer(tmp_path, train_dataset=rows, ref_store=str(tmp_path / "refs") if settings else None, **settings)


def test_columns_that_are_read_are_silent(tmp_path: Path) -> None:
    rows = tiny.preferences(4, ref_chosen_logps=[-1.0] * 4, ref_rejected_logps=[-1.0] * 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        runs.trainer(tmp_path, train_dataset=rows, precompute_ref_log_probs=True)
        runs.trainer(tmp_path, train_dataset=rows, loss_type="simpo")


@datasets_("`eval_strategy` without an evaluation dataset", "error before a model is loaded")
def test_nothing_to_evaluate(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"eval_strategy='steps' needs an evaluation dataset"):
        runs.trainer(tmp_path, model="no/such-model", eval_strategy="steps", eval_steps=1)
