"""Data with images in Qwen2.5-VL-3B's shape: steps with a live reference and a store, and the pass beside a loop."""

from __future__ import annotations

import importlib.util
import statistics
from typing import Any

from .book import NOT_MEASURED, Book

DRY = [
    "--model-shape",
    "toy",
    "--rows",
    "4",
    "--sizes",
    "64x48",
    "--steps",
    "1",
    "--repeats",
    "1",
    "--batch-sizes",
    "2",
]
ON_GPU = [
    "--model-shape", "qwen2.5-vl-3b", "--device", "cuda", "--dtype", "bfloat16", "--rows", "64", "--micro-batch", "2",
    "--gradient-checkpointing", "--batch-sizes", "2", "8", "--workers", "4",
]  # fmt: skip


def run(book: Book) -> None:
    import images

    if importlib.util.find_spec("PIL") is None:
        book.not_run("models", "Pillow is not installed")
        return
    if not book.wanted("models", 30):
        return
    options, bench = images.parse(DRY if book.dry else ON_GPU), None
    with book.cell("models") as out:
        bench = images.Bench(options)
        out["parameters"] = bench.policy.num_parameters()
    if bench is None:
        return
    for name, base, measure in (("step", "stored", images.steps), ("pass", images.OURS, images.passes)):
        if book.wanted(name, 30):
            with book.cell(name) as out:
                found = measure(options, bench)
                _tell(book, out, found, base)
                out["largest difference of what all compute"] = images.apart(found)
                book.check(out, "all compute the same", _near(found))


def _tell(book: Book, out: dict[str, Any], found: dict[str, list[Any]], base: str) -> None:
    """Counts of one run of each, and its seconds beside those of the base."""
    for name, of in found.items():
        first = of[0]
        out[name] = {what: getattr(first, what) for what in ("fed", "forwards", "tower_calls", "images")}
        ratios = [a.seconds.wall / b.seconds.wall for a, b in zip(of, found[base], strict=True)]
        out[name]["seconds"] = NOT_MEASURED if book.dry else [each.seconds.wall for each in of]
        out[name][f"beside {base}"] = NOT_MEASURED if book.dry else statistics.median(ratios)


def _near(found: dict[str, list[Any]]) -> bool:
    """Whether all agree to rounding, in the dtype of the models: means, as of sums over hundreds of tokens."""
    results = [sum(map(abs, each.results)) / len(each.results) for of in found.values() for each in of[:1]]
    return max(results) - min(results) <= 1e-2 * max(results)
