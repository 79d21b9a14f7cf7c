"""Order and agreement of rewards of several completions, and the layouts that they are read from."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from tests.support.scored import side
from trl_dpo_ext.data.lists.agreement import PairCounts, best_first, top_credit
from trl_dpo_ext.data.lists.groups import Groups
from trl_dpo_ext.data.lists.reading import read_completions
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.scoring.ranking.groups import GroupScores, ranking_columns, ranking_summary

NAN = math.nan


class TestAgreement:
    def test_ties_are_ordered_by_index_and_missing_rewards_come_last(self) -> None:
        assert best_first(np.array([1.0, NAN, 2.0, 1.0, NAN, -3.0])) == [2, 0, 3, 5, 1, 4]

    @pytest.mark.parametrize(
        ("rewards", "best", "credit"),
        [
            ([3, 1, 2], [1, 0, 0], 1.0),
            ([1, 3, 2], [1, 0, 0], 0.0),
            ([2, 2, 1, 2], [1, 0, 0, 0], 1 / 3),
            ([2, 2, 1, 2], [1, 1, 0, 0], 2 / 3),
            ([1, 2, 3], [0, 1, 1], 1.0),
        ],
    )
    def test_completions_at_the_top_share_the_credit(self, rewards: Any, best: Any, credit: float) -> None:
        assert top_credit(np.array(rewards), np.array(best, bool)) == pytest.approx(credit)

    # scipy.stats.kendalltau(x, y).statistic of scipy 1.17.1
    @pytest.mark.parametrize(
        ("rewards", "scores", "tau"),
        [
            ([12, 2, 1, 12, 2], [1, 4, 7, 1, 0], -0.4714045207910316),
            ([1, 2, 3, 4], [1, 2, 3, 4], 1.0),
            ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
            ([0.5, 0.1, 0.1, 0.9, 0.3, 0.3], [2, 1, 1, 2, 2, 3], 0.5017452060042545),
            ([0.3, -1.2, 2.2, 0.3, 0.9, -0.4, 1.7], [3, 1, 4, 1, 5, 2, 6], 0.6499999999999999),
            ([1, 1, 1], [1, 2, 3], None),
            ([1, 2], [3, 3], None),
            ([1], [3], None),
        ],
    )
    def test_tau_b(self, rewards: Any, scores: Any, tau: float | None) -> None:
        found = PairCounts.of(np.array(rewards, float), np.array(scores, float)).tau_b
        assert found == (None if tau is None else pytest.approx(tau, rel=1e-12))

    def test_pairs_are_counted_once_each(self) -> None:
        generator = np.random.default_rng(0)
        rewards, scores = generator.integers(0, 40, (2, 1500)).astype(float)
        counts = {"concordant": 0, "discordant": 0, "reward_ties": 0, "score_ties": 0}
        for one, other in itertools.combinations(range(150), 2):  # the naive form, on a part
            by = [np.sign(each[one] - each[other]) for each in (rewards, scores)]
            if by[0] and by[1]:
                counts["concordant" if by[0] == by[1] else "discordant"] += 1
            elif by[1]:
                counts["reward_ties"] += 1
            elif by[0]:
                counts["score_ties"] += 1
        assert vars(PairCounts.of(rewards[:150], scores[:150])) == counts
        whole = PairCounts.of(rewards, scores)  # more than one block of rows
        both = sum(
            int(((rewards[at] == rewards[at + 1 :]) & (scores[at] == scores[at + 1 :])).sum()) for at in range(1500)
        )
        assert sum(vars(whole).values()) + both == 1500 * 1499 // 2


def _scored(rewards: list[list[float]], scores: list[list[float]], places: Any = None) -> GroupScores:
    flat = np.array([each for values in rewards for each in values], np.float64)
    bounds = np.cumsum([0, *map(len, rewards)])
    given = np.array([each for values in scores for each in values], np.float64)
    groups = Groups(bounds, given, np.arange(len(flat)) if places is None else np.array(places), places is None)
    return GroupScores(groups, side(flat.tolist(), [0.0] * len(flat), [1] * len(flat)), flat, None)


class TestSummary:
    def test_prompts_count_alike_for_top_and_tau_and_pairs_count_alike_for_accuracy(self) -> None:
        found = ranking_summary(_scored([[3, 2, 1], [1, 2], [5, 5, 0, 0]], [[3, 2, 1], [2, 1], [2, 1, 1, 0]]))
        assert found["top1"]["accuracy"] == pytest.approx((1 + 0 + 0.5) / 3)
        assert found["tau_b"] == {"mean": pytest.approx((1 - 1 + 3 / math.sqrt(20)) / 3), "n": 3}
        assert found["pairs"] == {"accuracy": pytest.approx((3 + 0 + 3 + 2 / 2) / 9), "n": 9}
        assert (found["prompts"], found["completions"], found["per_prompt"]) == (3, 9, {"min": 2, "max": 4})

    def test_what_has_no_reward_or_no_score_or_no_order_does_not_count(self) -> None:
        found = ranking_summary(
            _scored(
                [[1], [2, 1], [NAN, 1, 2], [1, 2], [2, 1, 9], []],
                [[1], [1, 1], [9, 2, 1], [NAN, NAN], [2, 1, NAN], []],
            )
        )
        assert found["compared"] == found["top1"]["n"] == found["tau_b"]["n"] == found["pairs"]["n"] == 2
        assert (found["top1"]["accuracy"], found["pairs"]["accuracy"], found["unscored"]) == (0.5, 0.5, 1)

    def test_nothing_to_compare_is_no_agreement(self) -> None:
        found = ranking_summary(_scored([[1], [2, 1]], [[NAN], [NAN, NAN]]))
        assert (found["top1"]["accuracy"], found["top1"]["interval"], found["pairs"]["accuracy"]) == (None, None, None)
        assert ranking_summary(_scored([], []))["per_prompt"] is None

    def test_equal_rewards_have_no_tau(self) -> None:
        found = ranking_summary(_scored([[1, 1]], [[1, 2]]))
        assert (found["tau_b"], found["top1"]["accuracy"]) == ({"mean": None, "n": 0}, 0.5)


def _plain(scored: GroupScores) -> dict[str, list[Any]]:
    return {name: column.to_pylist() for name, column in ranking_columns(scored).items()}


class TestColumns:
    def test_rows_with_lists_get_rewards_and_order(self) -> None:
        columns = _plain(_scored([[1, NAN, 3], [], [2]], [[NAN] * 3, [], [NAN]]))
        assert columns == {"dpo_rewards": [[1.0, None, 3.0], [], [2.0]], "dpo_order": [[2, 0, 1], [], [0]]}

    def test_rows_with_one_completion_get_their_reward_and_rank_wherever_they_stand(self) -> None:
        columns = _plain(_scored([[1, 2], [5, NAN]], [[NAN] * 2] * 2, places=[0, 3, 2, 1]))
        assert columns == {"dpo_reward": [1.0, None, 5.0, 2.0], "dpo_rank": [1, None, 0, 0]}


def _read(rows: list[dict[str, Any]]) -> Any:
    return read_completions(Dataset.from_list(rows))


class TestLayouts:
    user, yes, no = ({"role": role, "content": text} for role, text in (
        ("user", "say"), ("assistant", "yes"), ("assistant", "no"),
    ))  # fmt: skip

    def test_lists_of_texts(self) -> None:
        found = _read([{"prompt": "a", "completions": ["x", "y"]}, {"prompt": "b", "completions": ["z"]}])
        assert (found.prompts, found.texts, found.groups.bounds.tolist()) == (["a", "b"], ["x", "y", "z"], [0, 2, 3])
        assert np.isnan(found.groups.scores).all()
        assert found.groups.in_lists

    def test_lists_of_messages(self) -> None:
        found = _read([{"prompt": [self.user], "completions": [[self.yes], [self.no]]}])
        assert (found.prompts, found.texts) == ([[self.user]], [[self.yes], [self.no]])
        assert _read([{"prompt": [self.user], "completions": [self.yes, self.no]}]).texts == [[self.yes], [self.no]]

    @pytest.mark.parametrize(
        ("beside", "scores"),
        [
            ({"scores": [1.0, 2.0]}, [1, 2]),
            ({"rewards": [1, 2]}, [1, 2]),
            ({"ranks": [0, 1]}, [0, -1]),
            ({"rank": [1, 1]}, [-1, -1]),
            ({"score": [None, 2.0]}, [NAN, 2]),
            ({"scores": [3.0, 1.0], "ranks": [1, 2]}, [3, 1]),
            ({"scores": [3.0, None], "ranks": [1, 2]}, [-1, -2]),
            ({"scores": None, "ranks": [1, 2]}, [-1, -2]),
        ],
    )
    def test_scores_beside_completions(self, beside: dict[str, Any], scores: list[float]) -> None:
        found = _read([{"prompt": "a", "completions": ["x", "y"], **beside}])
        np.testing.assert_array_equal(found.groups.scores, scores)

    def test_scores_inside_completions(self) -> None:
        items = [{"completion": "x", "rank": 1, "reward": None}, {"completion": "y", "rank": 0, "reward": None}]
        found = _read([{"prompt": "a", "completions": items}])
        assert (found.texts, found.groups.scores.tolist()) == (["x", "y"], [-1, 0])
        messages = [{"completion": [self.no], "reward": 0.1}, {"completion": [self.yes], "reward": 0.2}]
        found = _read([{"prompt": "a", "completions": messages}])
        assert (found.texts, found.groups.scores.tolist()) == ([[self.no], [self.yes]], [0.1, 0.2])

    def test_several_rows_of_a_prompt_belong_together_wherever_they_stand(self) -> None:
        rows = [("a", "x", 3), ("b", "y", 1), ("a", "z", 2)]
        found = _read([{"prompt": p, "completion": c, "score": s} for p, c, s in rows])
        assert (found.prompts, found.texts) == (["a", "b"], ["x", "z", "y"])
        assert (found.groups.scores.tolist(), found.groups.places.tolist()) == ([3, 2, 1], [0, 2, 1])
        assert not found.groups.in_lists

    def test_right_and_wrong_answers(self) -> None:
        found = _read([{"prompt": "a", "chosen": ["x", "y"], "rejected": ["z"], "num_correct": 2}])
        assert (found.texts, found.groups.scores.tolist()) == (["x", "y", "z"], [1, 1, 0])

    @pytest.mark.parametrize(
        ("row", "words"),
        [
            ({"prompt": "a", "chosen": "x", "rejected": "y"}, "--rank needs the column 'completions'.*prompt, chosen"),
            ({"prompt": None, "completions": ["x"]}, "there is no prompt"),
            ({"completions": ["x"]}, "there is no prompt"),
            ({"prompt": "a", "completions": "x"}, "completions is not a list"),
            ({"prompt": "a", "completions": [["x"]]}, "neither a text nor messages"),
            ({"prompt": "a", "completions": ["x", None]}, "neither a text nor messages"),
            ({"prompt": "a", "completions": ["x", "y"], "scores": [1.0]}, "scores does not have one value for each"),
            (
                {"prompt": "a", "completions": ["x", "y"], "ranks": ["first", "second"]},
                "ranks is not a number.*'first'",
            ),
            ({"prompt": "a", "completions": ["x", "y"], "ranks": [True, False]}, "ranks is not a number"),
            ({"prompt": "a", "completions": ["x", "y"], "ranks": [1.0, math.inf]}, "ranks is not finite"),
            ({"prompt": "a", "completions": ["x", "y"], "ranks": [1, 2], "scores": [1, 2]}, "order .* differently"),
            ({"prompt": "a", "completion": "x", "rank": "best"}, "rank is not a number"),
        ],
    )
    def test_rows_that_do_not_fit_are_named(self, row: dict[str, Any], words: str) -> None:
        with pytest.raises(InputError, match=words):
            _read([row])

    def test_ranks_and_scores_of_several_rows_may_not_contradict_one_another(self) -> None:
        rows = [{"prompt": "a", "completion": str(at), "rank": at, "score": float(at)} for at in range(2)]
        with pytest.raises(InputError, match="order the completions differently"):
            _read(rows)
