"""Where a stage writes what it measured, cell by cell."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from .results import change, results

PACKAGES = (
    "triton", "transformers", "trl", "accelerate", "datasets", "bitsandbytes", "peft", "deepspeed", "pyarrow", "numpy",
)  # fmt: skip
SWITCHES = ("CUBLAS_WORKSPACE_CONFIG", "PYTORCH_CUDA_ALLOC_CONF", "TORCH_CUDNN_SDPA_DEPRIORITIZED")
NOT_MEASURED = float("nan")
"""In place of a figure that only a GPU gives; written as "not measured"."""


class Book:
    """The results of one stage.

    Args:
        stage: its name.
        folder: where gpu.json and gpu.md are.
        dry: toy sizes on the CPU.
        seconds: after which no further cell is begun.
        only: beginnings of the names of the cells to run; None runs all.
        commit: of the code; cells that it has finished on this device already are kept, if no file differs from it.
    """

    def __init__(
        self,
        stage: str,
        folder: Path,
        dry: bool = False,
        seconds: float = math.inf,
        only: Sequence[str] | None = None,
        commit: str = "",
    ) -> None:
        self.stage, self.folder, self.dry, self.only = stage, folder, dry, only
        self.began, self.seconds = time.monotonic(), seconds
        self.device = torch.device("cpu" if dry else "cuda")
        before = results(folder).get(stage, {"header": {}, "cells": {}})
        self.header = {**self._header(commit), **({"only": list(only)} if only else {})}
        same = all(before["header"].get(name) == self.header.get(name) for name in ("commit", "card", "torch"))
        kept = {name: cell for name, cell in before["cells"].items() if cell.get("status") in ("passed", "measured")}
        self.cells: dict[str, Any] = kept if same and commit and not commit.endswith("-changed") else {}
        self._done = frozenset(self.cells)
        self._write()

    def _header(self, commit: str) -> dict[str, Any]:
        """Card, driver, versions, commit and date."""
        header: dict[str, Any] = {
            "date": f"{datetime.date.today():%Y-%m-%d}",
            "commit": commit,
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
        if self.dry:
            return {**header, "card": "none: a dry run on a CPU"}
        properties = torch.cuda.get_device_properties(0)
        return {
            **header,
            "card": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            **_driver(),
        }

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
        checks = out.pop("checks", {})
        failed = "error" in out or not all(checks.values())
        status = "failed" if failed else "passed" if checks else "ran" if self.dry else "measured"
        out = {"status": status, **({"checks": checks} if checks else {}), **out}
        out["seconds"] = round(time.monotonic() - began, 2)
        self._put(name, out)
        print(name, json.dumps(self.cells[name])[:600], flush=True)

    def check(self, out: dict[str, Any], claim: str, holds: Any) -> None:
        """Write down whether a claim of a cell holds; one that does not fails the cell, which goes on."""
        out.setdefault("checks", {})[claim] = bool(holds)

    def not_run(self, name: str, why: str) -> None:
        """A cell that cannot run here, which is no failure and no success."""
        self._put(name, {"status": "not run", "why": why})
        print(f"{name}: not run, {why}", flush=True)

    def note(self, out: dict[str, Any]) -> None:
        """Keep what a long cell has so far, in case its stage is ended before it."""
        self._put("so far", {"status": "unfinished", **out})

    def wanted(self, name: str, needs: float = 2.0) -> bool:
        """Whether a cell is to run: it was not left out, is not there already, and there is time."""
        if name in self._done or (self.only and not any(name.startswith(start) for start in self.only)):
            return False
        if self.left < (0 if self.dry else needs):
            self.not_run(name, "no time left")
            return False
        return True

    def some(self, options: Sequence[Any], dry: int = 1) -> list[Any]:
        """All options; in a dry run the first ones, where the others run the same code."""
        return list(options)[:dry] if self.dry else list(options)

    @property
    def failed(self) -> list[str]:
        """Names of the cells that failed."""
        return [name for name, cell in self.cells.items() if cell["status"] == "failed"]

    def close(self, ended: str | None = None) -> None:
        """The stage ran to its end, or was ended by what happened outside of its cells."""
        self.header["stage_seconds"] = round(time.monotonic() - self.began, 1)
        if ended:
            self.header["ended"] = ended
        self._write()

    def _put(self, name: str, cell: dict[str, Any]) -> None:
        self.cells.pop("so far", None)
        self.cells[name] = _plain(cell, self.dry)
        self._write()

    def _write(self) -> None:
        change(self.folder, self.stage, {"header": self.header, "cells": self.cells})

    def sync(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _driver() -> dict[str, Any]:
    try:
        names = ("driver_version", "clocks.sm", "clocks.mem", "temperature.gpu")
        query = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
        return dict(zip(names, (part.strip() for part in found.split(",")), strict=False))
    except (OSError, subprocess.SubprocessError) as error:
        return {"driver_version": f"not read: {type(error).__name__}"}


def _plain(value: Any, dry: bool) -> Any:
    """Plain JSON, numbers to five digits, NaN as text."""
    if isinstance(value, dict):
        return {str(key): _plain(one, dry) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one, dry) for one in value]
    if isinstance(value, torch.Tensor):
        return _plain(value.tolist(), dry)
    if isinstance(value, float):
        if math.isnan(value) and dry:
            return "not measured"
        return float(f"{value:.5g}") if math.isfinite(value) else str(value)
    return value if isinstance(value, (int, str, bool, type(None))) else str(value)
