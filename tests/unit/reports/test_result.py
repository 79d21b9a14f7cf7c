"""What a report says of runs: values, arguments, and what must not be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.reports.folders import entries, write_run, write_state
from trl_dpo_ext.reports.metrics import summary
from trl_dpo_ext.reports.result import report_of
from trl_dpo_ext.reports.run_data import read_runs


def report(*folders: Path) -> dict[str, Any]:
    return report_of(read_runs(folders), "0")


def test_best_last_and_area() -> None:
    found = summary([0, 10, 40], [1.0, 0.0, 0.5], "low")
    assert found == {"first": 1.0, "last": 0.5, "best": 0.0, "best_step": 10, "area": (5.0 + 7.5) / 40}
    assert summary([0, 10], [1.0, 2.0], "high")["best"] == 2.0
    assert summary([0, 10], [1.0, 2.0])["best"] is None
    assert summary([5], [3.0])["area"] == 3.0
    assert summary([1, 2, 3], [1.0, float("nan"), 3.0])["area"] == 2.0
    assert set(summary([], []).values()) == {None}


def test_the_result_is_json_with_the_values_of_each_run(tmp_path: Path) -> None:
    found = report(write_run(tmp_path / "run"))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["kind"], found["format"]) == ("trl_dpo_ext.report", 1)
    (run,) = found["runs"]
    values = {(value["metric"], value["where"]): value for value in run["values"]}
    assert values["Loss", "evaluation"]["last"] == pytest.approx(0.2)
    assert values["Reward accuracy", "training"]["best_step"] == 40
    assert values["Log-prob of chosen, per answer", "evaluation"]["first"] == -20
    assert run["arguments"]["pairs per step"].startswith("8 (4 per process x 2 accumulated")
    assert "comparison" not in found


def test_only_arguments_that_differ_are_compared(tmp_path: Path) -> None:
    found = report(
        write_run(tmp_path / "a", beta=0.1, seed=1),
        write_run(tmp_path / "b", beta=0.3, seed=1),
        write_run(tmp_path / "c", beta=0.1, seed=1, ld_alpha=0.5),
    )
    assert found["differing"] == {"beta": ["0.1", "0.3", "0.1"], "ld_alpha": [None, None, "0.5"]}


def test_what_a_run_of_plain_trl_does_not_tell_is_no_difference(tmp_path: Path) -> None:
    write_state(tmp_path / "plain", entries(40))
    found = report(write_run(tmp_path / "a"), write_run(tmp_path / "b", beta=0.3), tmp_path / "plain")
    assert found["differing"] == {"beta": ["0.1", "0.3", None]}


@pytest.mark.parametrize(
    ("second", "letters", "same"),
    [("50 rows, aaaa", ["A", "A"], True), ("49 rows, aaaa", ["A", "B"], False), (None, ["A", "?"], False)],
)
def test_runs_on_other_evaluation_data_are_not_comparable(
    tmp_path: Path, second: str | None, letters: list[str], same: bool
) -> None:
    found = report(write_run(tmp_path / "a"), write_run(tmp_path / "b", evaluated=second))["comparison"]
    assert found["evaluation_sets"] == letters
    assert found["same_evaluation"] is same
    assert bool(found["warnings"]) is not same
    assert any("Not comparable" in warning for warning in found["warnings"]) is (letters[1] == "B")


def test_losses_and_rewards_of_other_scales_are_named(tmp_path: Path) -> None:
    runs = write_run(tmp_path / "a"), write_run(tmp_path / "b", loss="ipo"), write_run(tmp_path / "c", beta=0.5)
    found = report(*runs)["comparison"]
    assert any("different losses" in warning for warning in found["warnings"])
    assert any("beta" in warning for warning in found["warnings"])
    assert report(*runs[:1], write_run(tmp_path / "d"))["comparison"]["warnings"] == []


def test_rewards_without_a_reference_are_of_another_kind(tmp_path: Path) -> None:
    free = write_run(tmp_path / "a", loss="simpo"), write_run(tmp_path / "b")
    record = json.loads((free[0] / "trl_dpo_ext_run.json").read_text())
    record["record"]["reference"] = ["None: no loss needs one"]
    (free[0] / "trl_dpo_ext_run.json").write_text(json.dumps(record))
    found = report(*free)["comparison"]
    assert any("Rewards and margins are not comparable" in warning for warning in found["warnings"])
    assert not any("accuracies and margins" in warning for warning in found["warnings"])


def test_a_folder_without_a_run_leaves_the_others(tmp_path: Path) -> None:
    found = report(write_run(tmp_path / "a"), tmp_path / "none", write_run(tmp_path / "b", beta=0.2))
    assert [bool(run["problem"]) for run in found["runs"]] == [False, True, False]
    assert found["comparison"]["evaluation_sets"] == ["A", None, "A"]


def test_arguments_of_plain_trl_come_from_what_it_writes(tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    write_state(folder, entries(40))
    (folder / "README.md").write_text("---\nbase_model: some/base\ndatasets: [a/b]\n---\n# card\n")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8, "target_modules": ["q", "v"]}')
    (folder / "training_args.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")  # a pickle, which nobody opens
    arguments = report(folder)["runs"][0]["arguments"]
    assert arguments["model"] == "some/base"
    assert arguments["data"] == "a/b"
    assert arguments["adapter, target_modules"] == "q, v"
    assert arguments["highest learning rate"] == "9.75e-06"
    (folder / "README.md").write_text("---\n: : [\n---\n")
    assert "data" not in report(folder)["runs"][0]["arguments"]
