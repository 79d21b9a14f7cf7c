"""Every variant of lists gives the numbers of the specification and of an independent oracle, with their gradients."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from tests.golden import list_cases, oracle_lists
from tests.support.list_batches import GOLDEN_LISTS, PUBLISHED_LISTS, make_lists, slopes
from trl_dpo_ext import LossMixture, LossVariant, get_loss, list_losses
from trl_dpo_ext.core.list_pairs import pair_lists
from trl_dpo_ext.core.mixture import Term

each_variant = pytest.mark.parametrize("variant", list_losses(reads="lists"), ids=lambda variant: variant.name)


def flat(nested: list[list[float | None]]) -> list[float | None]:
    return [value for inner in nested for value in inner]


@each_variant
def test_every_prompt_gets_the_golden_value_and_gradient(variant: LossVariant) -> None:
    assert variant.name in GOLDEN_LISTS["cases"], f"add the formula of {variant.name} to tests/golden/oracle_lists.py"
    for case in GOLDEN_LISTS["cases"][variant.name]:
        lists = make_lists(GOLDEN_LISTS["inputs"][case["inputs"]])
        values = variant(lists, **case["hyper"])
        assert values.tolist() == pytest.approx(case["per_prompt"], rel=1e-10, abs=1e-12), case["hyper"]
        expected = flat(case["gradient"])
        smooth = [place for place, value in enumerate(expected) if value is not None]
        assert len(smooth) > len(expected) / 2
        found = slopes(values, lists)[smooth].tolist()
        assert found == pytest.approx([expected[place] for place in smooth], rel=1e-10, abs=1e-12), case["hyper"]


@each_variant
def test_float32_is_near_the_golden_value_and_finite(variant: LossVariant) -> None:
    for case in GOLDEN_LISTS["cases"][variant.name]:
        lists = make_lists(GOLDEN_LISTS["inputs"][case["inputs"]], dtype=torch.float32)
        values = variant(lists, **case["hyper"])
        assert values.dtype == torch.float32
        assert values.tolist() == pytest.approx(case["per_prompt"], rel=2e-4, abs=1e-4)
        assert slopes(values, lists).isfinite().all()


@pytest.mark.parametrize(
    "case", PUBLISHED_LISTS["cases"], ids=lambda c: f"{c['variant']}{' at the reference' * c['at_the_reference']}"
)
def test_the_numbers_of_the_specification(case: dict[str, Any]) -> None:
    prompts = PUBLISHED_LISTS["inputs"]
    if case["at_the_reference"]:
        prompts = [prompt | {"ref": prompt["pi"]} for prompt in prompts]
    lists = make_lists(prompts)
    values = get_loss(case["variant"])(lists, **case["hyper"])
    assert values.tolist() == pytest.approx(case["per_prompt"], rel=1e-10, abs=1e-12)
    assert values.mean().item() == pytest.approx(case["mean"], rel=1e-10)
    assert slopes(values, lists).tolist() == pytest.approx(flat(case["gradient"]), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("case", PUBLISHED_LISTS["pairs"], ids=lambda case: f"{case['variant']} {case['which']}")
def test_the_numbers_of_the_specification_for_pairs_of_lists(case: dict[str, Any]) -> None:
    variant, lists = get_loss(case["variant"]), make_lists(PUBLISHED_LISTS["inputs"])
    paired = pair_lists(lists, case["which"])
    values = paired.by_prompt(variant(paired.pairs, **case["hyper"]))
    assert values.tolist() == pytest.approx(case["per_prompt"], rel=1e-10)
    assert slopes(values, lists).tolist() == pytest.approx(flat(case["gradient"]), rel=1e-10, abs=1e-12)
    hyper = {p.name: p.default for p in variant.owned} | case["hyper"]
    mixture = LossMixture((Term(variant, 1.0, hyper, "x", variant.make()),))
    assert mixture.on_lists(lists, case["which"])[1]["x"].item() == pytest.approx(case["mean"], rel=1e-10)


@each_variant
def test_defaults_and_shared_names_are_those_of_the_oracle(variant: LossVariant) -> None:
    formula = oracle_lists.VARIANTS[variant.name]
    assert {parameter.name: parameter.default for parameter in variant.owned} == formula.defaults
    assert {parameter.name for parameter in variant.hyperparameters if parameter.shared} == set(formula.shared)


def test_the_oracle_reproduces_every_published_number() -> None:
    assert list_cases.disagreements() == []


def test_the_golden_file_is_what_the_oracle_writes() -> None:
    written = json.loads(json.dumps(list_cases.vectors()))
    assert written == GOLDEN_LISTS, "run `python -m tests.golden.list_cases`"


def test_lipo_is_what_rax_computes() -> None:
    """Printed by rax 0.4.0 in float64: pairwise_logistic_loss, summed, with dcg_lambdaweight and 1 / log(1 + rank)."""
    prompt = {
        "pi": [-12.0, -15.5, -9.25, -20.0, -14.0],
        "ref": [-13.0, -14.0, -9.5, -18.0, -16.5],
        "n": [6, 8, 4, 9, 7],
        "u": [8.0, 6.0, 2.0, 6.0, 9.5],
    }
    value = 4.919956667019984
    gradient = [
        -0.03457447263113922,
        0.07286391356489437,
        0.17897253535597757,
        0.07189815001400883,
        -0.28916012630374155,
    ]
    lists = make_lists([prompt])
    found = get_loss("lipo")(lists, beta=0.1, lipo_scale=10.0)
    answers = 5  # Rax multiplies by their number
    assert answers * found.item() == pytest.approx(value, rel=1e-12)
    assert [answers * each for each in slopes(found, lists).tolist()] == pytest.approx(gradient, rel=1e-12)
