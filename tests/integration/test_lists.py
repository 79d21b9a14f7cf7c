"""Training on lists gives the loss and gradients of the expanded pairs, for every loss of pairs and every forward."""

from __future__ import annotations

import pytest
import torch

from tests.support import runs, tiny
from tests.support.lists import expanded, lists, loss_and_gradients
from tests.support.tolerances import rounding

DOUBLE = {"per_device_train_batch_size": 16, "disable_dropout": True}


def both(tmp_path, data, loss_type, **settings):
    """Loss and gradients on lists, and on their expanded pairs fed one by one by the plain forward; in float64."""
    found = []
    for name, dataset, more in (
        ("lists", data, settings),
        ("pairs", expanded(data), {"weight_column": "weight"}),
    ):
        torch.manual_seed(0)
        run = runs.trainer(
            tmp_path / name,
            model=tiny.model().double(),
            ref_model=tiny.model(seed=1).double(),
            train_dataset=dataset,
            loss_type=loss_type,
            **more,
        )
        found.append(loss_and_gradients(run))
    return found


def assert_same(ours, theirs):
    (loss, gradients), (pair_loss, pair_gradients) = ours, theirs
    # Log-probs are sums of up to a dozen logs of a float32 softmax; losses weight them by a few units.
    assert loss == pytest.approx(pair_loss, abs=rounding(6.0 * max(1.0, pair_loss)))
    largest = max(float(each.abs().max()) for each in pair_gradients.values())
    assert largest > 0.01
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, pair_gradients[name], rtol=0, atol=rounding(8 * largest))


def test_lists_are_their_expanded_pairs(tmp_path):
    assert_same(*both(tmp_path, lists(), "sigmoid"))


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", ["dpop", "simpo", "rpo_sq", "ipo", "sigmoid_norm", "tdpo1", ["sigmoid", "hinge"]])
def test_losses_of_pairs_on_lists_are_those_of_the_expanded_pairs(tmp_path, loss_type):
    assert_same(*both(tmp_path, lists(), loss_type))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"share_prompt": True}, {"padding_free": True}, {"precompute_ref_log_probs": True}]
)
@pytest.mark.parametrize("conversational", [False, True])
def test_every_forward_gives_the_same(tmp_path, settings, conversational):
    if "precompute_ref_log_probs" in settings:
        settings = {**settings, "ref_store": str(tmp_path / "store")}
    assert_same(*both(tmp_path, lists(conversational=conversational), "sigmoid", **settings))
