"""Every registered variant gives the numbers that an independent oracle and the literature give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests import golden
from tests.golden import cases, oracle
from tests.support.batches import GOLDEN, gradients, make_pairs, run_case, take
from tests.support.golden_run import written_vectors
from trl_dpo_ext import Pairs, get_loss, implicit_reward, list_losses

PUBLISHED = json.loads((Path(golden.__file__).parent / "published.json").read_text())

each_variant = pytest.mark.parametrize("variant", list_losses(reads="pairs"), ids=lambda variant: variant.name)


def cases_of(variant):
    found = GOLDEN["cases"].get(variant.name)
    assert found, f"{variant.name} has no golden cases: add its formula to tests/golden/oracle.py"
    return found


def ranked(values, variant):
    """Values of a loss that sorts its batch belong to ranks, not to pairs: compare them sorted."""
    return values if variant.order_preserving else values.sort().values


@each_variant
def test_every_pair_gets_the_golden_value(variant):
    for case in cases_of(variant):
        got, _ = run_case(variant, case, torch.float64)
        expected = torch.tensor(case["per_pair"], dtype=torch.float64)
        torch.testing.assert_close(
            ranked(got, variant),
            ranked(expected, variant),
            rtol=1e-10,
            atol=1e-12,
            msg=lambda text, case=case: f"{variant.name} {case['hyper']} on {case['inputs']}: {text}",
        )
        assert got.mean().item() == pytest.approx(case["mean"], rel=1e-10, abs=1e-12)


@each_variant
def test_float32_is_near_the_golden_value_and_finite(variant):
    for case in cases_of(variant):
        got, pairs = run_case(variant, case, torch.float32)
        expected = torch.tensor(case["per_pair"], dtype=torch.float32)
        assert got.dtype == torch.float32
        torch.testing.assert_close(ranked(got, variant), ranked(expected, variant), rtol=1e-4, atol=1e-4)
        for gradient in gradients(got.mean(), pairs):
            assert gradient.isfinite().all(), (variant.name, case["hyper"], gradient)


@each_variant
def test_defaults_and_shared_names_are_those_of_the_oracle(variant):
    formula = oracle.VARIANTS[variant.name]
    assert {parameter.name: parameter.default for parameter in variant.owned} == formula.defaults
    assert {parameter.name for parameter in variant.hyperparameters if parameter.shared} == set(formula.shared)


def test_the_oracle_reproduces_every_published_number():
    assert cases.disagreements() == []


@pytest.mark.slow
def test_the_golden_file_is_what_the_oracle_writes(tmp_path_factory):
    assert json.loads(written_vectors(tmp_path_factory)) == GOLDEN, "run `python -m tests.golden.cases`"


def test_slic_hf_is_what_the_first_version_of_halos_computes():
    """Values of ContextualAI/HALOs at d49576f, `SLiCTrainer.loss`, executed with beta 4 and lambda_coef 0.25."""
    pairs = make_pairs(PUBLISHED["inputs"], dtype=torch.float64)
    found = get_loss("slic_hf")(pairs, slic_hf_delta=4.0, slic_hf_lambda=0.25)
    assert get_loss("slic_hf").verification == "framework"
    assert found.tolist() == [4.0, 11.0, 5.0, 7.5]


def test_the_worked_example_of_introductions_to_dpo():
    intro = PUBLISHED["introductions"]
    chosen, rejected, reference = (torch.tensor(intro[name]) for name in ("chosen", "rejected", "reference"))
    pairs = Pairs.from_logps(
        chosen=chosen.double(),
        rejected=rejected.double(),
        ref_chosen=reference.double(),
        ref_rejected=reference.double(),
    )
    loss = get_loss("sigmoid")(pairs, beta=intro["beta"])
    assert loss.mean().item() == pytest.approx(intro["mean"], abs=5e-5)
    rewards = implicit_reward(pairs.chosen.logps, pairs.chosen.ref_logps, beta=intro["beta"])
    assert rewards.tolist() == pytest.approx([intro["chosen_reward"]] * 4, abs=1e-12)


def test_the_reference_free_example_of_introductions_to_dpo():
    intro = PUBLISHED["introductions"]["reference_free"]
    chosen, rejected = torch.tensor([intro["chosen"]]).double(), torch.tensor([intro["rejected"]]).double()
    against_zero = Pairs.from_logps(
        chosen=chosen, rejected=rejected, ref_chosen=torch.zeros(1).double(), ref_rejected=torch.zeros(1).double()
    )
    loss = get_loss("sigmoid")(against_zero, beta=intro["beta"])
    assert loss.item() == pytest.approx(intro["mean"], abs=5e-5)
    free = make_pairs(take(GOLDEN["inputs"]["published"], [0]), chosen=chosen, rejected=rejected)
    assert get_loss("cpo")(free, beta=intro["beta"], cpo_alpha=0.0).item() == pytest.approx(intro["mean"], abs=5e-5)
