"""What max_length does to streamed rows is counted while they pass, and told once."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset
from trl import ModelConfig

from tests.support import runs
from trl_dpo_ext.cli.run_summary import print_run_summary
from trl_dpo_ext.data import streams
from trl_dpo_ext.data.prepare import checked_datasets
from trl_dpo_ext.errors import InputError

from .listing import Kind

streamed = Kind("Streamed rows beyond max_length")

LONG = {"prompt": " ".join(["say"] * 9), "chosen": " yes", "rejected": " no"}
CUT = {"prompt": "say yes", "chosen": " yes yes yes yes yes yes yes yes", "rejected": " no"}
SHORT = {"prompt": "say", "chosen": " yes", "rejected": " no"}
SETTINGS: dict[str, Any] = {"max_length": 8, "per_device_train_batch_size": 2}


def stream(*rows: dict[str, Any], arrow: bool = False) -> IterableDataset:
    if arrow:
        return Dataset.from_list(list(rows)).to_iterable_dataset()
    return IterableDataset.from_generator(lambda: iter(rows))


def told(folder: Path, data: Any, **settings: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runs.trained(folder, train_dataset=data, **{**SETTINGS, "max_steps": 4, **settings})
    return [str(warning.message) for warning in caught if "streamed rows" in str(warning.message)]


ROWS = [LONG, CUT, SHORT, LONG, SHORT, CUT, SHORT, SHORT]


@streamed("some rows are dropped or cut", "warnings with their number at the end of the first epoch")
@pytest.mark.parametrize("arrow", [False, True], ids=["generator", "arrow"])
def test_streamed_rows_are_counted_once(tmp_path: Path, arrow: bool) -> None:
    first, second = told(tmp_path, stream(*ROWS, arrow=arrow), max_steps=6)  # two epochs
    assert first.startswith(
        "train dataset: 2 of the first 8 streamed rows are dropped: the prompt alone fills max_length=8"
    )
    assert second.startswith("train dataset: max_length=8 cuts the answers of 2 of the 6 that are left of the first 8")


@streamed("the same, and a stream that does not end", "they are told after the first 1000 rows")
def test_a_long_stream_is_told_before_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "COUNTED", 4)
    first, second = told(tmp_path, stream(*ROWS * 3), max_steps=5)
    assert first.startswith("train dataset: 2 of the first 4 streamed rows are dropped")
    assert "answers of 1 of the 2 that are left of the first 4" in second


def test_a_stream_that_fits_is_trained_on_in_silence(tmp_path: Path) -> None:
    assert told(tmp_path, stream(*[SHORT] * 8)) == []
    assert told(tmp_path, stream(*ROWS), max_length=None) == []


@streamed("every row is dropped", "error")
@pytest.mark.parametrize("counted", [4, 1000])
def test_a_stream_of_which_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: int) -> None:
    monkeypatch.setattr(streams, "COUNTED", counted)
    with pytest.raises(InputError, match=f"all of the first {min(counted, 8)} streamed rows are dropped"):
        told(tmp_path, stream(*[LONG] * 8))


@streamed("evaluation on a stream", "counted on its own")
def test_an_evaluation_stream_is_counted(tmp_path: Path) -> None:
    run = runs.trainer(tmp_path, eval_dataset=stream(*ROWS), per_device_eval_batch_size=2, **SETTINGS)
    with pytest.warns(UserWarning, match="eval dataset: 2 of the first 8 streamed rows are dropped"):
        run.evaluate()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*streamed rows")
        run.evaluate()


def test_a_store_reads_a_stream_before_training(tmp_path: Path) -> None:
    run = runs.trainer(tmp_path, train_dataset=stream(*ROWS), precompute_ref_log_probs=True, **SETTINGS)
    run.precompute_reference()
    with pytest.warns(UserWarning, match="2 of the first 8 streamed rows are dropped"):
        run.train()


def test_the_start_is_cut_with_keep_end(tmp_path: Path) -> None:
    (line,) = told(tmp_path, stream(CUT, SHORT), truncation_mode="keep_end")
    assert "cuts the answers of 1 of the first 2 streamed rows" in line


def test_both_kinds_of_datasets_are_counted_alike(tmp_path: Path) -> None:
    kept = [row for row in ROWS if row is not LONG]
    with pytest.warns(UserWarning, match=r"cuts the answers of 2 of 6 rows \(chosen in 2, rejected in 0\)"):
        runs.trainer(tmp_path, train_dataset=Dataset.from_list(kept), **SETTINGS)
    assert any("(chosen in 2, rejected in 0)" in line for line in told(tmp_path, stream(*kept)))


@streamed("`train` with `--dataset_streaming`", "the run summary says what is counted")
def test_the_run_summary_says_what_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = runs.trainer(tmp_path, train_dataset=stream(*ROWS), **SETTINGS)
    with caplog.at_level("INFO", "trl_dpo_ext.cli.run_summary"):
        print_run_summary(run, ModelConfig(), None)
    assert "Data: streamed, so that rows are checked as they come" in caplog.text
    assert "counted in the first 1000" in caplog.text


@streamed("rows that are tokenized already, in a stream that does not know its columns", "they are not renamed again")
def test_a_stream_of_token_ids_is_known_by_its_first_row() -> None:
    row: dict[str, Any] = {**SHORT, "prompt_ids": [5, 6], "chosen_ids": [7, 2], "rejected_ids": [8, 2]}
    data = stream(row)
    assert data.column_names is None
    args = runs.config("unused", dataset_columns={"prompt": "question"})
    checked = checked_datasets({}, args, train_dataset=data)["train_dataset"]
    assert next(iter(checked)) == row
