"""Losses whose temperature follows the reference's entropy: what they are at a dispersion of one, and at the ends."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests import golden
from tests.support.batches import PUBLISHED, gradients, make_pairs
from trl_dpo_ext import Pairs, Side, get_loss
from trl_dpo_ext.core.transforms import relative_entropy

NUMBERS = json.loads((Path(golden.__file__).parent / "published.json").read_text())
BETA = {"mallows_dpo": {"beta": 0.1}, "rainbowpo": {}}
each = pytest.mark.parametrize("name", BETA)


def of_entropy(value):
    pairs = make_pairs(PUBLISHED)
    sides = (replace(side, ref_entropy=torch.full_like(side.logps, value)) for side in (pairs.chosen, pairs.rejected))
    return replace(pairs, **dict(zip(("chosen", "rejected"), sides, strict=True)))


def test_a_dispersion_of_one_leaves_dpo_normalized_dpo_and_simpo():
    pairs, one = of_entropy(math.exp(-1)), {"rainbowpo_mean": 1.0, "rainbowpo_beta": 2.0}
    same = [
        (("mallows_dpo", {"beta": 0.1, "mallows_dpo_mean": 1.0}), ("sigmoid", {"beta": 0.1})),
        (("rainbowpo", {**one, "rainbowpo_alpha": 1.0}), ("sigmoid_norm", {"beta": 2.0})),
        (
            ("rainbowpo", {**one, "rainbowpo_alpha": 0.0, "rainbowpo_home": 0.25}),
            ("simpo", {"simpo_beta": 2.0, "simpo_gamma": 0.5}),
        ),
    ]
    for (ours, our_hyper), (theirs, their_hyper) in same:
        torch.testing.assert_close(get_loss(ours)(pairs, **our_hyper), get_loss(theirs)(pairs, **their_hyper))


@each
def test_a_surer_reference_makes_a_pair_count_more(name):
    at_ease = of_entropy(0.9)
    surer = of_entropy(0.5)
    few, many = (gradients(get_loss(name)(p, **BETA[name]).sum(), p)[0].abs().sum() for p in (at_ease, surer))
    assert many > 2 * few


@each
@pytest.mark.parametrize("entropy", [0.0, 1.0, -0.001, 1.001])
def test_a_reference_that_is_certain_or_knows_nothing_gives_finite_gradients(name, entropy):
    pairs = of_entropy(entropy)
    loss = get_loss(name)(pairs, **BETA[name])
    assert all(part.isfinite().all() for part in (loss, *gradients(loss.sum(), pairs)))


def test_the_published_pair_from_whole_distributions():
    fixture = NUMBERS["stages"]["token_fixture"]
    sides = []
    for name in ("w", "l"):
        policy, reference = (torch.tensor(fixture[name][model], dtype=torch.float64) for model in ("pi", "ref"))
        labels = torch.tensor(fixture[name]["y"]).unsqueeze(1)
        taken = [model.log().gather(1, labels).sum().unsqueeze(0) for model in (policy, reference)]
        # Behind one prompt token and in front of one of padding, whose entropies must not count.
        entropy = torch.nn.functional.pad(-(reference * reference.log()).sum(1), (1, 1), value=9.0).unsqueeze(0)
        mask = torch.nn.functional.pad(torch.ones(len(labels)), (1, 1)).bool().unsqueeze(0)
        sides.append(Side(*taken, ref_entropy=relative_entropy(entropy, mask, reference.size(1))))
    case = NUMBERS["tokens"]["mallows_dpo"]
    assert get_loss("mallows_dpo")(Pairs(*sides), **case["hyper"]).item() == pytest.approx(case["mean"], rel=1e-12)


def test_the_entropy_of_an_empty_completion_is_zero_and_of_a_guess_one():
    entropy, mask = torch.full((2, 3), math.log(7)), torch.tensor([[False, True, True], [False] * 3])
    assert relative_entropy(entropy, mask, 7).tolist() == pytest.approx([1.0, 0.0])
