"""The rewards that losses without a reference log: each loss can be written in its own reward."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import logsigmoid

from tests.support.batches import PUBLISHED, make_pairs, take
from trl_dpo_ext import get_loss

ONE_PAIR = take(PUBLISHED, [0])

# Per variant: hyperparameters, and its loss as a function of the rewards w (chosen) and r (rejected).
IN_REWARDS = {
    "simpo": ({"simpo_beta": 2.5, "simpo_gamma": 0.75}, lambda w, r: -logsigmoid(w - r - 0.75)),
    "cpo": ({"beta": 0.2, "cpo_alpha": 0.0}, lambda w, r: -logsigmoid(w - r)),
    "arpo": ({"beta": 0.2, "arpo_alpha": 0.0, "arpo_eta1": 10.0}, lambda w, r: -logsigmoid(w - r)),
    "slic_hf": (
        {"slic_hf_delta": 4.0, "slic_hf_lambda": 0.25},
        lambda w, r: torch.relu(4 - (w - r)) - 0.25 * w,
    ),
    "repo": ({"repo_gamma": 0.6}, lambda w, r: torch.relu(0.6 - (w - r))),
    "simper": ({}, lambda w, r: r - w),
    "alphapo": (
        {"alphapo_beta": 2.0, "alphapo_alpha": 0.25, "alphapo_gamma": 0.1},
        lambda w, r: -logsigmoid(w - r - 0.1),
    ),
    "gamma_po": (
        {"gamma_po_beta": 2.0, "gamma_po_ratio": 0.4, "gamma_po_tau": 10.0},
        lambda w, r: -logsigmoid(w - r - 0.8),
    ),
    "sft": ({}, lambda w, r: -w),
}


@pytest.mark.parametrize("name", IN_REWARDS)
def test_a_loss_is_a_function_of_the_rewards_it_logs(name):
    hyper, loss_of = IN_REWARDS[name]
    pairs, variant = make_pairs(ONE_PAIR), get_loss(name)
    given = {parameter.name: parameter.default for parameter in variant.owned} | hyper
    rewards = (variant.reward(side, **given) for side in (pairs.chosen, pairs.rejected))
    torch.testing.assert_close(variant(pairs, **hyper), loss_of(*rewards), rtol=1e-9, atol=1e-12)


def test_orpo_logs_the_log_odds():
    pairs, variant = make_pairs(PUBLISHED), get_loss("orpo")
    chosen, rejected = (variant.reward(side, orpo_lambda=0.1) for side in (pairs.chosen, pairs.rejected))
    torch.testing.assert_close(
        variant(pairs, orpo_lambda=0.3), -pairs.chosen.avg_logps - 0.3 * logsigmoid(chosen - rejected)
    )
    p = torch.exp(pairs.chosen.avg_logps)
    torch.testing.assert_close(chosen, torch.log(p / (1 - p)))


@pytest.mark.parametrize("name", [*IN_REWARDS, "orpo"])
def test_a_likelier_answer_has_a_higher_reward(name):
    hyper, _ = IN_REWARDS.get(name, ({"orpo_lambda": 0.1}, None))
    variant = get_loss(name)
    given = {parameter.name: parameter.default for parameter in variant.owned} | hyper
    likelier = PUBLISHED | {"chosen": [logp + 0.5 for logp in PUBLISHED["chosen"]]}
    before, after = (variant.reward(make_pairs(batch).chosen, **given) for batch in (PUBLISHED, likelier))
    assert (after > before).all()
