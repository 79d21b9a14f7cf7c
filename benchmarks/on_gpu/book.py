"""Where a stage writes what it measured: one JSON file, rewritten after every cell."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # the other benchmarks
sys.path.insert(0, str(Path(__file__).parent.parent.parent))

PACKAGES = ("triton", "transformers", "trl", "accelerate", "datasets", "bitsandbytes", "peft", "pyarrow", "numpy")
SWITCHES = ("CUBLAS_WORKSPACE_CONFIG", "PYTORCH_CUDA_ALLOC_CONF", "TORCH_CUDNN_SDPA_DEPRIORITIZED")


class Book:
    """The results of one stage.

    Args:
        stage: its name.
        folder: where `stage.json` goes.
        dry: toy sizes on the CPU.
        seconds: after which no further cell is begun.
        only: beginnings of the names of the cells to run; None runs all.
    """

    def __init__(self, stage: str, folder: Path, dry: bool, seconds: float, only: Sequence[str] | None) -> None:
        self.stage, self.dry, self.only = stage, dry, only
        self.path = folder / f"{stage}.json"
        self.began, self.seconds = time.monotonic(), seconds
        self.device = torch.device("cpu" if dry else "cuda")
        self.content: dict[str, Any] = {"header": {}, "cells": {}}

    def write_header(self, commit: str, date: str) -> None:
        """Card, driver, versions, commit, date and command."""
        header: dict[str, Any] = {
            "stage": self.stage,
            "date": date or f"{datetime.date.today():%Y-%m-%d}",
            "commit": commit,
            "command": f"gpu.py {self.stage}" + " --dry" * self.dry,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
            "cores": os.cpu_count(),
            "switches": {name: os.environ[name] for name in SWITCHES if name in os.environ},
        }
        for name in PACKAGES:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                header[name] = importlib.metadata.version(name)
        if not self.dry:
            properties = torch.cuda.get_device_properties(0)
            header |= {"card": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1), **_driver()}
        self.content["header"] = header
        self._write()

    @property
    def left(self) -> float:
        """Seconds until no further cell is begun."""
        return self.seconds - (time.monotonic() - self.began)

    @contextlib.contextmanager
    def cell(self, name: str) -> Iterator[dict[str, Any]]:
        """Fill in the dictionary; what goes wrong inside is written down and goes no further. Ask `wanted` before."""
        out: dict[str, Any] = {}
        began = time.monotonic()
        try:
            yield out
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            out["error"] = f"{type(error).__name__}: {str(error)[:400]}"
            out["where"] = f"{Path(last.filename).name}:{last.lineno}"
            traceback.print_exc()
        out["seconds"] = round(time.monotonic() - began, 2)
        self.content["cells"].pop("so far", None)
        self.content["cells"][name] = _rounded(out)
        self._write()
        print(name, json.dumps(self.content["cells"][name])[:600], flush=True)

    def note(self, out: dict[str, Any]) -> None:
        """Keep what a long cell has so far, in case its stage is ended before it."""
        self.content["cells"]["so far"] = _rounded(out)
        self._write()

    def wanted(self, name: str, needs: float = 2.0) -> bool:
        """Whether a cell is to run: it was not left out, and there is time."""
        if self.only and not any(name.startswith(start) for start in self.only):
            return False
        if self.left < (0 if self.dry else needs):
            self.content["cells"][name] = {"skipped": "no time left"}
            self._write()
            return False
        return True

    def close(self) -> None:
        """The stage ran to its end."""
        self.content["header"]["stage_seconds"] = round(time.monotonic() - self.began, 1)
        self._write()

    def _write(self) -> None:
        temporary = self.path.with_suffix(".part")
        temporary.write_text(json.dumps(self.content, indent=1) + "\n")
        temporary.replace(self.path)

    def sync(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def milliseconds(self, run: Callable[[], object], repeats: int = 10) -> float:
        """Median time of `run` on the device, which is kept busy until the host has asked for all of it."""
        return self.times(run, repeats)[0]

    def times(self, run: Callable[[], object], repeats: int = 10) -> tuple[float, float]:
        """Milliseconds of `run` on the device (median), and those that the host takes to ask for it."""
        for _ in range(2):
            run()
        self.sync()
        began = time.perf_counter()
        run()
        host = time.perf_counter() - began
        if self.dry:
            return host * 1000, host * 1000
        self.sync()
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        torch.cuda._sleep(int(host * repeats * 2 * 2e9))  # cycles, of about 2 GHz
        began = time.perf_counter()
        for first, last in events:
            first.record()
            run()
            last.record()
        host = (time.perf_counter() - began) / repeats
        self.sync()
        return statistics.median(first.elapsed_time(last) for first, last in events), host * 1000

    def once(self, run: Callable[[], object]) -> float:
        """Milliseconds of one run, by the host's clock, the device waited for before and after."""
        self.sync()
        began = time.perf_counter()
        run()
        self.sync()
        return (time.perf_counter() - began) * 1000


def free() -> None:
    """Give back what nobody holds."""
    import gc

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    if not values:
        return {}
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "count": len(values)}


def _driver() -> dict[str, Any]:
    try:
        names = ("driver_version", "clocks.sm", "clocks.mem", "temperature.gpu")
        query = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
        return dict(zip(names, (part.strip() for part in found.split(",")), strict=False))
    except (OSError, subprocess.SubprocessError) as error:
        return {"driver_version": f"not read: {type(error).__name__}"}


def _rounded(value: Any) -> Any:
    """Plain JSON, numbers to five digits, NaN as text."""
    if isinstance(value, dict):
        return {str(key): _rounded(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(one) for one in value]
    if isinstance(value, torch.Tensor):
        return _rounded(value.tolist())
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else str(value)
    return value if isinstance(value, (int, str, bool, type(None))) else str(value)
