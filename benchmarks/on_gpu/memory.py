"""Peaks of training steps against what `trl-dpo-ext estimate` says, for the cases of estimate_peak.py."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from .book import Book
from .clocks import free

# Beside the cases there: case -> the model, and flags.
MORE = {
    "full, bf16 weights, reference loaded, no checkpointing": (
        "qwen2.5-0.5b",
        "--dtype bfloat16 --gradient_checkpointing false --ignore_pitfalls bf16_weights",
    ),
    "full, bf16 weights, share_prompt, no checkpointing": (
        "qwen2.5-0.5b",
        "--dtype bfloat16 --gradient_checkpointing false --ignore_pitfalls bf16_weights --share_prompt true",
    ),
    "full, bf16 weights, eager, no checkpointing": (
        "qwen2.5-0.5b",
        "--dtype bfloat16 --gradient_checkpointing false --ignore_pitfalls bf16_weights --attn_implementation eager",
    ),
}
FIRST = "QLoRA, NF4"
"""Never measured so far."""


def run(book: Book) -> None:
    from estimate_peak import CASES, measure, save

    from tests.support.published_models import MODELS

    folders: dict[str, Path] = {}
    for case, (model, flags) in book.some(sorted({**CASES, **MORE}.items(), key=lambda case: case[0] != FIRST)):
        if not book.wanted(case, 40 if "7b" in model else 15):
            continue
        with book.cell(case) as out:
            config = _toy() if book.dry else MODELS[model][0]()
            if model not in folders:
                in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
                folders[model] = Path(tempfile.mkdtemp(dir=in_memory))
                save(folders[model], config, str(book.device))
            free()
            flags = f"{flags} --use_cpu true" if book.dry else flags
            began = time.monotonic()
            expected, pool, beside = measure(folders[model], config, flags)
            out |= {
                "model": "toy" if book.dry else model,
                "flags": flags,
                "estimated, GiB": expected,
                "pool, GiB": pool,
            }
            # What every process on the GPU holds: this one has to be alone there.
            out |= {"beside the pool, GiB": beside, "estimated / measured": expected / (pool + beside)}
            out["seconds without making the model"] = time.monotonic() - began
        free()
    for folder in folders.values():
        shutil.rmtree(folder, ignore_errors=True)


def _toy() -> Any:
    from tests.support import tiny

    config = tiny.model().config
    config.max_position_embeddings = 1024
    return config
