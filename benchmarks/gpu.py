"""The checks and the figures that need a GPU, stage by stage, on the one at hand.

    python benchmarks/gpu.py --minutes 8             # what matters most, as far as the minutes go
    python benchmarks/gpu.py smoke step-8b           # these stages
    python benchmarks/gpu.py --dry-run               # toy sizes on a CPU: does the kit itself run?

Each stage is a process of its own with a time limit; stages joined by `+` run side by side, which is for checks and not
for what is timed. Every cell is written to OUT/gpu.json and OUT/gpu.md as it ends; a cell that fails is written down,
and the others go on. Started again, cells that are done are kept. Exits with 1 if anything failed, with 2 without a
GPU. No setting of the card is changed, and nothing is downloaded: weights are random, in shapes of published models.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # the other benchmarks, and the package of this checkout

from on_gpu.plan import GROUPS, STAGES, groups_of, limits, unknown_stages  # noqa: E402
from on_gpu.report import tally  # noqa: E402
from on_gpu.results import change, finished, results  # noqa: E402

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "PYTHONUNBUFFERED": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # for the cells that ask for determinism
    "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
}
_GRACE = 15
"""Seconds after its limit at which a stage is ended: it stops between cells by itself, but not inside of one."""


def run_here(stage: str, seconds: float, options: argparse.Namespace) -> int:
    """Run one stage in this process."""
    from on_gpu.book import Book

    book = Book(stage, options.out, options.dry_run, seconds, options.only, options.commit)
    try:
        importlib.import_module(f"on_gpu.{STAGES[stage].module}").run(book)
    except Exception as error:
        traceback.print_exc()
        book.close(f"ended by {type(error).__name__}: {str(error)[:400]}")
        return 1
    book.close()
    return 1 if book.failed else 0


def start(stage: str, seconds: float, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """Start one stage as a process."""
    command = [sys.executable, __file__, stage, "--inside", str(seconds), "--out", str(options.out)]
    command += ["--commit", options.commit, *(["--dry-run"] if options.dry_run else [])]
    command += ["--only", *options.only] if options.only else []
    with (options.out / f".{stage}.log").open("w") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def run_group(group: dict[str, float], deadline: float, options: argparse.Namespace) -> bool:
    """Run stages side by side, each with its seconds; returns whether all went well."""
    began = time.monotonic()
    running, well = {stage: start(stage, seconds, options) for stage, seconds in group.items()}, True
    for stage, process in running.items():
        try:
            code: int | None = process.wait(max(min(began + group[stage] + _GRACE, deadline) - time.monotonic(), 1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = None
        log = options.out / f".{stage}.log"
        text = log.read_text(errors="replace")
        log.unlink()
        with (options.out / "gpu.log").open("a") as everything:
            everything.write(f"===== {stage}\n{text}\n")
        print(f"{stage}: {_outcome(code)}, {time.monotonic() - began:.0f} s", flush=True)
        if code != 0:
            print(text[-1500:], flush=True)
            well = False
        if code not in (0, 1):
            _write_end(options.out, stage, _outcome(code))
    return well


def _outcome(code: int | None) -> str:
    return {0: "done", 1: "failed", None: "ended, over its time"}.get(code, f"ended with status {code}")


def _write_end(folder: Path, stage: str, why: str) -> None:
    """Write into the results that a stage was ended, by this program or by a signal."""
    content = results(folder).get(stage, {"header": {"card": "unknown"}, "cells": {}})
    change(folder, stage, {**content, "header": {**content["header"], "ended": why}})


def run_all(options: argparse.Namespace) -> int:
    """Run the stages that the minutes allow, in their order; returns the exit status."""
    options.out.mkdir(parents=True, exist_ok=True)
    here = options.dry_run and not options.processes
    deadline, status = time.monotonic() + (math.inf if here else options.minutes * 60), 0
    for wanted in groups_of(options.stages):
        left = deadline - time.monotonic()
        before = results(options.out)
        group = [stage for stage in wanted if here or not finished(before.get(stage), options.commit)]
        for stage in wanted:
            if stage not in group:
                print(f"{stage}: done before")
        chosen = limits(group, left, options.limit)
        for stage in group:
            if stage not in chosen:
                print(f"{stage}: not run, {left:.0f} s left")
        if here:
            for stage in group:
                began = time.monotonic()
                code = run_here(stage, left, options)
                print(f"{stage}: {_outcome(code)}, {time.monotonic() - began:.1f} s", flush=True)
                status = max(status, code)
        elif chosen and not run_group(chosen, deadline, options):
            status = 1
    _summarize(options.out)
    return status


def _summarize(folder: Path) -> None:
    for kind, names in tally(results(folder)).items():
        print(f"{kind}: {len(names)}" + "".join(f"\n  {name}" for name in names if kind in ("failed", "not run")))
    print(f"Results: {folder}/gpu.md, {folder}/gpu.json")


def commit() -> str:
    """The commit of this checkout, marked if files differ from it; empty where git does not know it."""
    try:
        run = {"cwd": HERE, "capture_output": True, "text": True, "check": True}
        changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], **run).stdout  # type: ignore
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], **run).stdout.strip()  # type: ignore
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{head}-changed" if changed else head


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = f"{', '.join(STAGES)}, {', '.join(GROUPS)}, or several joined by +"
    parser.add_argument("stages", nargs="*", default=["all"], help=f"{names} (default: all, the most needed first)")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of the results")
    parser.add_argument("--minutes", type=float, default=8, help="for all stages together")
    parser.add_argument("--limit", type=float, help="seconds for each stage, in place of its own limit")
    parser.add_argument("--only", nargs="+", help="run only the cells whose names begin with one of these")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes on a CPU, all stages in one process")
    parser.add_argument("--processes", action="store_true", help="in a dry run, too, give each stage a process")
    parser.add_argument("--commit", default=None, help="written into the results in place of git's")
    parser.add_argument("--inside", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    unknown = unknown_stages(options.stages)
    if unknown:
        parser.error(f"no such stage: {', '.join(unknown)}; there are {names}")
    if options.commit is None:
        options.commit = commit()
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse(argv)
    for name, value in ENVIRONMENT.items():
        os.environ[name] = value if name == "PYTHONPATH" else os.environ.get(name, value)
    if options.inside is not None:
        return run_here(options.stages[0], options.inside, options)
    if not options.dry_run:
        import torch

        if not torch.cuda.is_available():
            print("No CUDA GPU is visible. --dry-run runs every cell at toy size on the CPU.")
            return 2
    return run_all(options)


if __name__ == "__main__":
    sys.exit(main())
