"""The GPU kit loses no result: not to a part that fails, hangs or dies, nor to the end of the minutes."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import gpu  # noqa: E402
from on_gpu import book as books  # noqa: E402
from on_gpu import plan, report, results  # noqa: E402


def dry_book(folder: Path, stage: str = "losses", **keywords: Any) -> Any:
    return books.Book(stage, folder, dry=True, **{"commit": "abc", **keywords})


def written(folder: Path, stage: str = "losses") -> dict[str, Any]:
    return json.loads((folder / "gpu.json").read_text())[stage]["cells"]


def test_every_stage_has_a_module_and_all_runs_each_once() -> None:
    everything = [stage for group in plan.groups_of(["all"]) for stage in group]
    assert sorted(everything) == sorted(plan.STAGES)
    for stage in plan.STAGES.values():
        assert importlib.util.find_spec(f"on_gpu.{stage.module}") is not None
        assert stage.least <= stage.limit < 8 * 60


def test_checks_come_first_and_what_is_timed_runs_alone() -> None:
    first, *others = plan.groups_of(["all"])
    assert {"exact", "losses", "training", "reference", "engines"} == set(first)
    assert all(len(group) == 1 for group in others)


@pytest.mark.parametrize(("left", "expected"), [(500, {"step": 150}), (90, {"step": 90}), (60, {})])
def test_a_stage_gets_what_is_left_if_that_is_enough(left: float, expected: dict[str, float]) -> None:
    assert plan.limits(["step"], left) == expected


def test_an_unknown_stage_is_refused_with_the_list_of_stages(capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        gpu.parse(["losses+lasers"])
    assert "no such stage: lasers; there are exact," in capsys.readouterr().err


def test_without_a_gpu_the_command_says_so(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "out")]) == 2
    assert "--dry-run" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_cell_that_fails_is_written_and_the_next_one_runs(tmp_path) -> None:
    book = dry_book(tmp_path)
    with book.cell("broken") as out:
        out["before"] = 1.0
        raise RuntimeError("no kernel image")
    assert written(tmp_path)["broken"]["error"] == "RuntimeError: no kernel image"
    assert written(tmp_path)["broken"]["before"] == 1.0
    with book.cell("wrong") as out:
        book.check(out, "small enough", 2 < 1)
        book.check(out, "finite", True)
    with book.cell("right") as out:
        book.check(out, "small enough", True)
    with book.cell("a figure") as out:
        out["ms"] = 1.23456789
    assert {n: c["status"] for n, c in written(tmp_path).items()} == {
        "broken": "failed", "wrong": "failed", "right": "passed", "a figure": "ran",
    }  # fmt: skip
    assert book.failed == ["broken", "wrong"]


def test_a_dry_run_has_no_figures_of_a_gpu(tmp_path) -> None:
    from on_gpu import clocks

    book, ran = dry_book(tmp_path), []
    with book.cell("times") as out:
        out["ms"] = clocks.milliseconds(book, lambda: ran.append(1))
        out["ratio"] = 2 * out["ms"] / clocks.once(book, lambda: ran.append(2))
        out["mib"] = [clocks.peak_mib(book, lambda: ran.append(3)), clocks.allocated_mib(book)]
    assert ran == [1, 2, 3]
    cell = written(tmp_path)["times"]
    assert cell["ms"] == cell["ratio"] == "not measured"
    assert cell["mib"] == ["not measured"] * 2


def test_a_value_that_is_nan_on_a_gpu_stays_nan() -> None:
    assert books._plain({"loss": math.nan, "all": [math.inf, 0.123456789]}, dry=False) == {
        "loss": "nan", "all": ["inf", 0.12346],
    }  # fmt: skip


def fill(folder: Path, commit: str) -> list[str]:
    """What a book with three cells runs: one passes, one fails, one comes too late."""
    book, ran = dry_book(folder, commit=commit), []
    for name, holds in {"passes": True, "fails": False}.items():
        if book.wanted(name):
            ran.append(name)
            with book.cell(name) as out:
                book.check(out, "holds", holds)
    book.dry, book.seconds = False, 0  # as on a GPU whose time is over
    assert not book.wanted("late")
    return ran


def test_started_again_what_passed_is_kept_and_the_rest_runs(tmp_path) -> None:
    assert fill(tmp_path, "abc") == ["passes", "fails"]
    assert written(tmp_path)["late"] == {"status": "not run", "why": "no time left"}
    assert fill(tmp_path, "abc") == ["fails"]
    assert set(written(tmp_path)) == {"passes", "fails", "late"}
    assert fill(tmp_path, "def") == ["passes", "fails"]  # another commit


@pytest.mark.parametrize("commit", ["", "abc-changed"])
def test_results_of_code_that_nobody_can_name_are_not_kept(tmp_path, commit: str) -> None:
    assert fill(tmp_path, commit) == fill(tmp_path, commit) == ["passes", "fails"]


def test_stages_side_by_side_do_not_overwrite_each_other(tmp_path) -> None:
    one, other = dry_book(tmp_path), dry_book(tmp_path, "exact")
    for book, name in ((one, "a"), (other, "b"), (one, "c")):
        with book.cell(name):
            pass
    assert set(written(tmp_path)) == {"a", "c"}
    assert set(written(tmp_path, "exact")) == {"b"}


def test_the_page_begins_with_the_versions_and_with_what_failed(tmp_path) -> None:
    book = dry_book(tmp_path)
    book.not_run("zero2", "deepspeed is not installed")
    with book.cell("speed") as out:
        out["per batch"] = {"TRL": {"ms": 2.0, "of": "a|b"}, "ours": {"ms": 1.0}}
        book.check(out, "faster", False)
    book.close()
    page = (tmp_path / "gpu.md").read_text()
    assert f"commit abc.\nPython {'.'.join(map(str, sys.version_info[:3]))}, torch {torch.__version__}" in page
    assert (
        page.index("## Failed\n\n- losses: speed") < page.index("## Not run\n\n- losses: zero2") < page.index("FAILED")
    )
    assert "| TRL | 2.0 | a\\|b |\n| ours | 1.0 |  |" in page


CUT = [
    {"header": {"ended": "over its time"}},
    {"header": {"only": ["a"]}},
    {"header": {"commit": "def"}},
    {"cells": {"a": {"status": "failed"}}},
    {"cells": {"a": {"status": "not run", "why": "no time left"}}},
]


@pytest.mark.parametrize("cut", [{}, *CUT], ids=str)
def test_a_stage_runs_again_unless_nothing_of_it_is_left(tmp_path, monkeypatch, cut: dict[str, Any]) -> None:
    cells = {"a": {"status": "passed"}, "b": {"status": "not run", "why": "deepspeed is not installed"}}
    header = {"card": "some", "commit": "abc", "stage_seconds": 3.0, **cut.get("header", {})}
    results.change(tmp_path, "losses", {"header": header, "cells": {**cells, **cut.get("cells", {})}})
    scripts, _ = run_scripts(tmp_path, monkeypatch, {"losses": ""}, "losses", "--commit", "abc")
    assert scripts.started == (["losses"] if cut else [])


class Script:
    """Stands for `gpu.start`: a process that writes a cell and then runs a line of Python."""

    def __init__(self, folder: Path, lines: dict[str, str]) -> None:
        self.folder, self.lines, self.started = folder, lines, []

    def __call__(self, stage: str, seconds: float, options: Any) -> subprocess.Popen[bytes]:
        self.started.append(stage)
        results.change(self.folder, stage, {"header": {"card": "some"}, "cells": {"first": {"status": "passed"}}})
        with (self.folder / f".{stage}.log").open("wb") as log:
            return subprocess.Popen([sys.executable, "-c", self.lines[stage]], stdout=log, stderr=log)


def run_scripts(folder: Path, monkeypatch: pytest.MonkeyPatch, lines: dict[str, str], *argv: str) -> tuple[Script, int]:
    scripts = Script(folder, lines)
    monkeypatch.setattr(gpu, "start", scripts)
    monkeypatch.setattr(gpu, "_GRACE", 1)
    return scripts, gpu.run_all(gpu.parse([*argv, "--out", str(folder)]))


def test_a_stage_that_dies_or_hangs_costs_its_own_time_alone(tmp_path, monkeypatch, capsys) -> None:
    lines = {
        "exact": "import os; os.kill(os.getpid(), 11)",
        "losses": "import time; time.sleep(60)",
        "probe": "print('fine')",
    }
    began = time.monotonic()
    scripts, status = run_scripts(tmp_path, monkeypatch, lines, "exact+losses", "probe", "--limit", "1")
    assert status == 1
    assert time.monotonic() - began < 20
    assert scripts.started == ["exact", "losses", "probe"]
    everything = results.results(tmp_path)
    assert everything["exact"]["header"]["ended"] == "ended with status -11"
    assert everything["losses"]["header"]["ended"] == "ended, over its time"
    assert "ended" not in everything["probe"]["header"]
    assert all("first" in content["cells"] for content in everything.values())
    assert report.tally(everything)["failed"] == ["exact: ended with status -11", "losses: ended, over its time"]
    assert "===== probe\nfine" in (tmp_path / "gpu.log").read_text()
    assert "failed: 2\n  exact: ended" in capsys.readouterr().out


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (1, 1)])
def test_the_exit_status_tells_whether_a_cell_failed(tmp_path, monkeypatch, code: int, expected: int) -> None:
    assert run_scripts(tmp_path, monkeypatch, {"losses": f"raise SystemExit({code})"}, "losses")[1] == expected


def test_a_stage_is_not_begun_without_the_minutes_for_it(tmp_path, monkeypatch, capsys) -> None:
    scripts, status = run_scripts(tmp_path, monkeypatch, {"losses": ""}, "step", "losses", "--minutes", "0.6")
    assert (scripts.started, status) == (["losses"], 0)
    assert "step: not run, 36 s left" in capsys.readouterr().out


def test_an_error_outside_of_cells_ends_its_stage_and_is_written(tmp_path, monkeypatch) -> None:
    from on_gpu import losses

    def broken(_book: Any) -> None:
        raise ImportError("no module named trl")

    monkeypatch.setattr(losses, "run", broken)
    assert gpu.run_all(gpu.parse(["losses", "--dry-run", "--out", str(tmp_path)])) == 1
    assert results.results(tmp_path)["losses"]["header"]["ended"] == "ended by ImportError: no module named trl"


@pytest.mark.slow
def test_a_stage_runs_as_a_process_from_any_folder(tmp_path) -> None:
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "gpu.py"),
        "losses",
        "--dry-run",
        "--processes",
        "--out",
        "out",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    checks = written(tmp_path / "out")["values and gradients"]["checks"]
    assert checks == {"every loss runs on the device": True, "no relative difference above 1e-05": True}


def test_the_wheels_have_the_versions_that_the_suite_runs_with() -> None:
    pinned, tested = (
        dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / file).read_text(), re.MULTILINE))
        for file in ("benchmarks/on_gpu/wheels.txt", "constraints.txt")
    )
    assert {"trl", "datasets", "bitsandbytes", "peft", "accelerate"} <= set(pinned)
    assert {name: tested[name] for name in pinned if name in tested}.items() <= pinned.items()
