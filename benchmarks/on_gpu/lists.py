"""What a list costs to train, as all of its pairs and as a list, by TRL and by us: a 0.5B shape."""

from __future__ import annotations

import argparse
import math
import statistics
from typing import Any

from .book import NOT_MEASURED, Book
from .clocks import free, peak_mib
from .step import options_of

SHAPE = "qwen2.5-0.5b"


def run(book: Book) -> None:
    from lists import ListSteps

    made: Any = None
    if not book.wanted("trainers", 10):
        return
    with book.cell("trainers") as out:
        # TRL's pairs of seven answers are 42 rows, whose activations would not fit.
        options = vars(options_of(book, SHAPE, 1, checkpointing=True))
        made = ListSteps(argparse.Namespace(**options, optimizer="none", reference="live"))
        out["parameters"] = made.policy.num_parameters()
    for answers in book.some((4, 7, 2)) if made else []:
        name = f"{SHAPE}, ultrafeedback, {answers} answers"
        if book.wanted(name, 25):
            with book.cell(name) as out:
                compare(book, made, answers, out)
            free()


def drawn(book: Book, answers: int, count: int, vocabulary: int) -> list[dict[str, Any]]:
    """Lists with the lengths of real data; short ones in a dry run."""
    from lengths import lists

    rows = lists("ultrafeedback", count, answers, vocabulary, seed=answers)
    if not book.dry:
        return rows
    return [{**r, "prompt_ids": r["prompt_ids"][:10], "list_ids": [ids[:10] for ids in r["list_ids"]]} for r in rows]


def compare(book: Book, made: Any, answers: int, out: dict[str, Any]) -> None:
    """One list in each step, every way on the same ones in turn, each list once to warm up."""
    from lists import BASE, WAYS, objective, positions

    count = 1 if book.dry else 6
    rows = drawn(book, answers, count, made.policy.config.vocab_size)
    made.load([[row] for row in rows])
    out["lists"] = count
    figures = ("loss", "gradient norm")
    found: dict[str, dict[str, Any]] = {n: dict(zip(figures, made.agree(n), strict=True)) for n in WAYS}
    for what in ("pairs", "pl"):
        first, *others = [one for name, one in found.items() if objective(name) == what]
        for figure, tolerance in zip(figures, (0.02, 0.2), strict=True):  # as in float32, but for bfloat16
            near = all(math.isclose(first[figure], one[figure], rel_tol=tolerance) for one in others)
            book.check(out, f"every way has the same {figure} of {what}", near)
    counted = True
    for name, one in found.items():
        steps = [made.step(name, number) for number in range(count)]  # every shape once
        expected = [positions(name, [row], dense_head=book.dry) for row in rows]
        counted &= all((s.fed, s.scored) == (2 * f, 2 * n) for s, (f, n) in zip(steps, expected, strict=True))
        one["fed"], one["scored"] = (sum(getattr(step, what) for step in steps) for what in ("fed", "scored"))
        one["peak, MiB"] = peak_mib(book, lambda name=name: made.run(name, 0))
    book.check(out, "positions are those that the lengths give", counted)
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(count):
        for name in list(WAYS)[:: 1 if number % 2 else -1]:
            seconds = made.step(name, number).seconds.wall
            times[name].append(NOT_MEASURED if book.dry else 1000 * seconds)
    for name, one in found.items():
        one["ms"] = statistics.fmean(times[name])
        one["TRL's time / its time"] = sum(times[BASE]) / sum(times[name])
    out["per way"] = found
