"""What a report reads from a folder, in whatever state a run has left it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from tests.unit.reports.folders import entries, write_lines, write_run, write_state, write_watched
from trl_dpo_ext.distributed.resumption import RUN_FILE
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reports.result import report_of
from trl_dpo_ext.reports.run_data import RunData, read_runs
from trl_dpo_ext.reports.run_log import read_run
from trl_dpo_ext.reports.summary import summarize_folder
from trl_dpo_ext.run_files import LOG_FILE, METRICS_FILE


def one(folder: Path) -> RunData:
    (run,) = read_runs([folder])
    return run


def test_a_finished_run_is_read_once_although_two_files_have_its_log(tmp_path: Path) -> None:
    run = one(write_run(tmp_path / "run"))
    assert run.series["loss"][0] == list(range(1, 41))
    assert run.series["eval_loss"][0] == [0, 10, 20, 30, 40]
    assert len(run.entries) == 45
    assert run.status == "step 40 of 40"


def test_a_run_that_goes_on_is_read_from_its_log(tmp_path: Path) -> None:
    run = one(write_run(tmp_path / "run", steps=17, finished=False))
    assert run.last_step == 17
    assert run.status.startswith("not finished: step 17 of 40, last written 2")
    assert read_run(tmp_path / "run").train[-1]["step"] == 17


def test_a_killed_run_goes_on_behind_its_last_checkpoint(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=23, finished=False)
    write_state(folder / "checkpoint-20", entries(20))
    with (folder / LOG_FILE).open("a") as log:
        log.write('{"loss": 0.1, "ste')  # killed while writing
    run = one(folder)
    assert run.series["loss"][0] == list(range(1, 24))
    assert run.series["eval_loss"][0] == [0, 10, 20]


def test_a_checkpoint_shows_the_run_until_then(tmp_path: Path) -> None:
    folder = write_watched(write_run(tmp_path / "run"))
    write_state(folder / "checkpoint-10", entries(10))
    run = one(folder / "checkpoint-10")
    assert run.last_step == 10
    assert {sample["step"] for sample in run.samples} == {0, 10}
    assert run.series["watch/kl_per_token"][0] == [0, 10]
    assert not any(alarm["fired"] for alarm in run.alarms)
    assert run.pairs_per_step == 8  # the record of the folder above
    (folder / "checkpoint-10" / RUN_FILE).write_text('{"losses": "of an earlier version"}')
    assert one(folder / "checkpoint-10").pairs_per_step == 8
    assert run.status == "step 10 of 40"


def test_a_run_of_plain_trl_shows_what_it_has(tmp_path: Path) -> None:
    write_state(tmp_path / "run" / "checkpoint-20", entries(20))
    run = one(tmp_path / "run")
    assert run.last_step == 20
    assert run.record == {}
    assert run.pairs_per_step is None
    assert run.epochs_at([10, 15]) == [0.5, 0.75]


def test_a_state_that_a_later_run_in_the_folder_has_not_reached_is_passed_over(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=5, finished=False)
    write_state(folder / "checkpoint-30", entries(30))
    os.utime(folder / "checkpoint-30" / "trainer_state.json", (1, 1))
    assert one(folder).last_step == 5


def test_a_run_that_was_resumed_in_another_folder_keeps_the_steps_before(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_lines(folder / LOG_FILE, [entry for entry in entries(40) if entry["step"] > 20])
    assert one(folder).series["loss"][0] == list(range(1, 41))


def test_a_watched_run_without_a_checkpoint_is_shown(tmp_path: Path) -> None:
    write_watched(tmp_path / "run")
    (tmp_path / "run" / "watch" / "alarms.jsonl").unlink()
    run = one(tmp_path / "run")
    assert run.problem is None
    assert run.last_step == 40


@pytest.mark.parametrize("kind", ["missing", "empty", "file", "no steps"])
def test_a_folder_without_a_run_says_so(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "run"
    if kind == "file":
        folder.write_text("")
    elif kind != "missing":
        folder.mkdir()
    if kind == "no steps":
        write_lines(folder / METRICS_FILE, [{"epoch": 1.0}])
    assert str(folder) in (one(folder).problem or "")


def test_values_that_were_not_finite_are_gaps(tmp_path: Path) -> None:
    write_lines(tmp_path / LOG_FILE, [{"loss": 1.0, "step": 1}, {"loss": None, "step": 2}, {"loss": 0.5, "step": 3}])
    values = one(tmp_path).series["loss"][1]
    assert math.isnan(values[1])
    assert values[2] == 0.5


def test_the_evaluation_sets_are_found_by_their_metrics(tmp_path: Path) -> None:
    write_lines(tmp_path / LOG_FILE, [{"loss": 1.0, "step": 1}, {"eval_a_loss": 1.0, "eval_b_b_loss": 1.0, "step": 1}])
    assert one(tmp_path).evaluation_sets == ["a", "b_b"]


def test_names_are_as_long_as_it_takes_to_tell_folders_apart(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / part / "out") for part in ("one", "two")]
    assert [run.name for run in read_runs(folders)] == ["one/out", "two/out"]
    assert [run.name for run in read_runs([folders[0], folders[0]])] == ["out (1)", "out (2)"]


def test_what_watching_has_from_training_steps_is_no_evaluation(tmp_path: Path) -> None:
    line = {"step": 5, "epoch": 0.5, "accuracy": 0.5, "watch/length": 3.0}
    write_lines(tmp_path / METRICS_FILE, [{**line, "evaluated": False}, {**line, "step": 10, "evaluated": True}])
    series = one(tmp_path).series
    assert series["watch/length"][0] == [5, 10]
    assert series["watched/accuracy"] == ([10], [0.5])


@pytest.mark.parametrize(
    "history",
    [
        [{"loss": 0.5, "step": 1}, {"loss": "x", "step": 2}, {"step": 3}, 7, None, {"loss": 1.0}, {"step": "4"}],
        {"loss": 0.5},
        None,
    ],
    ids=["entries", "an object", "nothing"],
)
def test_a_log_that_another_program_has_written_to_is_read_as_far_as_it_goes(tmp_path: Path, history: Any) -> None:
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    if not isinstance(history, list):
        with pytest.raises(InputError, match="no logged training step"):
            read_run(tmp_path)
        return
    assert read_run(tmp_path).training_series("loss") == ([1], [0.5])
    assert "training, loss" in summarize_folder(tmp_path)
    assert report_of(read_runs([str(tmp_path)]), "1")["runs"]


@pytest.mark.parametrize("content", [b"", b'{"log_history": [{"loss": 1', b"[]", b"null", b"\xff\xfe\x00bad"])
@pytest.mark.parametrize("place", [".", "checkpoint-5"])
def test_a_damaged_state_is_not_said_to_be_absent(tmp_path: Path, content: bytes, place: str) -> None:
    file = tmp_path / place / "trainer_state.json"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"trainer_state\.json cannot be read as JSON\. Copy it again"):
        read_run(tmp_path)
