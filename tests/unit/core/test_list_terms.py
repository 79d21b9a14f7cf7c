"""Mixtures of list and pair terms: what they compute, what they need, and what is refused before training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.batches import SMOOTH, make_pairs
from tests.support.list_batches import SMOOTH_PROMPTS, make_lists, slopes
from trl_dpo_ext import DPOExtConfig, InputError, LossMixture, Need, get_loss, list_losses
from trl_dpo_ext.core.list_pairs import pair_lists
from trl_dpo_ext.core.list_terms import list_problems, needed_order, variant_problems


def mixture(loss_type: Any, **options: Any) -> LossMixture:
    return DPOExtConfig(output_dir="out", loss_type=loss_type, bf16=False, report_to=[], **options).loss_mixture()


def test_list_and_pair_terms_add_up_with_their_weights() -> None:
    mixed = mixture(["pl", "sigmoid", "rrhf:nll_weight=0.5"], loss_weights=[1.0, 0.25, 2.0])
    assert mixed.reads_lists
    assert mixed.needs == Need.REFERENCE | Need.LENGTHS
    lists = make_lists(SMOOTH_PROMPTS)
    loss, each = mixed.on_lists(lists, "best")
    paired = pair_lists(lists, "best")
    expected = {
        "pl": get_loss("pl")(lists, beta=0.1).mean(),
        "sigmoid": paired.by_prompt(get_loss("sigmoid")(paired.pairs, beta=0.1)).mean(),
        "rrhf": get_loss("rrhf")(lists, rrhf_nll_weight=0.5).mean(),
    }
    assert {name: value.item() for name, value in each.items()} == {n: v.item() for n, v in expected.items()}
    assert not any(value.requires_grad for value in each.values())
    total = expected["pl"] + 0.25 * expected["sigmoid"] + 2.0 * expected["rrhf"]
    assert isinstance(loss, torch.Tensor)
    torch.testing.assert_close(loss, total)
    torch.testing.assert_close(slopes(loss, lists), slopes(total, lists))


def test_weights_of_prompts_weigh_every_term() -> None:
    mixed, lists = mixture(["top1", "sigmoid"]), make_lists(SMOOTH_PROMPTS)
    weights = torch.tensor([2.0, 0.0, 1.0, 0.5], dtype=torch.float64)
    paired = pair_lists(lists)
    values = get_loss("top1")(lists, beta=0.1) + paired.by_prompt(get_loss("sigmoid")(paired.pairs, beta=0.1))
    torch.testing.assert_close(mixed.on_lists(lists, weights=weights)[0], (values * weights).mean())


def test_the_sum_over_pairs_grows_with_their_number() -> None:
    alone, lists = mixture("sigmoid"), make_lists(SMOOTH_PROMPTS[3:])
    mean, total = (alone.on_lists(lists, reduction=reduction)[0] for reduction in ("mean", "sum"))
    torch.testing.assert_close(total, 10 * mean)


def test_terms_of_pairs_see_the_same_drawn_pairs() -> None:
    twice, lists = mixture(["sigmoid", "sigmoid:beta=0.5"]), make_lists(SMOOTH_PROMPTS)
    _, each = twice.on_lists(lists, 1, generator=torch.Generator().manual_seed(1))
    paired = pair_lists(lists, 1, generator=torch.Generator().manual_seed(1))
    for name, beta in (("sigmoid", 0.1), ("sigmoid:beta=0.5", 0.5)):
        expected = paired.by_prompt(get_loss("sigmoid")(paired.pairs, beta=beta)).mean().item()
        assert each[name].item() == expected


def test_a_mixture_with_list_terms_serves_pairs() -> None:
    pairs = make_pairs(SMOOTH)
    _, each = mixture(["pl", "sigmoid", "top1"])(pairs)
    assert each["pl"].item() == pytest.approx(each["sigmoid"].item(), rel=1e-12)
    assert each["top1"].item() == pytest.approx(each["sigmoid"].item(), rel=1e-12)


def test_no_prompts_have_the_loss_zero() -> None:
    loss, _ = mixture(["pl", "sigmoid", "sft"]).on_lists(make_lists([]))
    assert isinstance(loss, torch.Tensor)
    assert loss.item() == 0


def test_the_first_terms_own_reward_is_that_of_every_answer() -> None:
    lists = make_lists(SMOOTH_PROMPTS)
    rewards = mixture("pl_reference_free").answer_rewards(lists.answers)
    assert rewards is not None
    torch.testing.assert_close(rewards, 2.0 * lists.answers.avg_logps.detach())
    assert mixture("pl").answer_rewards(lists.answers) is None


def test_pairs_of_a_loss_of_scores_need_its_columns_within_its_bounds() -> None:
    columns = mixture("qrpo_list").columns
    assert set(columns) == {"score_chosen", "score_rejected"}
    assert columns["score_chosen"].broken_bound(1.5) == "<= 1"
    assert columns["score_chosen"].broken_bound(0.0) is None
    in_logs = mixture("qrpo_list", qrpo_transform="log").columns
    assert in_logs["score_rejected"].broken_bound(0.0) == "> 0"
    sampled = mixture("qrpo_list", qrpo_list_scores="samples")
    assert sampled.columns["score_chosen"].broken_bound(-7.0) is None
    bounds = mixture("lipo_normalized", lipo_scale=5.0).terms[0].score_bounds
    assert bounds is not None
    assert bounds.broken_bound(5.5) == "<= 5"
    assert mixture("pl").columns == {}
    assert mixture("pl").terms[0].score_bounds is None


def test_a_temperature_without_a_default_has_to_be_set() -> None:
    with pytest.raises(InputError, match=r"loss_type 'infonca' needs infonca_tau: temperature of the target"):
        mixture("infonca")
    with pytest.raises(InputError, match=r"infonca_tau must be > 0 for loss_type 'infonca'; got 0"):
        mixture("infonca", infonca_tau=0.0)
    assert mixture("infonca:tau=0.5").terms[0].hyper["infonca_tau"] == 0.5


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", list_losses(), ids=lambda variant: variant.name)
def test_a_loss_trains_on_lists_of_scores_exactly_if_its_pairs_are_independent(variant: Any) -> None:
    problems = variant_problems(variant, "scores")
    compares = variant.stateful or Need.BATCH in variant.needs or not variant.order_preserving
    reads_more = set(variant.columns) - {"score_chosen", "score_rejected", "margin"}
    assert bool(problems) == (compares or bool(reads_more))
    for problem in problems:
        assert problem.startswith(f"loss_type {variant.name!r} cannot train on lists: it ")


def test_each_reason_is_given() -> None:
    mixed = mixture(["aot", "beta_dpo", "sppo", "sigmoid", "pl", "infonca:tau=1.0", "trl:hinge"])
    problems = list_problems(mixed, "best")
    assert [problem.split("'")[1] for problem in problems] == ["aot", "beta_dpo", "sppo", "pl", "infonca", "trl:hinge"]
    compares, state, columns, ranks, scores, host = problems
    assert "compares the pairs of a batch" in compares
    assert "running state" in state
    assert "reads p_chosen, which the pairs of a list do not have" in columns
    assert "needs ranks, and the data has only the index of the best answer" in ranks
    assert "needs scores, and the data has only the index of the best answer" in scores
    assert "Write 'hinge'" in host
    assert list_problems(mixture(["pl", "top1", "sigmoid"]), "ranks") == []
    (margin,) = list_problems(mixture(["margin", "sigmoid"]), "ranks")
    assert margin.startswith("loss_type 'margin' cannot train on lists: it needs scores, and the data has only ranks.")


def test_what_a_loss_needs_of_the_order() -> None:
    names = ("sigmoid", "margin", "rpo_sq", "top1", "pl", "rrhf", "infonca", "nca", "lipo", "sppo_list", "qrpo_list")
    assert [needed_order(get_loss(name)) for name in names] == [
        "best", "scores", "scores", "best", "ranks", "ranks", *["scores"] * 5,
    ]  # fmt: skip
