"""Times and memory on the device; in a dry run the code runs, and no figure comes of it."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from .book import NOT_MEASURED, Book


def milliseconds(book: Book, run: Callable[[], object], repeats: int = 10) -> float:
    """Median time of `run` on the device, which is kept busy until the host has asked for all of it."""
    return times(book, run, repeats)[0]


def times(book: Book, run: Callable[[], object], repeats: int = 10) -> tuple[float, float]:
    """Milliseconds of `run` on the device (median), and those that the host takes to ask for it."""
    if book.dry:
        run()
        return NOT_MEASURED, NOT_MEASURED
    for _ in range(2):
        run()
    book.sync()
    began = time.perf_counter()
    run()
    host = time.perf_counter() - began
    book.sync()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    torch.cuda._sleep(int(host * repeats * 2 * 2e9))  # cycles, of about 2 GHz
    began = time.perf_counter()
    for first, last in events:
        first.record()
        run()
        last.record()
    host = (time.perf_counter() - began) / repeats
    book.sync()
    return statistics.median(first.elapsed_time(last) for first, last in events), host * 1000


def once(book: Book, run: Callable[[], object]) -> float:
    """Milliseconds of one run, by the host's clock, the device waited for before and after."""
    book.sync()
    began = time.perf_counter()
    run()
    book.sync()
    return NOT_MEASURED if book.dry else (time.perf_counter() - began) * 1000


def peak_mib(book: Book, run: Callable[[], object]) -> float:
    """Most MiB that PyTorch's pool gave out during a run above what it had given out before."""
    free()
    if book.dry:
        run()
        return NOT_MEASURED
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def allocated_mib(book: Book) -> float:
    return NOT_MEASURED if book.dry else torch.cuda.memory_allocated() / 2**20


def reserved_mib(book: Book) -> float:
    return NOT_MEASURED if book.dry else torch.cuda.memory_reserved() / 2**20


def free() -> None:
    """Give back what nobody holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    if not values:
        return {}
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "count": len(values)}
