"""The command that writes the golden vectors, run once for all processes of a test session: it takes seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

GOLDEN = Path(__file__).parents[1] / "golden"


def written_vectors(factory: pytest.TempPathFactory) -> bytes:
    """What `python -m tests.golden.cases` writes, in a copy of its folder from which the package cannot be imported."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "golden"
    vectors = folder / "tests" / "golden" / "vectors.json"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            shutil.copytree(GOLDEN, vectors.parent, ignore=shutil.ignore_patterns("__pycache__", vectors.name))
            (folder / "tests" / "__init__.py").touch()
            command, environment = (
                [sys.executable, "-m", "tests.golden.cases"],
                {**os.environ, "PYTHONPATH": str(folder)},
            )
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
    return vectors.read_bytes()
