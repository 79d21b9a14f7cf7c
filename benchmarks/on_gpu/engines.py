"""FSDP1, FSDP2 and DeepSpeed, launched with one process on the one GPU: the same weights as without an engine.

Jobs run side by side. One process has nothing to split; what is tested is that each engine starts, trains packed rows
and stored references, saves and resumes on CUDA.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from .book import Book

PLAIN = "single_gpu"
ENGINES = ("fsdp2", "fsdp1", "zero2", "zero3")
TRAINING: dict[str, Any] = {
    "gradient_checkpointing": False,
    "loss_type": "dpop",
    "optim": "sgd",
    "max_grad_norm": 0.0,
    "share_prompt": True,
}
SAVING: dict[str, Any] = {
    **TRAINING,
    "precompute_ref_log_probs": True,
    "save_strategy": "steps",
    "save_steps": 2,
    "max_steps": 4,
}


def run(book: Book) -> None:
    folder = Path(tempfile.mkdtemp())
    names = [engine for engine in ENGINES if can_run(book, engine)]
    untrained = [name for name in names if book.wanted(f"{name}, trained", 60)]
    if untrained:
        train(book, folder, untrained)
    for name in [] if book.dry else names:
        if book.wanted(f"{name}, resumed", 40):
            with book.cell(f"{name}, resumed") as out:
                resume(book, folder / f"{name}-saving", name, out)


def train(book: Book, folder: Path, names: list[str]) -> None:
    """Train three steps under each engine and without one, all side by side."""
    jobs: dict[str, Any] = {}
    with book.cell(f"{PLAIN}, trained") as out:
        jobs = {name: start(book, folder / name, name, TRAINING) for name in (PLAIN, *names)}
        plain = jobs.pop(PLAIN).wait(max(book.left, 5) if not book.dry else 300).weights
        out["tensors"] = len(plain)
    if "error" in out:
        for job in jobs.values():
            job.kill()
        return
    for name, job in jobs.items():
        with book.cell(f"{name}, trained") as out:
            weights = job.wait(max(book.left, 5) if not book.dry else 300).weights
            out["largest difference of a weight"] = apart = _apart(weights, plain)
            book.check(out, f"{name} ran, and its weights equal those without an engine", apart <= 1e-4)


def can_run(book: Book, engine: str) -> bool:
    """Whether an engine can be launched here; if not, that is written down as not run."""
    if engine.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        book.not_run(f"{engine}, trained", "deepspeed is not installed")
    elif book.dry and engine != ENGINES[0]:
        book.not_run(f"{engine}, trained", "a dry run launches one engine")
    else:
        return True
    return False


def start(book: Book, folder: Path, engine: str, settings: dict[str, Any]) -> Any:
    """Start a job of tests/distributed with one process, on the GPU; in a dry run on the CPU, as the tests do."""
    from tests.distributed import engines

    variables = {"PYTHONPATH": os.environ["PYTHONPATH"]}  # with what is installed beside this checkout
    if not book.dry:
        variables |= {"ACCELERATE_TORCH_DEVICE": "cuda:0", "ACCELERATE_BYPASS_DEVICE_MAP": "false"}
        variables |= {"DS_ACCELERATOR": "cuda", "WITHOUT_STAND_IN": "1"}
    if not folder.exists():
        engines.prepared(folder)
    target = "tests.distributed.launched:train"
    return engines.start(folder, engine, target, settings, processes=1, flags=engines.FLOAT32, variables=variables)


def resume(book: Book, folder: Path, engine: str, out: dict[str, Any]) -> None:
    """Four steps with a stored reference and checkpoints; and the last two again, from the second's checkpoint."""
    whole = start(book, folder, engine, {**SAVING, "ref_store": str(folder / "refs")}).wait(max(book.left, 5))
    again = {**SAVING, "ref_store": str(folder / "refs"), "resume": str(folder / "out" / "checkpoint-2")}
    weights = whole.weights  # read before the next job overwrites them
    resumed = start(book, folder, engine, again).wait(max(book.left, 5))
    out["largest difference of a weight"] = apart = _apart(resumed.weights, weights)
    book.check(out, "weights equal those of the whole run", apart <= 1e-5)


def _apart(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    return max(float((got[name].float().cpu() - tensor.float().cpu()).abs().max()) for name, tensor in expected.items())
