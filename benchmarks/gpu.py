"""The figures that need a GPU, stage by stage, on the one at hand.

    python benchmarks/gpu.py probe smoke --out results            # on a machine with a GPU
    python benchmarks/gpu.py all --dry --out /tmp/dry             # toy sizes on a CPU: does the kit itself run?

Each stage is a process of its own with a time limit; stages joined by `+` run side by side, which is for checks and not
for timings. Every cell is written to OUT/STAGE.json as it ends, and a cell that fails is a result with an error. No
setting of the card is changed, and nothing is downloaded: weights are random, in the shapes of published models.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

# Stage -> its module in on_gpu, and the seconds that it may take.
STAGES = {
    "probe": ("probe", 60),
    "rates": ("probe", 60),
    "varlen": ("varlen", 40),
    "layers": ("varlen", 40),
    "losses": ("losses", 150),
    "training": ("training", 150),
    "reference": ("reference", 150),
    "step": ("step", 200),
    "step-8b": ("step", 200),
    "pass": ("passes", 140),
    "memory": ("memory", 180),
}
GROUPS = {
    "smoke": ["losses+training+reference"],
    "checks": ["losses+training+reference+memory"],
    "all": ["probe", "rates", "varlen", "layers", "checks", "step", "step-8b", "pass"],
}


def run_inside(options: argparse.Namespace) -> None:
    """One stage, in this process."""
    from on_gpu.book import Book

    (stage,) = options.stages
    book = Book(stage, options.out, options.dry, options.inside, options.only)
    book.write_header(options.commit, options.date)
    importlib.import_module(f"on_gpu.{STAGES[stage][0]}").run(book)
    book.close()


def start(stage: str, seconds: float, options: argparse.Namespace) -> subprocess.Popen:
    command = [sys.executable, __file__, stage, "--inside", str(seconds), "--out", str(options.out)]
    command += ["--commit", options.commit, *(["--date", options.date] if options.date else [])]
    command += ["--dry"] * options.dry + (["--only", *options.only] if options.only else [])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}
    environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for the cells that ask for determinism
    with (options.out / f"{stage}.log").open("w") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def run_all(options: argparse.Namespace) -> int:
    options.out.mkdir(parents=True, exist_ok=True)
    began, failed = time.monotonic(), 0
    wanted = [part for stage in options.stages for part in GROUPS.get(stage, [stage])]
    for group in [part for stage in wanted for part in GROUPS.get(stage, [stage])]:
        left = options.budget - (time.monotonic() - began)
        if left < 10:
            print(f"{group}: no time left")
            continue
        limits = {stage: min(options.limit or STAGES[stage][1], left) for stage in group.split("+")}
        stage_began = time.monotonic()
        running = {stage: start(stage, seconds, options) for stage, seconds in limits.items()}
        for stage, process in running.items():
            try:
                # A stage stops between cells by itself; what hangs inside one is ended.
                code = process.wait(max(limits[stage] + 15 - (time.monotonic() - stage_began), 1))
            except subprocess.TimeoutExpired:
                process.kill()
                code = "ended: over its time"
            failed += code != 0
            print(f"{stage}: {code}, {time.monotonic() - stage_began:.0f} s", flush=True)
            if code != 0:
                print((options.out / f"{stage}.log").read_text()[-1500:], flush=True)
    return 1 if failed else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", help=f"{', '.join(STAGES)}, {', '.join(GROUPS)}, or several joined by +")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of the results")
    parser.add_argument("--budget", type=float, default=540, help="seconds for all stages together")
    parser.add_argument("--limit", type=float, help="seconds for each stage, in place of its own limit")
    parser.add_argument("--only", nargs="+", help="run only the cells whose names begin with one of these")
    parser.add_argument("--dry", action="store_true", help="toy sizes on the CPU")
    parser.add_argument("--commit", default="", help="written into the header")
    parser.add_argument("--date", default="", help="written into the header in place of the machine's own")
    parser.add_argument("--inside", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    options = parse()
    unknown = {s for part in options.stages for s in part.split("+")} - {*STAGES, *GROUPS}
    if unknown:
        sys.exit(f"error: no such stage: {', '.join(sorted(unknown))}")
    if options.inside:
        run_inside(options)
        return 0
    if not options.dry:
        import torch

        if not torch.cuda.is_available():
            print("No CUDA GPU is visible; --dry runs every cell at toy size on the CPU.")
            return 2
    return run_all(options)


if __name__ == "__main__":
    sys.exit(main())
