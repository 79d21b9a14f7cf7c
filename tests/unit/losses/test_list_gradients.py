"""Every variant of lists has the right gradient: stopped where it should be, and finite wherever training goes."""

from __future__ import annotations

import pytest
import torch

from tests.support.list_batches import (
    PROMPTS,
    SMOOTH_PROMPTS,
    Prompt,
    list_hypers_of,
    make_lists,
    slopes,
    some_list_hyper,
)
from trl_dpo_ext import LossVariant, get_loss, list_losses
from trl_dpo_ext.core.transforms import F_DIVERGENCES

VARIANTS = list_losses(reads="lists")
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)

BY_DIFFERENCES = [v for v in VARIANTS if v.name not in ("nca", "rrhf", "sppo_list", "qrpo_list")]
"""Variants that read nothing but differences of rewards."""


@each_variant
def test_automatic_and_numeric_gradients_agree(variant: LossVariant) -> None:
    leaf = make_lists(SMOOTH_PROMPTS).answers.logps
    for hyper in list_hypers_of(variant):

        def loss(logps: torch.Tensor, hyper: dict = hyper) -> torch.Tensor:
            return variant(make_lists(SMOOTH_PROMPTS, logps=logps), **hyper)

        assert torch.autograd.gradcheck(loss, (leaf,), atol=1e-7, rtol=1e-5, fast_mode=True)


@pytest.mark.parametrize("variant", BY_DIFFERENCES, ids=lambda variant: variant.name)
def test_the_gradients_of_a_prompts_answers_add_up_to_zero(variant: LossVariant) -> None:
    for hyper in list_hypers_of(variant):
        lists = make_lists(SMOOTH_PROMPTS)
        gradient = slopes(variant(lists, **hyper), lists)
        if variant.name == "pl_reference_free":  # its rewards are means over the tokens
            gradient = gradient * lists.answers.lengths
        torch.testing.assert_close(lists.sum(gradient), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)


@each_variant
@pytest.mark.parametrize("size", [200.0, 1000.0])
def test_rewards_of_any_size_give_finite_values_and_gradients(variant: LossVariant, size: float) -> None:
    # With beta 1, rewards of +-size: S-DPO's own code gives inf and NaN from a gap of 89 on.
    prompts: list[Prompt] = [
        {"pi": [-1.0, -1.0 - size, -1.0], "ref": [-1.0 - size, -1.0, -1.0], "n": [1, 3, 2], "u": [1.0, 0.5, 0.25]},
        {"pi": [-1.0 - size, -1.0, -1.0], "ref": [-1.0, -1.0 - size, -1.0], "n": [1, 3, 2], "u": [1.0, 0.5, 0.25]},
        {"pi": [-size, -1.0], "ref": [-1.0, -1.0], "n": [1, 1], "u": [1.0, 1.0]},
    ]
    for hyper in list_hypers_of(variant):
        hyper = {**hyper, "beta": 1.0} if "beta" in hyper else hyper
        lists = make_lists(prompts, dtype=torch.float32)
        values = variant(lists, **hyper)
        assert values.isfinite().all(), (hyper, values)
        assert slopes(values, lists).isfinite().all(), hyper


@each_variant
def test_the_first_step_has_a_gradient(variant: LossVariant) -> None:
    # Where policy and reference are equal all places are shared, and LiPO's weights must not be 0 for that.
    prompts = [prompt | {"ref": prompt["pi"]} for prompt in SMOOTH_PROMPTS]
    lists = make_lists(prompts)
    gradient = slopes(variant(lists, **some_list_hyper(variant)), lists)
    assert (lists.sum(gradient.abs()) > 0).all()
    assert gradient.isfinite().all()


@each_variant
def test_a_prompt_whose_answers_are_all_tied_has_neither_value_nor_gradient(variant: LossVariant) -> None:
    tied = {**SMOOTH_PROMPTS[1], "u": [0.5, 0.5, 0.5]}
    for prompts in ([tied], [SMOOTH_PROMPTS[0], tied, SMOOTH_PROMPTS[2]]):
        for hyper in list_hypers_of(variant):
            lists = make_lists(prompts)
            values = variant(lists, **hyper)
            place = prompts.index(tied)
            assert values[place].item() == 0
            gradient = slopes(values, lists)
            assert gradient.isfinite().all()
            assert (gradient[lists.prompt == place] == 0).all()


@each_variant
def test_answers_that_truncation_has_emptied_give_finite_gradients(variant: LossVariant) -> None:
    emptied = {"pi": [0.0, -5.0, 0.0], "ref": [0.0, -4.0, 0.0], "n": [0, 3, 0], "u": [1.0, 0.5, 0.25]}
    for hyper in list_hypers_of(variant):
        lists = make_lists([emptied], dtype=torch.float32)
        values = variant(lists, **hyper)
        assert values.isfinite().all()
        assert slopes(values, lists).isfinite().all()


@each_variant
def test_a_batch_without_prompts_has_a_gradient_of_zero(variant: LossVariant) -> None:
    values = variant(make_lists([]), **some_list_hyper(variant))
    assert values.shape == (0,)
    assert values.sum().requires_grad


@pytest.mark.parametrize("f_divergence_type", F_DIVERGENCES)
@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.f_divergence], ids=lambda variant: variant.name)
def test_every_f_divergence_gives_finite_gradients(variant: LossVariant, f_divergence_type: str) -> None:
    far = {"pi": [-200.0, -2.0, -100.0], "ref": [-2.0, -200.0, -100.0], "n": [5, 5, 5], "u": [1.0, 0.5, 0.25]}
    for hyper in list_hypers_of(variant):
        lists = make_lists([far, *PROMPTS], dtype=torch.float32, f_divergence={"f_divergence_type": f_divergence_type})
        values = variant(lists, **hyper)
        assert values.isfinite().all()
        assert slopes(values, lists).isfinite().all()


def test_a_kink_of_rrhf_has_the_gradient_zero() -> None:
    equal = {"pi": [-6.0, -8.0], "ref": [0.0, 0.0], "n": [3, 4], "u": [1.0, 0.0]}
    lists = make_lists([equal])
    gradient = slopes(get_loss("rrhf")(lists, rrhf_nll_weight=0.0), lists)
    assert gradient.tolist() == [0, 0]
