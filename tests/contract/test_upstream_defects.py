"""What other published implementations of these losses get wrong, each as a test of what is right here."""

from __future__ import annotations

import math

import pytest
import torch

from tests.support import runs
from tests.support.batches import required_hyper
from trl_dpo_ext import Pairs, Side, get_loss, list_losses
from trl_dpo_ext.core import transforms

LN2 = math.log(2)


def at_the_reference(**lengths: list[int]) -> Pairs:
    """Two pairs whose policy is the reference, as at the first step."""
    logps = {"chosen": [-12.0, -20.0], "rejected": [-15.0, -18.0]}
    return Pairs.from_logps(**logps, ref_chosen=logps["chosen"], ref_rejected=logps["rejected"], **lengths)


def tokens(policy: list[float], reference: list[float]) -> Side:
    logps, ref_logps = torch.tensor([policy]), torch.tensor([reference])
    mask = torch.ones_like(logps, dtype=torch.bool)
    return Side(
        logps.sum(1), ref_logps.sum(1), token_logps=logps, ref_token_logps=ref_logps, mask=mask, lengths=mask.sum(1)
    )


def test_a_loss_chosen_by_name_is_the_loss_that_trains(tmp_path) -> None:
    """One framework passes the name to an older TRL that ignores it: hinge and ipo silently train sigmoid."""
    for variant in list_losses():
        smoothing = 0.1 if any(p.name == "label_smoothing" for p in variant.hyperparameters) else 0.0
        config = runs.config(tmp_path, loss_type=variant.name, label_smoothing=smoothing, **required_hyper(variant))
        assert [term.variant for term in config.loss_mixture().terms] == [variant]


def test_one_term_of_a_mixture_does_not_change_the_others(tmp_path) -> None:
    """One framework averages the log-probs of every loss in the list when ipo is among them."""
    pairs = Pairs.from_logps(
        chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0],
        chosen_lengths=[6], rejected_lengths=[8],
    )  # fmt: skip
    together, terms = runs.config(tmp_path, loss_type=["sigmoid", "ipo"]).loss_mixture()(pairs)
    alone = [get_loss(name)(pairs, beta=0.1).mean() for name in ("sigmoid", "ipo")]
    assert list(terms.values()) == alone
    assert together == sum(alone)


def test_label_smoothing_stays_what_it_was_set_to(tmp_path) -> None:
    """One framework overwrites label_smoothing when exo_pair runs."""
    config = runs.config(tmp_path, loss_type=["exo_pair", "robust"], label_smoothing=0.1)
    config.loss_mixture()(at_the_reference())
    assert config.label_smoothing == 0.1


def test_wpo_weights_are_of_mean_log_probs_and_carry_no_gradient() -> None:
    """One code base takes summed log-probs, and lets the gradient through the weights."""
    logps = torch.full((2, 50), -1.0, requires_grad=True)
    weights = transforms.wpo_weights(logps, torch.full((2, 50), -1.5), torch.ones(2, 50, dtype=torch.bool))
    torch.testing.assert_close(weights, torch.tensor([math.e]))  # exp(0.5) for each side, whatever the length
    assert not weights.requires_grad


@pytest.mark.parametrize("name", ["ipo", "sigmoid_norm"])
def test_lengths_are_tokens_not_ratios_that_differ_from_zero(name: str) -> None:
    """One code base counts the tokens whose log-ratio is not 0, which is 0 / 0 at the first step."""
    pairs = at_the_reference(chosen_lengths=[6, 10], rejected_lengths=[8, 5])
    assert get_loss(name)(pairs, beta=1.0).isfinite().all()


def test_a_longer_chosen_answer_is_pushed_less_by_rdpo() -> None:
    """Two code bases have the sign the other way round and take the batch size for the length."""
    longer = get_loss("rdpo")(at_the_reference(chosen_lengths=[60, 60], rejected_lengths=[10, 10]), beta=0.1)
    shorter = get_loss("rdpo")(at_the_reference(chosen_lengths=[10, 10], rejected_lengths=[60, 60]), beta=0.1)
    assert (longer < LN2).all()
    assert (shorter > LN2).all()


def test_sampo_draws_the_same_tokens_for_policy_and_reference() -> None:
    """The authors' code draws them independently, which is noise in every log-ratio."""
    same = [-float(i) for i in range(1, 9)]
    pairs = Pairs(tokens(same, same), tokens([-1.0, -2.0, -4.0], [-1.0, -2.0, -4.0]))
    torch.testing.assert_close(get_loss("sampo")(pairs, beta=1.0), torch.tensor([LN2]))


def test_the_penalty_of_dpop_stands_inside_the_sigmoid() -> None:
    """One code base adds it to the loss: 25.77 instead of 2.72 for the second pair."""
    pairs = Pairs.from_logps(chosen=[-20.0], rejected=[-18.0], ref_chosen=[-19.5], ref_rejected=[-19.0])
    assert get_loss("dpop")(pairs, beta=0.1, dpop_lambda=50.0).item() == pytest.approx(2.71826707, rel=1e-6)


def test_asking_for_simpo_is_not_asking_for_cpo() -> None:
    """Two frameworks add a likelihood term to simpo unless told not to."""
    pairs = Pairs.from_logps(chosen=[-1000.0], rejected=[-1000.0], chosen_lengths=[10], rejected_lengths=[10])
    value = get_loss("simpo")(pairs).item()
    assert value == pytest.approx(math.log1p(math.exp(0.5)))


def test_alphapo_is_finite_for_very_unlikely_answers() -> None:
    """exp(a) ** -alpha is infinite below a mean log-prob of about -103, and its difference NaN."""
    chosen = torch.tensor([-500.0], requires_grad=True)
    pairs = Pairs.from_logps(chosen=chosen, rejected=[-600.0], chosen_lengths=[1], rejected_lengths=[1])
    loss = get_loss("alphapo")(pairs)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert chosen.grad.isfinite().all()


def test_label_smoothing_turns_the_sign_of_the_second_term() -> None:
    """One code base has both terms with the same sign, so that smoothing is no smoothing."""
    sure = Pairs.from_logps(chosen=[0.0], rejected=[-100.0], ref_chosen=[-50.0], ref_rejected=[-50.0])
    assert get_loss("cdpo")(sure, beta=1.0, label_smoothing=0.1).item() == pytest.approx(10.0, rel=1e-6)
