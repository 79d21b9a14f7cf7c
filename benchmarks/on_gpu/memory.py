"""Peaks of training steps against what `trl-dpo-ext estimate` says, for the cases of estimate_peak.py."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from .book import Book, free

# Beside the cases there: case -> the model, and flags.
MORE = {
    "full, bf16 weights, reference loaded, no checkpointing": (
        "qwen2.5-0.5b",
        "--dtype bfloat16 --gradient_checkpointing false --ignore_pitfalls bf16_weights",
    ),
}


def run(book: Book) -> None:
    from estimate_peak import CASES, measure, save
    from published_models import MODELS

    folders: dict[str, Path] = {}  # the larger models last: what is left out for time are they
    for case, (model, flags) in sorted({**CASES, **MORE}.items(), key=lambda case: "7b" in case[1][0]):
        if not book.wanted(case, 40 if "7b" in model else 25):
            continue
        with book.cell(case) as out:
            config = _toy() if book.dry else MODELS[model][0]()
            if model not in folders:
                in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
                folders[model] = Path(tempfile.mkdtemp(dir=in_memory))
                save(folders[model], config, str(book.device))
            free()
            flags = f"{flags} --use_cpu true".replace("--optim adamw_bnb_8bit", "") if book.dry else flags
            began = time.monotonic()
            expected, pool, beside = measure(folders[model], config, flags)
            out |= {"model": model, "flags": flags, "estimated_gib": expected, "pool_gib": pool}
            out["beside the pool, of all processes on the card, gib"] = beside
            out["seconds without making the model"] = time.monotonic() - began
        free()


def _toy() -> Any:
    from tests.support import tiny

    config = tiny.model().config
    config.max_position_embeddings = 1024
    return config
