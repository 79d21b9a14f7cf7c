"""What is said of columns whose values turn off or reverse a loss, or a part of it."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset, IterableDataset

from tests.support import runs
from trl_dpo_ext.data.columns import loss_columns
from trl_dpo_ext.data.validation import check_preferences

GOOD = {"prompt": ["p", "p"], "chosen": ["a", "b"], "rejected": ["x", "y"]}


def said(tmp_path: Any, columns: dict[str, list], stream: bool = False, **settings: Any) -> list[str]:
    args = runs.config(tmp_path, **settings)
    data: Any = Dataset.from_dict({**GOOD, **columns})
    data = data.to_iterable_dataset() if stream else data
    report = check_preferences(data, "train_dataset", loss_columns(args, args.loss_mixture()))
    assert report.problems == []
    return report.warnings


def scores(*chosen: float) -> dict[str, list]:
    return {"score_chosen": [*chosen], "score_rejected": [0.0, 0.0]}


CASES = [
    ("uni_dpo", scores(1.0, 0.5), scores(1.0, 3.2), "no score_chosen reaches uni_dpo_tau_good=3.2 (the highest is 1)"),
    (
        "uni_dpo",
        scores(7.0, 3.2),
        scores(7.0, 3.1),
        "every score_chosen reaches uni_dpo_tau_good=3.2 (the lowest is 3.2)",
    ),
    ("margin", {"margin": [0.0, 0.0]}, {"margin": [0.0, 0.1]}, "margin is 0 in every row"),
    ("margin", {"margin": [-2.0, -1.0]}, {"margin": [-2.0, 1.0]}, "margin is at most -1"),
    ("mappo", {"delta_r": [0, 0]}, {"delta_r": [0, 1]}, "delta_r is 0 in every row"),
    ("sppo", {"p_chosen": [0.5, 0.5]}, {"p_chosen": [0.5, 0.6]}, "neither side is preferred"),
    ("soft_dpo_p", {"p_chosen": [0.1, 0.2]}, {"p_chosen": [0.1, 0.5]}, "p_chosen is at most 0.2"),
    (
        "tis_dpo",
        {"chosen_token_weights": [[0.0], [0.0, 0.0]], "rejected_token_weights": [[1.0], [0.0]]},
        {"chosen_token_weights": [[0.0], [0.0, 0.1]], "rejected_token_weights": [[1.0], [0.0]]},
        "chosen_token_weights is 0 at every token",
    ),
]


@pytest.mark.parametrize(("loss", "idle", "used", "sentence"), CASES)
def test_a_column_that_turns_off_a_part_of_its_loss_is_told(
    loss: str, idle: dict, used: dict, sentence: str, tmp_path: Any
) -> None:
    (found,) = said(tmp_path, idle, loss_type=loss)
    assert sentence in found
    assert said(tmp_path, used, loss_type=loss) == []


def test_weights_of_zero_are_told(tmp_path: Any) -> None:
    (found,) = said(tmp_path, {"w": [0, 0]}, weight_column="w")
    assert "nothing is learned" in found
    assert said(tmp_path, {"w": [0, 1]}, weight_column="w") == []


@pytest.mark.parametrize("losses", [["uni_dpo", "odpo"], ["odpo", "uni_dpo"]])
def test_a_loss_beside_it_that_reads_the_column_hides_nothing(losses: list[str], tmp_path: Any) -> None:
    assert len(said(tmp_path, scores(1.0, 0.5), loss_type=losses)) == 1


def test_two_terms_of_a_loss_are_told_by_their_own_thresholds(tmp_path: Any) -> None:
    losses = ["uni_dpo:uni_dpo_tau_good=2", "uni_dpo:uni_dpo_tau_good=0.7", "uni_dpo:uni_dpo_lambda=0"]
    (found,) = said(tmp_path, scores(1.0, 0.5), loss_type=losses)
    assert "uni_dpo_tau_good=2 " in found


def test_bounds_of_two_terms_hold_both(tmp_path: Any) -> None:
    args = runs.config(tmp_path, loss_type=["qrpo:qrpo_transform=log", "qrpo"])
    assert loss_columns(args, args.loss_mixture())["quantile_chosen"].broken_bound(0.0) == "> 0"


def test_one_row_of_a_stream_is_no_reason_to_doubt(tmp_path: Any) -> None:
    assert isinstance(Dataset.from_dict(GOOD).to_iterable_dataset(), IterableDataset)
    assert said(tmp_path, scores(1.0, 5.0), stream=True, loss_type="uni_dpo") == []


def test_the_range_is_that_of_all_batches(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl_dpo_ext.data import batches

    monkeypatch.setattr(batches, "_ROWS_AT_ONCE", 1)
    assert said(tmp_path, scores(5.0, 1.0), loss_type="uni_dpo") == []
