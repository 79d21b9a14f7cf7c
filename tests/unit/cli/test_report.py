"""The command `report`: what it prints and writes, and where it says that something is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.reports.folders import write_run
from trl_dpo_ext.cli.main import main


def test_several_runs_are_summarized_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(write_run(tmp_path / "a")), str(write_run(tmp_path / "b", beta=0.5, max_steps=99))]
    assert main(["report", *folders]) == 0
    shown = capsys.readouterr().out
    assert shown.count("training, loss") == 2
    lines = [line.split() for line in shown.splitlines()]
    assert ["a", "b"] in lines
    assert ["beta", "0.1", "0.5"] in lines
    assert ["steps", "40", "99"] in lines
    assert not any(line[:1] == ["learning_rate"] for line in lines)
    assert "beta differs between the runs" in shown


def test_json_on_standard_output_is_all_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(write_run(tmp_path / "a")), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["name"] == "a"


def test_a_page_and_json_are_written(tmp_path: Path) -> None:
    page, data = tmp_path / "page.html", tmp_path / "data.json"
    assert main(["report", str(write_run(tmp_path / "a")), "--html", str(page), "--json", str(data)]) == 0
    assert page.read_text().startswith("<!doctype html>")
    assert json.loads(data.read_text())["kind"] == "trl_dpo_ext.report"


def test_a_folder_without_a_run_is_named_and_the_others_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(write_run(tmp_path / "a")), str(tmp_path / "none")]) == 0
    shown = capsys.readouterr()
    assert "training, loss" in shown.out
    assert f"{tmp_path / 'none'} is not a folder" in shown.err


def test_without_any_run_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path), str(tmp_path / "none"), "--html", str(page)]) == 2
    said = capsys.readouterr().err
    assert "trainer_state.json" in said
    assert "is not a folder" in said
    assert not page.exists()


def test_a_plot_is_of_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(write_run(tmp_path / name)) for name in "ab"]
    assert main(["report", *folders, "--plot", str(tmp_path / "a.png")]) == 2
    assert "--plot draws one run" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--html", "--json"])
def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert main(["report", str(write_run(tmp_path / "a")), flag, str(tmp_path / "none" / "file")]) == 2
    assert "none does not exist" in capsys.readouterr().err


def test_a_page_needs_no_matplotlib_and_opens_no_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "a")
    (folder / "training_args.bin").write_bytes(b"cos\n_exit\n(I7\ntR.")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert main(["report", str(folder), "--html", str(tmp_path / "page.html")]) == 0


@pytest.mark.parametrize("flag", ["json", "html", "plot"])
def test_a_file_that_cannot_be_written_is_named_before_anything_is_read(
    tmp_path: Path, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    cases = {
        ".": "this is a folder",
        "none/a": "does not exist",
        "file/a": "does not exist",
        "a": "no run is not a folder",
    }
    for name, words in cases.items():
        assert main(["report", str(tmp_path / "no run"), f"--{flag}", str(tmp_path / name)]) == 2
        told = capsys.readouterr().err
        assert words in told
        assert (f"--{flag}" in told) is (name != "a")
    assert not (tmp_path / "a").exists()
