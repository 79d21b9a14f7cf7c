"""Every loss on the GPU against the CPU, value and gradient, in float32; and some of them compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .book import Book

ALLOWED = 1e-5
COMPILED = ("sigmoid", "ipo", "dpop", "simpo", "orpo", "apo_zero", "aot", "tdpo2")
"""One of each family of formulas."""


def run(book: Book) -> None:
    from trl_dpo_ext import list_losses

    variants = list_losses(reads="pairs")
    if book.wanted("values and gradients", 15):
        with book.cell("values and gradients") as out:
            compare(book, variants, out)
    for name in book.some(COMPILED):
        if book.wanted(f"compiled {name}", 15):
            with book.cell(f"compiled {name}") as out:
                compiled(book, next(v for v in variants if v.name == name), out)


def compare(book: Book, variants: list[Any], out: dict[str, Any]) -> None:
    from tests.support.batches import GOLDEN

    worst: dict[str, float] = {}
    errors: dict[str, str] = {}
    for variant in variants:
        worst[variant.name] = 0.0
        try:
            for case in GOLDEN["cases"][variant.name]:
                here = _value_and_gradients(variant, case, "cpu", None)
                there = _value_and_gradients(variant, case, book.device, None)
                worst[variant.name] = max(worst[variant.name], _apart(book, there, here))
        except Exception as error:
            errors[variant.name] = f"{type(error).__name__}: {str(error)[:200]}"
    out["variants"] = len(worst)
    out["largest relative difference"] = max(worst.values())
    out["of"] = max(worst, key=lambda name: worst[name])
    beyond = {name: found for name, found in worst.items() if not found <= ALLOWED}
    out |= {"errors": errors} if errors else {}
    out |= {f"beyond {ALLOWED}": beyond} if beyond else {}
    book.check(out, "every loss runs on the device", not errors)
    book.check(out, f"no relative difference above {ALLOWED}", not beyond)


def compiled(book: Book, variant: Any, out: dict[str, Any]) -> None:
    """Compiled by the backend that users get (on a CPU: traced, and not compiled), against the same loss as it is."""
    from tests.support.batches import GOLDEN

    torch.compiler.reset()
    case = GOLDEN["cases"][variant.name][0]
    backend = "eager" if book.dry else "inductor"
    plain = _value_and_gradients(variant, case, book.device, None)
    again = _value_and_gradients(variant, case, book.device, lambda loss: torch.compile(loss, backend=backend))
    out["backend"], out["largest relative difference"] = backend, _apart(book, again, plain)
    book.check(out, f"no relative difference above {ALLOWED}", out["largest relative difference"] <= ALLOWED)


def _apart(book: Book, got: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest difference, relative to each value but to no less than a thousandth of the largest."""
    most = 0.0
    for one, other in zip(got, expected, strict=True):
        assert one.device.type == book.device.type, f"a result is on {one.device}"
        one, other = one.cpu().double(), other.cpu().double()
        if not torch.equal(one.isnan(), other.isnan()):
            return float("inf")
        floor = float(other.abs().max() * 1e-3 + 1e-12)
        most = max(most, float(((one - other).abs() / other.abs().clamp(min=floor)).nan_to_num().max()))
    return most


def _value_and_gradients(
    variant: Any, case: dict[str, Any], device: Any, change: Callable[[Any], Any] | None
) -> list[torch.Tensor]:
    """As the tests run a golden case; only the pairs are made on the device, which a loss has to find by itself."""
    from tests.support.batches import GOLDEN, gradients, make_pairs

    torch.manual_seed(0)
    loss = variant.make()
    loss = loss if change is None else change(loss)

    def pairs(batch: str, **more: Any) -> Any:
        with torch.device(device):
            return make_pairs(GOLDEN["inputs"][batch], dtype=torch.float32, **more)

    for batch in case.get("earlier", []):
        loss(pairs(batch), **case["hyper"])
    given = pairs(case["inputs"], f_divergence=case.get("f_divergence"))
    values = loss(given, **case["hyper"])
    if not variant.order_preserving:
        values = values.sort().values
    return [values.detach(), *gradients(values.mean(), given)]
