"""Texts without a prompt: what both sides begin with is the prompt, and rows in which that goes wrong are told."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset, IterableDataset

from tests.support import runs
from trl_dpo_ext.data.prepare import checked_datasets
from trl_dpo_ext.errors import InputError

from .listing import Kind

implicit = Kind("Texts without a prompt")

HUMAN = "\n\nHuman: say\n\nAssistant:"
GOOD = {"chosen": f"{HUMAN} yes", "rejected": f"{HUMAN} no"}
SPLIT = {"prompt": f"{HUMAN}", "chosen": " yes", "rejected": " no"}
ONE_IN_OTHER = {"chosen": f"{HUMAN} yes", "rejected": f"{HUMAN} yes please"}
OTHER_IN_ONE = {"chosen": f"{HUMAN} no no", "rejected": f"{HUMAN} no"}
EMPTY = {"chosen": f"{HUMAN} yes", "rejected": HUMAN}


def prepared(rows: Any) -> tuple[Any, list[str]]:
    dataset = Dataset.from_list(rows) if isinstance(rows, list) else rows
    args = SimpleNamespace(
        gather_lists=False, texts_to_messages=False, dataset_columns=None, precompute_ref_log_probs=False
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = checked_datasets({}, args, train_dataset=dataset)["train_dataset"]
    return found, [str(warning.message) for warning in caught]


def streamed(rows: list[dict[str, Any]]) -> IterableDataset:
    return IterableDataset.from_generator(lambda: iter(rows))


@implicit(
    "one side is the start of the other, in some rows", "they are dropped; a warning has their number and the first"
)
def test_rows_in_which_one_side_is_the_start_of_the_other_are_dropped() -> None:
    rows = [GOOD, ONE_IN_OTHER, GOOD, OTHER_IN_ONE, EMPTY, GOOD]
    found, (told,) = prepared(rows)
    assert [found[at] for at in range(len(found))] == [GOOD] * 3
    assert told.startswith(
        "train_dataset: 3 of 6 rows are dropped, first row 1: there is no prompt, and one side is the"
    )
    assert told.endswith("Add a column 'prompt' to keep them. (ignore_findings: torn)")


def test_nothing_is_dropped_beside_a_prompt() -> None:
    row = {"prompt": HUMAN, "chosen": " yes", "rejected": " yes please"}
    data = Dataset.from_list([row] * 2)
    found, told = prepared(data)
    assert found is data
    assert told == []


def test_other_columns_stay_with_their_rows() -> None:
    rows = [{**row, "weight": float(at)} for at, row in enumerate([ONE_IN_OTHER, GOOD, EMPTY, GOOD])]
    found, _ = prepared(rows)
    assert found["weight"][:] == [1.0, 3.0]


@implicit("the same in a stream", "they are dropped, with a warning")
@pytest.mark.parametrize("first", [GOOD, ONE_IN_OTHER], ids=["later", "first"])
def test_rows_of_a_stream_are_dropped(first: dict) -> None:
    found, _ = prepared(streamed([first, GOOD, EMPTY, GOOD]))
    with pytest.warns(UserWarning, match="train_dataset: streamed rows are dropped: there is no prompt, and one side"):
        kept = list(found)
    assert len(kept) == 2 + (first is GOOD)
    assert all(row["chosen"].endswith(" yes") for row in kept)


@implicit("one side is the start of the other, in every row", "error")
@pytest.mark.parametrize("kind", [list, streamed])
def test_no_row_that_can_be_trained_on(kind: Any) -> None:
    with pytest.raises(InputError, match=r"one side is the start of the other.* in all . rows"):
        prepared(kind([ONE_IN_OTHER, EMPTY]) if kind is streamed else [ONE_IN_OTHER, EMPTY])


@implicit(
    "no common start, and a chosen answer that ends with a blank (TRL takes the answer as the prompt)",
    "an empty prompt, and a warning",
)
def test_a_blank_at_the_end_is_no_prompt() -> None:
    found, (told,) = prepared([{"chosen": "yes ", "rejected": "no"}, GOOD])
    assert [found[at] for at in range(2)] == [{"chosen": "yes ", "rejected": "no", "prompt": ""}, SPLIT]
    assert "the texts of both sides have no common start, in 1 of 2 rows, first in row 0" in told
    stream = prepared(streamed([GOOD, {"chosen": "yes ", "rejected": "no"}]))[0]
    with pytest.warns(UserWarning, match="no common start"):
        assert list(stream)[1] == {"chosen": "yes ", "rejected": "no", "prompt": ""}


def test_a_run_trains_on_what_is_left(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="1 of 5 rows are dropped"):
        run = runs.trained(tmp_path, train_dataset=Dataset.from_list([GOOD] * 4 + [EMPTY]), max_steps=1)
    assert len(run.train_dataset) == 4
