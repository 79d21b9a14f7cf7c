"""Pairs of lists: which are kept, what they hold, and how they are weighed."""

from __future__ import annotations

import pytest
import torch

from tests.support.batches import hypers_of
from tests.support.list_batches import SMOOTH_PROMPTS, make_lists, permuted, slopes
from trl_dpo_ext import Lists, LossMixture, LossVariant, Pairs, get_loss, list_losses
from trl_dpo_ext.core.list_pairs import ListPairs, ordered_pairs, pair_lists, pairs_of, parse_list_pairs
from trl_dpo_ext.core.list_terms import variant_problems
from trl_dpo_ext.core.mixture import Term

#                         best tied   best second, a tie  all tied   five without ties
SCORES = torch.tensor([7.0, 7, 4, 2, 9, 5, 5, 3, 3, 1, 2, 5, 4, 3])
PROMPT = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 3, 3, 3])


def kept(which: ListPairs, generator: torch.Generator | None = None) -> list[tuple[int, int]]:
    better, worse = ordered_pairs(SCORES, PROMPT, which, generator)
    return list(zip(better.tolist(), worse.tolist(), strict=True))


def test_all_pairs_are_the_ordered_ones_of_each_prompt() -> None:
    expected = [(i, j) for i in range(14) for j in range(14) if PROMPT[i] == PROMPT[j] and SCORES[i] > SCORES[j]]
    assert kept("all") == expected
    assert len(expected) == 2 + 5 + 0 + 10


def test_the_best_answers_against_the_rest() -> None:
    assert kept("best") == [(0, 2), (1, 2), (4, 3), (4, 5), (4, 6), (11, 9), (11, 10), (11, 12), (11, 13)]


def test_the_best_against_the_worst() -> None:
    assert kept("best_worst") == [(0, 2), (1, 2), (4, 3), (11, 9)]


def test_neighbors_are_next_to_each_other_in_score() -> None:
    expected = [(0, 2), (1, 2), (4, 5), (4, 6), (5, 3), (6, 3), (10, 9), (11, 12), (12, 13), (13, 10)]
    assert kept("neighbors") == expected


def test_drawn_pairs_are_some_of_all_the_same_with_one_seed() -> None:
    drawn = kept(3, torch.Generator().manual_seed(5))
    assert drawn == kept(3, torch.Generator().manual_seed(5))
    assert drawn == sorted(set(drawn))
    assert set(drawn) <= set(kept("all"))
    counts = torch.tensor([PROMPT[i] for i, _ in drawn]).bincount(minlength=4).tolist()
    assert counts == [2, 3, 0, 3]
    assert {tuple(kept(3, torch.Generator().manual_seed(seed))) for seed in range(20)} != {tuple(drawn)}


def test_every_pair_is_drawn_about_equally_often() -> None:
    scores, prompt = torch.tensor([3.0, 2.0, 1.0, 0.0]), torch.zeros(4, dtype=torch.long)
    generator, counts = torch.Generator().manual_seed(0), torch.zeros(4, 4)
    for _ in range(240):
        better, worse = ordered_pairs(scores, prompt, 1, generator)
        counts[better, worse] += 1
    assert counts.sum() == 240
    assert counts.triu(1).count_nonzero() == 6
    assert counts.max() < 70


@pytest.mark.parametrize("prompts", [[0], [3, 1], [2, 0, 3], [1, 2]])
def test_with_a_generator_each_a_prompt_draws_the_same_pairs_beside_any_others(prompts: list[int]) -> None:
    def drawn(chosen: list[int]) -> list[list[tuple[float, float]]]:
        """By prompt: the scores of the drawn pairs."""
        scores = [SCORES[prompt == PROMPT] for prompt in chosen]
        place = torch.arange(len(chosen)).repeat_interleave(torch.tensor([len(each) for each in scores]))
        flat = torch.cat(scores)
        generators = [torch.Generator().manual_seed(40 + prompt) for prompt in chosen]
        better, worse = ordered_pairs(flat, place, 2, generators)
        pairs = [*zip(flat[better].tolist(), flat[worse].tolist(), strict=True)]
        return [
            [pair for pair, at in zip(pairs, place[better].tolist(), strict=True) if at == one]
            for one in range(len(chosen))
        ]

    alone = [drawn([prompt])[0] for prompt in prompts]
    assert drawn(prompts) == alone
    assert [len(pairs) for pairs in alone] == [{0: 2, 1: 2, 2: 0, 3: 2}[prompt] for prompt in prompts]


def test_a_prompt_without_pairs_may_come_last_and_generators_must_match_the_prompts() -> None:
    scores, prompt = torch.tensor([2.0, 1.0, 3.0, 3.0]), torch.tensor([0, 0, 1, 1])
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2, 3)]
    assert [each.tolist() for each in ordered_pairs(scores, prompt, 1, generators[:2])] == [[0], [1]]
    assert [each.tolist() for each in ordered_pairs(scores[:0], prompt[:0], 1, [])] == [[], []]
    with pytest.raises(ValueError, match=r"zip\(\) argument 2 is shorter"):
        ordered_pairs(scores[[0, 1, 0, 1]], prompt, 1, generators[:1])


def test_a_draw_needs_a_generator() -> None:
    with pytest.raises(ValueError, match=r"Drawing 2 pairs per prompt needs a torch\.Generator"):
        kept(2)


@pytest.mark.parametrize("which", ["all", "best", "best_worst", "neighbors", 3])
def test_no_answers_make_no_pairs(which: ListPairs) -> None:
    better, worse = ordered_pairs(torch.zeros(0), torch.zeros(0, dtype=torch.long), which, torch.Generator())
    assert (better.numel(), worse.numel()) == (0, 0)


def test_pairs_hold_scores_margins_and_columns_of_their_prompt() -> None:
    lists = make_lists(SMOOTH_PROMPTS[:2])
    lists = Lists(
        lists.answers, lists.prompt, lists.scores, {"price": torch.tensor([3.0, 4.0])}, training=False, rank=2
    )
    pairs, weights = pairs_of(lists)
    assert isinstance(pairs, Pairs)
    assert (pairs.training, pairs.rank) == (False, 2)
    assert pairs.columns["score_chosen"].tolist() == [0.8, 0.7, 0.7]
    assert pairs.columns["score_rejected"].tolist() == [0.6, 0.4, 0.4]
    torch.testing.assert_close(pairs.columns["margin"], torch.tensor([0.2, 0.3, 0.3], dtype=torch.float64))
    assert pairs.columns["price"].tolist() == [3, 4, 4]
    assert weights.tolist() == [1, 0.5, 0.5]
    assert pairs_of(lists, reduction="sum")[1].tolist() == [1, 1, 1]
    for side in (pairs.chosen, pairs.rejected):
        assert side.token_logps.shape == (3, 11)
        torch.testing.assert_close(side.token_logps.sum(1), side.logps)


ON_LISTS = [v for v in list_losses(reads="pairs") if not variant_problems(v, "scores") and v.independent_pairs]


@pytest.mark.parametrize("variant", ON_LISTS, ids=lambda variant: variant.name)
def test_a_prompt_has_the_mean_of_its_pairs_whatever_their_number_and_order(variant: LossVariant) -> None:
    hyper = hypers_of(variant)[0]
    hyper = {p.name: hyper.get(p.name, p.default) for p in variant.hyperparameters}
    mixture = LossMixture((Term(variant, 1.0, hyper, "x", variant.make()),))
    for which in ("all", "neighbors"):
        lists = make_lists(SMOOTH_PROMPTS)
        loss, _ = mixture.on_lists(lists, which)
        assert isinstance(loss, torch.Tensor)
        slope = slopes(loss, lists)
        alone = [make_lists([permuted(prompt, range(len(prompt["pi"]))[::-1])]) for prompt in SMOOTH_PROMPTS]
        plain = [variant(pairs_of(prompt, which)[0], **hyper).mean() for prompt in alone]
        torch.testing.assert_close(loss, sum(plain) / 4, rtol=1e-11, atol=1e-12)
        expected = [slopes(value / 4, prompt).flip(0) for value, prompt in zip(plain, alone, strict=True)]
        torch.testing.assert_close(slope, torch.cat(expected), rtol=1e-10, atol=1e-12)


def test_most_losses_of_pairs_train_on_lists() -> None:
    names = {variant.name for variant in ON_LISTS}
    assert len(names) > 45
    assert {"sigmoid", "ipo", "dpop", "margin", "rpo_sq", "tdpo2", "simpo", "orpo", "rainbowpo"} <= names
    assert not {"aot", "beta_dpo", "sppo", "qrpo", "tis_dpo", "kto_pair"} & names


def test_a_prompt_without_pairs_has_the_value_zero_and_no_gradient() -> None:
    lists = make_lists([{**SMOOTH_PROMPTS[1], "u": [2.0, 2.0, 2.0]}, SMOOTH_PROMPTS[0]])
    paired = pair_lists(lists)
    values = paired.by_prompt(get_loss("sigmoid")(paired.pairs, beta=0.1))
    assert values[0].item() == 0
    assert slopes(values, lists)[:3].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("text", "choice"), [("all", "all"), ("best_worst", "best_worst"), ("3", 3), (1, 1), (2**31 - 1, 2**31 - 1)]
)
def test_a_choice_is_read_from_text(text: object, choice: ListPairs) -> None:
    assert parse_list_pairs(text) == choice


@pytest.mark.parametrize("text", ["0", "most", "-1", 0, True, 1.5, "", None, 2**31, str(2**63), 2**64, "9" * 5000])
def test_what_is_no_choice_is_refused_with_the_choices(text: object) -> None:
    with pytest.raises(ValueError, match=r"^list_pairs must be one of all, best, best_worst, neighbors, or a number"):
        parse_list_pairs(text)
