"""Values and gradients equal the installed TRL's own loss code, fed with the same log-probs, wherever that code is finite."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from trl import RewardTrainer

from trl_dpo_ext import Pairs, Side, get_loss, list_losses
from trl_dpo_ext.reference.dataset_source import DatasetReference

F_DIVERGENCES = ["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]
HOST_NAMES = [variant.name for variant in list_losses() if variant.from_trl]
SMOOTHED = {"robust", "exo_pair", "aot", "aot_unpaired"}
PAIRS, TOKENS = 5, 9


def cases() -> list[Any]:
    """Every combination that both sides allow, as (loss, f-divergence, ld_alpha, weighting, smoothing, scale)."""
    found = []
    by_name = {variant.name: variant for variant in list_losses()}
    for name, divergence, ld_alpha, weighting, smoothing, scale in itertools.product(
        HOST_NAMES, F_DIVERGENCES, [None, 0.5], [False, True], [0.0, 0.1], [1.0, 20.0]
    ):
        variant = by_name[name]
        if divergence != "reverse_kl" and not variant.f_divergence:
            continue
        if weighting and (not variant.order_preserving or name in {"hinge", "sft"}):  # TRL raises: see test_defects
            continue
        if (smoothing > 0) != (name in SMOOTHED) and not (smoothing == 0.0 and name in SMOOTHED - {"exo_pair"}):
            continue
        found.append((name, divergence, ld_alpha, weighting, smoothing, scale))
    return found


def batch(scale: float) -> dict[str, torch.Tensor]:
    """Inputs of 5 pairs, with a completion of one token and one pair whose policy equals its reference."""
    generator = torch.Generator().manual_seed(7)
    lengths = torch.tensor([4, 1, 7, 3, 5, 6, 2, 7, 5, 3])
    completion_mask = torch.zeros(2 * PAIRS, TOKENS, dtype=torch.long)
    for row, length in enumerate(lengths):
        completion_mask[row, 2 : 2 + length] = 1
    mask = completion_mask[:, 1:]
    log_probs = -torch.rand(mask.shape, generator=generator) * scale * mask
    reference = (-torch.rand(mask.shape, generator=generator) * scale * mask).sum(1)
    reference[2], reference[2 + PAIRS] = log_probs[2].sum(), log_probs[2 + PAIRS].sum()
    return {
        "input_ids": torch.ones(2 * PAIRS, TOKENS, dtype=torch.long),
        "attention_mask": torch.ones(2 * PAIRS, TOKENS, dtype=torch.long),
        "completion_mask": completion_mask,
        "ref_chosen_logps": reference[:PAIRS],
        "ref_rejected_logps": reference[PAIRS:],
        "log_probs": log_probs,
        "log_sum_sq_probs": -torch.rand(mask.shape, generator=generator),
    }


def loss_and_gradient(trainer: Any, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = dict(inputs)
    log_probs = inputs.pop("log_probs").clone().requires_grad_()
    log_sum_sq_probs = inputs.pop("log_sum_sq_probs")
    output = SimpleNamespace(
        log_probs=log_probs,
        log_sum_sq_probs=log_sum_sq_probs,
        entropy=torch.zeros_like(log_probs),
        mean_logits=torch.zeros_like(log_probs),
        is_top1=torch.zeros_like(log_probs, dtype=torch.bool),
        aux_loss=None,
    )
    loss = trainer.compute_loss(lambda **_: output, inputs)
    loss.backward()
    return loss.detach(), log_probs.grad


def set_host(trainer: Any, name: str, divergence: str, ld_alpha: Any, weighting: bool, smoothing: float) -> None:
    trainer.loss_types, trainer.loss_weights, trainer.precompute_ref_logps = [name], [0.7], True
    trainer.f_divergence_type, trainer.ld_alpha = divergence, ld_alpha
    trainer.use_weighting, trainer.label_smoothing = weighting, smoothing


def set_ours(trainer: Any, name: str, divergence: str, ld_alpha: Any, weighting: bool, smoothing: float) -> None:
    trainer.set_losses(
        loss_type=[name],
        loss_weights=[0.7],
        label_smoothing=smoothing,
        f_divergence_type=divergence,
        ld_alpha=ld_alpha,
        use_weighting=weighting,
    )
    trainer.ld_alpha = ld_alpha
    trainer.reference = DatasetReference(trainer.reference.settings)
    trainer.first_step.after = lambda *_: None  # the log-probs here are made up, not the policy's


@pytest.mark.parametrize("case", cases(), ids=lambda case: "-".join(map(str, case)))
def test_value_and_gradient_equal_trl(host: Any, ours: Any, case: tuple) -> None:
    *setting, scale = case
    set_host(host, *setting)
    set_ours(ours, *setting)
    expected, expected_gradient = loss_and_gradient(host, batch(scale))
    value, gradient = loss_and_gradient(ours, batch(scale))
    if not (torch.isfinite(expected) and torch.isfinite(expected_gradient).all()):
        assert setting[0] == "discopop", "TRL is finite everywhere else on this grid"
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()
        return
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-12)


def test_the_grid_covers_every_loss_of_trl() -> None:
    assert {case[0] for case in cases()} == set(HOST_NAMES)
    assert len(HOST_NAMES) == 15


def test_margin_is_the_loss_of_trls_reward_trainer_on_implicit_rewards() -> None:
    generator = torch.Generator().manual_seed(3)
    chosen, rejected, ref_chosen, ref_rejected, margins = torch.randn(5, 16, generator=generator, dtype=torch.float64)
    for logps in (chosen, rejected):
        logps.requires_grad_()
    rewards = 0.1 * torch.cat((chosen - ref_chosen, rejected - ref_rejected))
    trainer = MagicMock()
    trainer.args.center_rewards_coefficient = None
    trainer.model.training = False
    inputs = {"margin": margins, "attention_mask": torch.ones(32, 2)}
    theirs = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=rewards.unsqueeze(-1)), inputs)
    pairs = Pairs(Side(chosen, ref_chosen), Side(rejected, ref_rejected), columns={"margin": margins})
    ours = get_loss("margin")(pairs, beta=0.1, margin_scale=1.0).mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    for leaf in (chosen, rejected):
        (right,) = torch.autograd.grad(theirs, leaf, retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad(ours, leaf, retain_graph=True)[0], right, rtol=1e-12, atol=0)
