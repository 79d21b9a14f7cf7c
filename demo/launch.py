"""Run a training command, show its progress, and write its complete output to a file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

# Lines that are written only to the log file. TRL's metrics of each step are in the plot.
_HIDDEN = re.compile(
    r"^\s*$|^\s*\{'|Warning: |^\s+warnings\.warn|^\s+super\(\)\.__init__|^Failed to load CPU gemm_4bit"
)


def environment() -> dict[str, str]:
    """Return the environment of the training process.

    `accelerate launch` sets OMP_NUM_THREADS for its child to the number of physical cores unless it is set. On a
    machine whose two cores are hyper-threads of one, that would leave one idle.

    The two MALLOC_ settings let glibc keep the memory of the large tensors of each step, instead of returning it to the
    kernel and having it zeroed again.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ours = {
        "OMP_NUM_THREADS": str(cores),
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(2**62),
        "PYTHONUNBUFFERED": "1",
        "PATH": sysconfig.get_path("scripts") + os.pathsep + os.environ.get("PATH", ""),
    }
    return ours | {name: value for name, value in os.environ.items() if name != "PATH"}


def launch(command: list[str], log: Path, show: bool = True) -> None:
    """Run ``command`` and show its progress unless told not to; if it fails, exit with the end of its output."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment())
    assert process.stdout is not None
    shown = b""
    with log.open("wb") as file:
        while piece := os.read(process.stdout.fileno(), 4096):
            file.write(piece)
            shown = _show(shown + piece) if show else b""
    if process.wait() != 0:
        tail = log.read_text(encoding="utf-8", errors="replace")[-3000:]
        raise SystemExit(
            f"{tail}\nThe command failed with status {process.returncode}; its complete output is in {log}."
        )


def _show(text: bytes) -> bytes:
    """Print the complete lines of ``text`` that are not hidden, and return the incomplete rest."""
    *lines, rest = re.split(rb"(?<=[\r\n])", text)
    for line in lines:
        decoded = line.decode("utf-8", errors="replace")
        if not _HIDDEN.search(decoded):
            sys.stdout.write(decoded)
    sys.stdout.flush()
    return rest
