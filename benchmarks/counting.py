"""What a computation costs, counted so that it does not depend on the machine: operators, and memory at its peak.

For people beside it: what measured, and how a benchmark shows what it has found.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Counts:
    """Of one run of a function."""

    operators: int
    """Calls of torch's operators, those inside others included."""
    peak: int
    """Most bytes that tensors took at a time beyond those of before."""


def count(run: Callable[[], object], device: str) -> Counts:
    """Run a function, and count what torch does and allocates in it."""
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=device == "cpu") as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    operators = sum(event.name().startswith("aten::") for event in events)
    if device != "cpu":
        torch.cuda.synchronize()
        return Counts(operators, torch.cuda.max_memory_allocated() - before)
    held = peak = 0
    for event in sorted((event for event in events if event.name() == "[memory]"), key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return Counts(operators, peak)


@dataclass(frozen=True)
class Seconds:
    """A time, or a difference of two."""

    wall: float
    processor: float
    """Of all threads of this process: other processes on the same cores change it less."""

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall + other.wall, self.processor + other.processor)

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall - other.wall, self.processor - other.processor)


def now(device: str) -> Seconds:
    """The time when the device has done what it was asked for."""
    if device != "cpu":
        torch.cuda.synchronize()
    return Seconds(time.perf_counter(), time.process_time())


def timed(run: Callable[[], object], device: str) -> Seconds:
    """Run a function, and take its time."""
    before = now(device)
    run()
    return now(device) - before


def machine(device: str) -> str:
    """What measured, and what else ran on it, in one line."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl"))
    where = torch.cuda.get_device_name() if device != "cpu" else f"{_processor()}, {torch.get_num_threads()} threads"
    return f"{time.strftime('%d %B %Y')}, {where}; {versions}; load average {_load()}"


def commit() -> str:
    """The commit of this checkout, with -dirty where files have changed since."""
    command = ["git", "describe", "--always", "--dirty"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    return found.stdout.strip() or "unknown"


def show(options: argparse.Namespace, text: str) -> None:
    """Print text, and append it to the file in `options.output`, if any."""
    print(text, flush=True)
    if options.output:
        with options.output.open("a") as file:
            file.write(f"{text}\n")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _load() -> str:
    file = Path("/proc/loadavg")
    return file.read_text().split()[0] if file.is_file() else "unknown"
