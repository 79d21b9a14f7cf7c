"""Run the parts of the suite that depend on the versions of other libraries, and record what they ran with."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "tests" / "compat" / "results.json"
LIBRARIES = (
    "torch", "trl", "transformers", "accelerate", "datasets", "peft", "bitsandbytes", "huggingface_hub", "numpy",
    "pyarrow",
)  # fmt: skip
# Numbers, contracts, parity, forward, quantization and store.
PARTS = (
    "tests/contract", "tests/parity", "tests/unit/core", "tests/unit/losses", "tests/unit/forward",
    "tests/unit/reference",
    "tests/integration/test_stored_reference*.py", "tests/integration/test_*quantized*.py",
    "tests/integration/test_drift*.py",
)  # fmt: skip
QUICK_PARTS = ("tests/contract", "tests/parity/test_values.py", "tests/unit/core", "tests/unit/losses")
# Each of these has a target of its own.
QUICK = "not distributed and not recipes and not slurm and not model and not features"


class Outcomes:
    """A plugin of pytest that counts how tests ended."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count a test at its call, and its setup and teardown where they did not pass."""
        if report.when == "call" or not report.passed:
            self.counts[report.outcome] += 1


def run(parts: tuple[str, ...]) -> tuple[int, Counter[str]]:
    """Run parts of the suite on two processes; returns pytest's exit status and the number of tests by outcome."""
    import pytest

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRITON_INTERPRET", "1")  # TRL 1.15 scores on a CPU only through Triton's interpreter
    os.chdir(ROOT)
    paths = [str(path.relative_to(ROOT)) for part in parts for path in sorted(ROOT.glob(part))]
    outcomes = Outcomes()
    options = ["--quiet", "--numprocesses=2", "--dist=worksteal", "-m", QUICK]
    return int(pytest.main([*options, *paths], plugins=[outcomes])), outcomes.counts


def record(environment: str, counts: Counter[str]) -> None:
    """Write the versions that ran and how many tests passed to `RESULTS`."""
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    results[environment] = {
        "date": datetime.date.today().isoformat(),
        "versions": {"python": platform.python_version()}
        | {library: metadata.version(library).split("+")[0] for library in LIBRARIES},
        "passed": counts["passed"],
        "failed": counts["failed"],
        "skipped": counts["skipped"],
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def as_markdown() -> str:
    """The table of versions of the README: what `make test-compat` ran with, around what `make test` runs with."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    oldest, newest = results["oldest"], results["newest"]
    pinned = versions_in(ROOT / "constraints.txt")
    rows = ["| | oldest | `make test` | newest |", "|---|---|---|---|"]
    for library in LIBRARIES:
        rows.append(
            f"| {library} | {oldest['versions'][library]} | {pinned[library]} | {newest['versions'][library]} |"
        )
    return "\n".join([*rows, f"| tests | {_ended(oldest)} | the whole suite | {_ended(newest)} |"])


def versions_in(file: Path) -> dict[str, str]:
    """The versions that a file of constraints fixes."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def _ended(result: dict[str, Any]) -> str:
    counts = ", ".join(f"{result[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped") if result[outcome])
    return f"{counts} ({result['date']})"


def main() -> int:
    """Run and record; returns the exit status of pytest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("environment", choices=("oldest", "newest", "quick"), help="quick: a few parts, not recorded")
    environment = parser.parse_args().environment
    status, counts = run(QUICK_PARTS if environment == "quick" else PARTS)
    if environment != "quick":
        record(environment, counts)
    return status


if __name__ == "__main__":
    sys.exit(main())
