"""Builds DeepSpeed's extensions for CPUs into this virtual environment: `python -m tests.distributed.extensions`.

Launched jobs would build them at their first step, inside a test's time limit. In the user's cache, where torch puts them, a build
that was killed leaves a lock for which every later job waits forever.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

FOLDER = Path(sys.prefix) / "torch_extensions"
VARIABLES = {
    "DS_ACCELERATOR": "cpu",
    "TORCH_EXTENSIONS_DIR": str(FOLDER),
    "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),  # for ninja
}
"""Environment variables of every job with DeepSpeed."""


def main() -> None:
    os.environ.update(VARIABLES)

    for lock in FOLDER.glob("*/lock"):
        lock.unlink()
    # Reads the variables when it is imported, and is installed for launched tests alone.
    accelerator = importlib.import_module("deepspeed.accelerator").get_accelerator()
    for builder in ("ShareMemCommBuilder", "CPUAdamBuilder"):
        accelerator.create_op_builder(builder).load()


if __name__ == "__main__":
    main()
