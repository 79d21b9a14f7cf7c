"""Every loss on the GPU against the CPU, value and gradient, in float32."""

from __future__ import annotations

from typing import Any

import torch

from .book import Book

ALLOWED = 1e-5


def run(book: Book) -> None:
    from tests.support.batches import GOLDEN
    from trl_dpo_ext import list_losses

    variants = list_losses()
    worst: dict[str, float] = {}
    for variant in variants:
        if not book.wanted(variant.name, 1):
            continue
        with book.cell(variant.name) as out:
            out["largest relative difference"] = 0.0
            for case in GOLDEN["cases"][variant.name]:
                here, there = (
                    _value_and_gradients(variant, case, "cpu"),
                    _value_and_gradients(variant, case, book.device),
                )
                for expected, got in zip(here, there, strict=True):
                    assert got.device.type == book.device.type, f"a result is on {got.device}"
                    found = _difference(got.cpu().double(), expected.double())
                    out["largest relative difference"] = max(out["largest relative difference"], found)
        worst[variant.name] = (
            out.get("largest relative difference", float("nan")) if "error" not in out else float("inf")
        )
    with book.cell("summary") as out:
        out["variants"] = len(worst)
        out["failed"] = [name for name, found in worst.items() if found == float("inf")]
        out[f"beyond {ALLOWED}"] = {name: found for name, found in worst.items() if ALLOWED < found < float("inf")}
        out["largest"] = max((found for found in worst.values() if found < float("inf")), default=None)


def _difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, relative to each value but to no less than a thousandth of the largest."""
    if torch.equal(got.isnan(), expected.isnan()) is False:
        return float("inf")
    floor = expected.abs().max() * 1e-3 + 1e-12
    return float(((got - expected).abs() / expected.abs().clamp(min=float(floor))).nan_to_num().max())


def _value_and_gradients(variant: Any, case: dict[str, Any], device: Any) -> list[torch.Tensor]:
    """As the tests run a golden case; only the pairs are made on the device, which a loss has to find by itself."""
    from tests.support.batches import GOLDEN, gradients, make_pairs

    torch.manual_seed(0)
    loss = variant.make()

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
