"""Reference log-probs in a dataset's columns are read under any name, or it is said that they are not."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests.support import runs, tiny
from tests.support.command_line import config_file, parse
from tests.support.stored_runs import batch_sums, stored
from trl_dpo_ext import DPOExtConfig
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.columns import read_columns
from trl_dpo_ext.reference.dataset_source import DatasetReference

from .listing import Kind

columns = Kind("Reference log-probs in the dataset's columns")

MAPPED = {"ref_chosen_logps": "sft_chosen", "ref_rejected_logps": "sft_rejected"}
STORE: dict[str, Any] = {"precompute_ref_log_probs": True}


def data(chosen: Any = -9.0, rejected: Any = -4.0) -> Dataset:
    return tiny.preferences(8, sft_chosen=[chosen] * 8, sft_rejected=[rejected] * 8)


def first_sums(run: Any) -> list[list[float]]:
    """The reference log-probs of the first batch as a step reads them."""
    from trl_dpo_ext.forward.outputs import PairBatch

    batch = run.host.batch_of([run.train_dataset[index] for index in range(2)])
    found = run.reference.logps(run.model, PairBatch.take(batch, {}))
    return [side.tolist() for side in found.sums]


@columns(
    "`dataset_columns` with names for `ref_chosen_logps` and `ref_rejected_logps`", "they are read as the reference"
)
@pytest.mark.parametrize("form", ["Python", "flag", "YAML"])
def test_reference_columns_of_other_names_are_read(tmp_path: Path, form: str) -> None:
    if form == "Python":
        given: Any = MAPPED
    elif form == "flag":
        pairs = [f"{name}={column}" for name, column in MAPPED.items()]
        given = parse("--dataset_columns", *pairs, "--precompute_ref_log_probs").args.dataset_columns
    else:
        file = config_file(tmp_path, dataset_columns=MAPPED, precompute_ref_log_probs=True)
        given = parse("--config", file).args.dataset_columns
    run = runs.trainer(
        tmp_path, train_dataset=data(), eval_dataset=data(), dataset_columns=given, verify_reference=False, **STORE
    )
    assert isinstance(run.reference, DatasetReference)
    assert first_sums(run) == [[-9.0, -9.0], [-4.0, -4.0]]
    run.train()
    assert math.isfinite(run.evaluate()["eval_loss"])
    assert math.isfinite(run.evaluate(data(-8.0, -8.0))["eval_loss"])


def test_a_stream_is_read_by_its_mapped_columns_too(tmp_path: Path) -> None:
    """A stream forgets its column names when it is mapped."""
    stream = data().to_iterable_dataset()
    run = runs.trainer(tmp_path, train_dataset=stream, dataset_columns=MAPPED, verify_reference=False, **STORE)
    assert isinstance(run.reference, DatasetReference)


@columns("the true sums of the policy's start in such columns", "the first step's check passes")
def test_true_sums_start_at_zero(tmp_path: Path) -> None:
    chosen, rejected = batch_sums(stored(tmp_path / "stored", str(tmp_path / "store")))
    mine = tiny.preferences(8, sft_chosen=chosen.tolist(), sft_rejected=rejected.tolist())
    run = runs.trained(tmp_path / "columns", train_dataset=mine, dataset_columns=MAPPED, max_steps=1, **STORE)
    assert run.first_step.start_difference < 1e-4
    assert runs.logs(run)[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        columns.case(
            "the same names without `precompute_ref_log_probs`",
            "error",
            {"dataset_columns": MAPPED},
            "names ref_chosen_logps and ref_rejected_logps, which is read with precompute_ref_log_probs=True alone",
        ),
    ],
)
def test_names_that_are_not_read(tmp_path: Path, flags: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        DPOExtConfig(str(tmp_path), bf16=False, **flags)


@pytest.mark.parametrize(
    ("dataset", "mapping", "said"),
    [
        columns.case(
            "a column of one side alone",
            "error: the other column is missing",
            data(),
            {"ref_chosen_logps": "sft_chosen"},
            "has the column 'ref_chosen_logps' without 'ref_rejected_logps'",
        ),
        columns.case(
            "a column with a missing number",
            "error with the count and the first row",
            data(chosen=None),
            MAPPED,
            r"column 'ref_chosen_logps' must be a number .*; wrong in 8 of 8 rows, first in row 0",
        ),
        columns.case(
            "a column with an infinite number",
            "error with the count and the first row",
            data(rejected=-math.inf),
            MAPPED,
            "column 'ref_rejected_logps' must be finite",
        ),
        columns.case("a column of texts", "error", data(chosen="-9.0"), MAPPED, "'ref_chosen_logps' must be a number"),
    ],
)
def test_columns_that_cannot_be_read(tmp_path: Path, dataset: Dataset, mapping: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        runs.trainer(tmp_path, train_dataset=dataset, dataset_columns=mapping, **STORE)


@columns("columns `ref_chosen_logps` and `ref_rejected_logps` without `precompute_ref_log_probs`", "warning: not read")
def test_columns_that_are_not_read_are_told(tmp_path: Path) -> None:
    own = data().rename_columns({column: name for name, column in MAPPED.items()})
    with pytest.warns(UserWarning, match="ref_chosen_logps, ref_rejected_logps. that this run does not read"):
        runs.trainer(tmp_path, train_dataset=own)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "train_dataset has reference log-probs")
        runs.trainer(tmp_path, train_dataset=own, loss_type="simpo")  # which reads no reference
    assert set(read_columns(own)) == set(MAPPED)
    assert read_columns(data()) == {}
