"""Run a feature with TRL's trainer or with ours."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tests.support import runs

from .feature import Feature, Run

COMMON = {"gradient_checkpointing": False, "max_steps": 2}


def run(feature: Feature, kind: type, options: dict[str, Any], model: Path, folder: Path) -> Run:
    """Train with a feature and options of ours.

    Args:
        feature: the feature.
        kind: TRL's trainer or ours.
        options: one of `WAYS`.
        model: the folder of the policy.
        folder: to write into.
    """
    settings = {"model": str(model), **COMMON, **options, **feature.made(model)}
    if "ref_store" in settings:
        settings["ref_store"] = str(folder / settings["ref_store"])
    with _environment_restored():
        trainer = runs.trainer(folder / "out", kind, **settings)
        feature.drive(trainer)
        logs = [{k: v for k, v in line.items() if feature.logged(k)} for line in runs.logs(trainer)]
        return Run(runs.weights(trainer), logs, feature.facts(trainer))


@contextlib.contextmanager
def _environment_restored() -> Iterator[None]:
    """Undo what a configuration does to the process: `torch_compile` and `full_determinism` stay on otherwise."""
    environment, before = os.environ, dict(os.environ)
    try:
        yield
    finally:
        os.environ = environment  # noqa: B003 (with processes, `map` of datasets leaves a copy in its place)
        os.environ.clear()
        os.environ.update(before)
        torch.use_deterministic_algorithms(False)
        torch.compiler.reset()
