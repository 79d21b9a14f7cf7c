"""What of a run is compared with the one that wrote a checkpoint, and what a damaged record of it does."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests.support import runs
from trl_dpo_ext.distributed.resumption import RUN_FILE, check_run, describe_run

ROWS = [{"prompt_ids": [1, at], "chosen_ids": [2], "rejected_ids": [3], "list_scores": [1.0, at]} for at in range(12)]


def described(rows: Any = ROWS, columns: tuple[str, ...] = (), **settings: Any) -> dict[str, Any]:
    args = runs.config("out", **settings)
    return describe_run(args.loss_mixture().describe(), args, Dataset.from_list(rows), columns)


def said(before: Any, now: dict[str, Any], folder: Path) -> list[str]:
    (folder / RUN_FILE).write_text(before if isinstance(before, str) else json.dumps(before))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_run(now, folder)
    return [str(warning.message).removeprefix(f"{folder} ") for warning in caught]


@pytest.mark.parametrize(
    ("name", "before", "now"),
    [
        ("list_pairs", "all", "3"),
        ("list_reduction", "mean", "sum"),
        ("max_completions", None, 4),
        ("gather_lists", False, True),
        ("f_divergence_type", "reverse_kl", "js_divergence"),
        ("ld_alpha", None, 0.5),
        ("use_weighting", False, True),
        ("weight_column", None, "weight"),
        ("reference_free", False, True),
        ("max_length", 1024, 512),
        ("truncation_mode", "keep_start", "keep_end"),
        ("seed", 42, 1),
        ("data_seed", None, 1),
    ],
)
def test_an_option_that_changes_what_is_trained_is_compared(tmp_path: Path, name: str, before: Any, now: Any) -> None:
    found = said(described(), described(**{name: now}), tmp_path)
    assert found == [
        f"was trained with {name}={before}, and this run goes on with {name}={now}. Set what differs as it was, or start a "
        "new run from the checkpoint's weights."
    ]


def test_all_that_differs_is_named_at_once_and_what_is_the_same_is_not(tmp_path: Path) -> None:
    (found,) = said(described(list_pairs="2", seed=3), described(list_pairs="best", seed=3, data_seed=5), tmp_path)
    assert found.startswith(
        "was trained with list_pairs=2, data_seed=None, and this run goes on with list_pairs=best, data"
    )


@pytest.mark.parametrize(("before", "now"), [("2", 2), (4, "4")])
def test_a_number_and_its_text_are_the_same(tmp_path: Path, before: Any, now: Any) -> None:
    assert said(described(list_pairs=before), described(list_pairs=now), tmp_path) == []


def test_lists_are_compared_by_more_than_their_best_and_worst_completion(tmp_path: Path) -> None:
    other = [{**row, "list_scores": [1.0, -7.0]} for row in ROWS]
    assert said(described(), described(other), tmp_path) == []
    columns = ("list_scores", "absent")
    assert said(described(columns=columns), described(columns=columns), tmp_path) == []
    (found,) = said(described(columns=columns), described(other, columns), tmp_path)
    assert "was trained on other data" in found


@pytest.mark.parametrize(
    "file",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"options": null}',
        '{"options": [1]}',
        '{"optim": null, "losses": null}',
        '{"data": null}',
    ],
)
def test_a_record_that_tells_nothing_of_it_is_passed_over(tmp_path: Path, file: str) -> None:
    (tmp_path / "optimizer.pt").touch()
    assert said(file, described(), tmp_path) == []


def test_the_record_of_an_earlier_version_has_no_options(tmp_path: Path) -> None:
    before = {name: value for name, value in described().items() if name != "options"}
    assert said(before, described(list_pairs="2", seed=9), tmp_path) == []
