"""Losses that look at single tokens give the numbers published for a pair with whole next-token distributions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests import golden
from trl_dpo_ext import Pairs, Side, get_loss

PUBLISHED = json.loads((Path(golden.__file__).parent / "published.json").read_text())
TOKENS = PUBLISHED["tokens"]


def side(name, prompt=0, padding=0):
    """One completion of the token fixture, behind a prompt and before padding."""
    fixture = PUBLISHED["stages"]["token_fixture"][name]
    policy, reference = (
        torch.tensor(
            [[p[label] for p, label in zip(fixture[model], fixture["y"], strict=True)]], dtype=torch.float64
        ).log()
        for model in ("pi", "ref")
    )
    pad = (prompt, padding)
    return Side(
        logps=policy.sum(dim=1),
        ref_logps=reference.sum(dim=1),
        lengths=torch.tensor([len(fixture["y"])]),
        token_logps=torch.nn.functional.pad(policy, pad),
        mask=torch.nn.functional.pad(torch.ones_like(policy, dtype=torch.bool), pad),
        ref_token_logps=torch.nn.functional.pad(reference, pad),
    )


layouts = pytest.mark.parametrize("pad", [(0, 0), (2, 0), (1, 3)], ids=["bare", "prompt", "prompt and padding"])


@layouts
@pytest.mark.parametrize(
    ("name", "hyper", "published"),
    [
        ("d2po", {"beta": 0.1, "d2po_gamma": 0.98}, TOKENS["d2po"]["mean"]),
        ("d2po", {"beta": 0.1 * 0.98, "d2po_gamma": 0.98}, TOKENS["d2po as in the authors' code"]),
        ("d2po", {"beta": 0.1, "d2po_gamma": 1.0}, PUBLISHED["stages"]["sigmoid"]),
        ("unlikelihood", {"unlikelihood_alpha": 1.0}, TOKENS["unlikelihood"]["mean"]),
    ],
)
def test_tokens_give_the_published_number_wherever_they_stand(name, hyper, published, pad):
    loss = get_loss(name)(Pairs(side("w", *pad), side("l", *pad)), **hyper)
    assert loss.item() == pytest.approx(published, rel=1e-10)


@layouts
def test_sampo_keeps_as_many_tokens_of_the_longer_side_the_same_of_policy_and_reference(pad):
    pairs = Pairs(side("w", *pad), side("l", *pad))
    ratio = (pairs.chosen.token_logps - pairs.chosen.ref_token_logps)[pairs.chosen.mask]
    possible = {
        kept: -torch.nn.functional.logsigmoid(0.1 * (ratio[list(kept)].sum() - pairs.rejected.logratio)).item()
        for kept in ((0, 1), (0, 2), (1, 2))
    }
    assert possible[0, 2] == pytest.approx(TOKENS["sampo keeping the first and the last token"], rel=1e-12)
    loss, seen = get_loss("sampo").make(), []
    for _ in range(60):
        value = loss(pairs, beta=0.1).item()
        (kept,) = (kept for kept, expected in possible.items() if value == pytest.approx(expected, rel=1e-10))
        seen.append(kept)
    assert min(seen.count(kept) for kept in possible) >= 8  # of 20 each, on average


def test_sampo_of_equally_long_sides_is_dpo():
    pairs = Pairs(side("l"), side("l", 1, 1))
    assert get_loss("sampo")(pairs, beta=0.1).item() == pytest.approx(get_loss("sigmoid")(pairs, beta=0.1).item())


def test_unlikelihood_survives_a_rejected_token_that_the_model_is_sure_of():
    tokens = torch.tensor([[0.0, -1e-9, -2.0]], requires_grad=True)
    sure = Side(tokens.sum(dim=1), token_logps=tokens, mask=torch.ones(1, 3, dtype=torch.bool))
    loss = get_loss("unlikelihood")(Pairs(sure, sure), unlikelihood_alpha=1.0)
    (gradient,) = torch.autograd.grad(loss.sum(), tokens)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


@layouts
def test_tis_dpo_weighs_each_token_wherever_it_stands(pad):
    weights = {
        f"{column}_token_weights": torch.nn.functional.pad(torch.tensor([values], dtype=torch.float64), pad)
        for column, values in zip(("chosen", "rejected"), TOKENS["tis_dpo"]["weights"].values(), strict=True)
    }
    pairs = Pairs(side("w", *pad), side("l", *pad), columns=weights)
    assert get_loss("tis_dpo")(pairs, beta=0.1).item() == pytest.approx(TOKENS["tis_dpo"]["mean"], rel=1e-10)
    equal = replace(pairs, columns={name: torch.ones_like(values) for name, values in weights.items()})
    assert get_loss("tis_dpo")(equal, beta=0.1).item() == pytest.approx(PUBLISHED["stages"]["sigmoid"], rel=1e-10)
