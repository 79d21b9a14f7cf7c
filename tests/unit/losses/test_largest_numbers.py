"""Every loss is finite in float32, and so is its gradient, for the largest numbers that data may hold."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.support.batches import SMOOTH, gradients, hypers_of, make_pairs
from tests.support.list_batches import SMOOTH_PROMPTS, list_hypers_of, make_lists, slopes
from trl_dpo_ext import LossVariant, get_loss, list_losses
from trl_dpo_ext.core.columns import LARGEST, WITHIN_LARGEST, Column
from trl_dpo_ext.core.list_pairs import pairs_of

ENDS = (LARGEST, -LARGEST)


def reads_any_size(column: Column) -> bool:
    return column.per_token is None and column.broken_bound(2 * LARGEST) == WITHIN_LARGEST


OF_PAIRS = [
    variant
    for variant in list_losses()
    if variant.reads == "pairs" and any(map(reads_any_size, variant.columns.values()))
]
OF_LISTS = [get_loss(name) for name in ("infonca", "nca", "sppo_list", "qrpo_list", "pl", "top1", "rrhf")]


@pytest.mark.parametrize("variant", OF_PAIRS, ids=lambda variant: variant.name)
def test_losses_of_pairs(variant: LossVariant) -> None:
    names = [name for name, column in variant.columns.items() if reads_any_size(column)]
    for hyper, values in itertools.product(hypers_of(variant), itertools.product(ENDS, repeat=len(names))):
        held = dict(zip(names, values, strict=True))
        held = {
            name: value if variant.columns[name].broken_bound(value) is None else 0.0 for name, value in held.items()
        }
        rows = {name: [value] * 5 for name, value in held.items()}
        pairs = make_pairs({**SMOOTH, "columns": SMOOTH["columns"] | rows}, dtype=torch.float32)
        loss = variant.make()(pairs, **hyper)
        assert torch.isfinite(loss).all(), (hyper, held)
        assert torch.isfinite(loss.sum()), (hyper, held)
        assert all(torch.isfinite(each).all() for each in gradients(loss.sum(), pairs)), (hyper, held)


def test_there_are_such_losses() -> None:
    assert {"margin", "odpo", "rpo_sq", "soft_dpo"} <= {variant.name for variant in OF_PAIRS}


@pytest.mark.parametrize("variant", OF_LISTS, ids=lambda variant: variant.name)
def test_losses_of_lists(variant: LossVariant) -> None:
    prompts = [{**prompt, "u": [*ENDS, 0.0, 1.0, 2.0][: len(prompt["u"])]} for prompt in SMOOTH_PROMPTS]
    lists = make_lists(prompts, dtype=torch.float32)
    of_any_size = {"sppo_list": {"sppo_list_scores": "scores"}, "qrpo_list": {"qrpo_list_scores": "samples"}}
    for hyper in (hyper | of_any_size.get(variant.name, {}) for hyper in list_hypers_of(variant)):
        tiny_tau = {name: 1e-25 for name in hyper if name.endswith("_tau")}
        for each in (hyper, hyper | tiny_tau):
            values = variant(lists, **each)
            assert torch.isfinite(values).all(), each
            assert torch.isfinite(slopes(values, lists)).all(), each


def test_pairs_of_lists_have_finite_columns() -> None:
    lists = make_lists([{**SMOOTH_PROMPTS[1], "u": [*ENDS, 0.0]}], dtype=torch.float32)
    pairs, _ = pairs_of(lists, "all")
    assert float(pairs.columns["margin"].max()) == pytest.approx(2 * LARGEST)


@pytest.mark.parametrize(("name", "tau"), [("infonca", "infonca_tau"), ("nca", "nca_tau")])
def test_targets_of_close_scores_are_exact_at_a_small_temperature(name: str, tau: str) -> None:
    """Odds are e to the difference of the scores in units of tau: of 8.1 and 8.2, both divided, float32 is off by 0.5 %."""
    prompt = {**SMOOTH_PROMPTS[0], "u": [8.0 + 1 / 1024, 8.0]}
    single, double = (
        get_loss(name)(make_lists([prompt], dtype=dtype), beta=0.1, **{tau: 1e-4 * 7})
        for dtype in (torch.float32, torch.float64)
    )
    assert single.item() == pytest.approx(double.item(), rel=1e-6)
