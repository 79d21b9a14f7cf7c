"""What a run learned, from the log in its output folder."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reports.plot import plot_run
from trl_dpo_ext.reports.run_log import read_run
from trl_dpo_ext.reports.summary import summarize

METRICS = ("loss", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected")


def write_state(folder: Path, steps: int, evaluated: bool = False) -> None:
    rows: list[dict[str, Any]] = [{"step": n, **dict.fromkeys(METRICS, n / steps)} for n in range(1, steps + 1)]
    if evaluated:
        rows.append({"step": steps, **{f"eval_{m}": 0.25 for m in METRICS}})
    rows.append({"step": steps, "train_runtime": 1.0})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": rows}))


def test_summary_has_the_first_and_last_value_of_each_metric(tmp_path) -> None:
    write_state(tmp_path, 4, evaluated=True)
    lines = summarize(read_run(tmp_path)).splitlines()
    assert lines[0] == f"{tmp_path}: 4 logged steps, 1 to 4"
    assert lines[2].split() == ["training,", "loss", "0.25", "1"]
    assert lines[-1].split() == ["evaluation,", "log-prob", "of", "rejected", "0.25", "0.25"]
    assert len({len(line) for line in lines[1:]}) == 1  # the columns stand below each other


def test_without_a_state_beside_the_model_the_newest_checkpoint_is_read(tmp_path) -> None:
    write_state(tmp_path / "checkpoint-9", 9)
    write_state(tmp_path / "checkpoint-10", 10)
    write_state(tmp_path / "checkpoint-copy", 3)
    assert read_run(tmp_path).train[-1]["step"] == 10
    assert read_run(tmp_path / "checkpoint-9").train[-1]["step"] == 9


def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(tmp_path) -> None:
    write_state(tmp_path / "checkpoint-9", 9)
    (tmp_path / "checkpoint-10").mkdir()
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text("{")
    assert read_run(tmp_path).train[-1]["step"] == 9


def test_a_state_beside_the_model_goes_before_a_checkpoint(tmp_path) -> None:
    write_state(tmp_path / "checkpoint-2", 2)
    write_state(tmp_path, 4)
    assert read_run(tmp_path).train[-1]["step"] == 4


def test_a_folder_without_a_run_is_named(tmp_path) -> None:
    with pytest.raises(InputError, match=r"nor a checkpoint in it has a trainer_state\.json"):
        read_run(tmp_path)


def test_a_run_that_logged_nothing_says_what_to_set(tmp_path) -> None:
    write_state(tmp_path, 0)
    with pytest.raises(InputError, match="logging_steps"):
        read_run(tmp_path)


@pytest.mark.parametrize("evaluated", [False, True])
def test_the_plot_is_a_picture(tmp_path, evaluated: bool) -> None:
    write_state(tmp_path, 8, evaluated)
    plot_run(tmp_path, tmp_path / "run.png", held_out=[{"step": 0, "eval_rewards/accuracies": 0.5}])
    picture = (tmp_path / "run.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000


def test_a_plot_without_matplotlib_says_what_to_install(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_state(tmp_path, 2)
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"trl-dpo-ext\[plot\]"):
        plot_run(tmp_path, tmp_path / "run.png")
