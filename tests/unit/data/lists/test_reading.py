"""Lists are read from every layout, and what is wrong with them is said at once, with counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from tests.support import runs, tiny
from trl_dpo_ext.data.findings import EVERY_ROW
from trl_dpo_ext.data.lists.choice import holds_lists
from trl_dpo_ext.data.lists.pair_rows import EQUAL_CUT, LIST_ROW, LIST_SCORES, PROMPT_FILLS, gathered
from trl_dpo_ext.data.lists.reading import ListData, read_lists
from trl_dpo_ext.errors import InputError

NAN = float("nan")


def read(tmp_path: Any, rows: list[dict[str, Any]], **settings: Any) -> ListData:
    return read_lists(Dataset.from_list(rows), "train_dataset", runs.config(tmp_path, **settings), EVERY_ROW, ())


def found(data: ListData) -> dict[int, list[tuple[Any, float]]]:
    """The completions and scores of each list, by its row."""
    lists: dict[int, list[tuple[Any, float]]] = {}
    for row in data.rows:
        for side, score in zip(("chosen", "rejected"), row[LIST_SCORES], strict=True):
            if not np.isnan(score):
                lists.setdefault(row[LIST_ROW], []).append((row[side], score))
    return lists


A, B, C = "a x", "b", "c c"
LAYOUTS = {
    "scores": ([{"prompt": "p", "completions": [A, B, C], "scores": [1, 3, 2]}], [1, 3, 2], "scores"),
    "ranks": ([{"prompt": "p", "completions": [A, B, C], "ranks": [3, 1, 1]}], [-3, -1, -1], "ranks"),
    "ranks from 0": ([{"prompt": "p", "completions": [A, B, C], "ranks": [2, 0, 1]}], [-2, 0, -1], "ranks"),
    "best": ([{"prompt": "p", "completions": [A, B, C], "best": 1}], [0, 1, 0], "best"),
    "UltraFeedback": (
        [{"instruction": "p", "completions": [
            {"response": text, "overall_score": score, "model": "m"} for text, score in ((A, 1.0), (B, 8.0), (C, 2.5))
        ]}],
        [1, 8, 2.5], "scores",
    ),
    "Nectar": (
        [{"prompt": "p", "answers": [{"answer": text, "rank": rank} for text, rank in ((A, 3.0), (B, 1.0), (C, 2.0))]}],
        [-3, -1, -2], "ranks",
    ),
    "HelpSteer": (
        [{"prompt": "p", "response": text, "helpfulness": score, "verbosity": 1} for text, score in ((A, 0), (B, 4), (C, 2))],
        [0, 4, 2], "scores",
    ),
    "one chosen": ([{"prompt": "p", "chosen": A, "rejected": [B, C]}], [1, 0, 0], "best"),
    "several chosen": ([{"prompt": "p", "chosen": [A, B], "rejected": [C]}], [1, 1, 0], "best"),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "scores", "order"), LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(tmp_path, rows, scores, order) -> None:
    assert holds_lists(Dataset.from_list(rows))
    data = read(tmp_path, rows)
    assert found(data) == {0: [*zip((A, B, C), scores, strict=True)]}
    assert (data.order, data.findings) == (order, [])


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "chosen": A, "rejected": B},
        {"prompt": "p", "chosen": A, "rejected": B, "completion": C, "score": 1.0},
        {"chosen": [{"role": "user", "content": "p"}], "rejected": [{"role": "user", "content": "p"}]},
        {"prompt": "p", "completion": A, "label": True},
        {"prompt": "p", "response": A},
    ],
)
def test_pairs_and_single_completions_are_no_lists(row) -> None:
    assert not holds_lists(Dataset.from_list([row]))


WRONG = {
    "length": ({"scores": [1.0]}, "scores does not have one value for each completion"),
    "text": ({"scores": ["x", "y"]}, "a value of scores is not a number"),
    "gap at the start": ({"ranks": [2, 3]}, "the ranks are no order"),
    "gap that no missing rank fills": (
        {"completions": [A, B, C], "ranks": [None, 3, 4]},
        "the ranks are no order.* wrong in 1 of 1 rows, first in row 0. Correct them",
    ),
    "no rank twice": ({"ranks": [None, 1]}, "1 with fewer than two different completions that have a rank"),
    "fraction": ({"ranks": [1.0, 1.5]}, "the ranks are no order"),
    "negative": ({"ranks": [-1, 1]}, "the ranks are no order"),
    "infinite": ({"ranks": [1.0, float("inf")]}, "a value of ranks is not finite"),
    "beyond": ({"best": 2}, "best is not the index of a completion"),
    "below": ({"best": -1}, "best is not the index of a completion"),
    "none": ({"best": None}, "best is not the index of a completion"),
    "empty": ({"completions": ["", B], "scores": [1.0, 2.0]}, "a completion is empty"),
    "nothing": ({}, "nothing orders the completions"),
    "two orders": ({"scores": [2.0, 1.0], "ranks": [1, 2]}, "ranks and scores|by ranks and scores"),
    "one only": ({"completions": [A], "scores": [1.0]}, "no list is left to train on. 1 with fewer than two"),
    "tied": ({"scores": [1.0, 1.0]}, "no list is left to train on. 1 with equal scores"),
    "tied in float32": ({"scores": [1.0, 1.0 + 1e-12]}, "1 with equal scores"),
    "unscored": ({"scores": [1.0, None]}, "no list is left"),
}


@pytest.mark.parametrize(("beside", "words"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_an_error_with_the_first_row(tmp_path, beside, words) -> None:
    with pytest.raises(InputError, match=words) as caught:
        read(tmp_path, [{"prompt": "p", "completions": [A, B], **beside}])
    assert all(problem.startswith("train_dataset") for problem in caught.value.problems)


def ranked(layout: str, ranks: list[Any]) -> list[dict[str, Any]]:
    texts = [A, B, C, "d"][: len(ranks)]
    if layout == "Nectar":
        return [{"prompt": "p", "answers": [{"answer": t, "rank": r} for t, r in zip(texts, ranks, strict=True)]}]
    if layout == "rows":
        return [{"prompt": "p", "completion": t, "rank": r} for t, r in zip(texts, ranks, strict=True)]
    return [{"prompt": "p", "completions": texts, "ranks": ranks}]


@pytest.mark.parametrize("layout", ["ranks", "Nectar", "rows"])
@pytest.mark.parametrize(
    ("ranks", "kept"),
    [
        ([None, 2, 3], [(B, -2), (C, -3)]),
        ([NAN, 2.0, 3.0], [(B, -2), (C, -3)]),  # as pandas holds it
        ([1, None, 3], [(A, -1), (C, -3)]),
        ([None, 1, 0], [(B, -1), (C, 0)]),
        ([4, None, 3, None], [(A, -4), (C, -3)]),
    ],
)
def test_completions_without_a_rank_are_left_out_and_the_others_keep_their_order(tmp_path, layout, ranks, kept) -> None:
    """As those without a score are; the first ranks may be theirs."""
    data = read(tmp_path, ranked(layout, ranks))
    assert found(data) == {0: kept}
    (told,) = data.findings
    missing = len(ranks) - len(kept)
    assert told.sentence.startswith(f"completions without a usable rank are left out: {missing} in 1 of 1 lists")


def test_all_problems_are_counted_together(tmp_path) -> None:
    rows = [
        {"prompt": "p", "completions": [A, B], "ranks": [2, 3]},
        {"prompt": "p", "completions": ["", B], "ranks": [1, 2]},
        {"prompt": "q", "completions": [C, ""], "ranks": [1, 2]},
    ]
    with pytest.raises(InputError) as caught:
        read(tmp_path, rows)
    empty, no_order = sorted(caught.value.problems)
    assert "a completion is empty; wrong in 2 of 3 rows, first in row 1." in empty
    assert "wrong in 1 of 3 rows, first in row 0." in no_order


@pytest.mark.parametrize("name", ["UltraFeedback", "Nectar", "HelpSteer", "best", "one chosen"])
def test_texts_of_lists_become_messages_if_asked(tmp_path, name) -> None:
    """They are tokenized as messages, by the chat template, and not end to end."""
    rows, _, _ = LAYOUTS[name]
    rows = [{**row, **{key: "say" for key in ("prompt", "instruction") if key in row}} for row in rows]
    run = runs.trainer(tmp_path, train_dataset=Dataset.from_list(rows), loss_type="top1", texts_to_messages=True)
    (row,), words = run.train_dataset, tiny.tokenizer()
    assert words.decode(row["prompt_ids"]) == "<user> say <assistant>"
    assert [len(ids) for ids in row["list_ids"]] == [len(text.split()) + 1 for text in (A, B, C)]
    assert {ids[-1] for ids in row["list_ids"]} == {words.eos_token_id}


def test_what_cannot_be_learned_is_left_out_and_said(tmp_path) -> None:
    rows = [
        {"prompt": "0", "completions": [A, B, C], "scores": [1.0, None, 2.0]},
        {"prompt": "1", "completions": [A, B], "scores": [1.0, 1.0]},
        {"prompt": "2", "completions": [A, B, A, C], "scores": [1.0, 2.0, 1.0, NAN]},
        {"prompt": "3", "completions": [A, B, A, C], "scores": [1.0, 2.0, 3.0, 4.0]},
        {"prompt": "4", "completions": [A], "scores": [1.0]},
    ]
    data = read(tmp_path, rows)
    assert found(data) == {0: [(A, 1), (C, 2)], 2: [(A, 1), (B, 2)], 3: [(B, 2), (C, 4)]}
    told = {finding.name: finding for finding in data.findings}
    assert {name: finding.rows for name, finding in told.items()} == {
        "lists_left_out": [1, 4],
        "answers_unscored": [0, 2],
        "answers_contradictory": [3],
        "answers_repeated": [2],
    }
    assert "2 of 5 lists have nothing to learn" in told["lists_left_out"].sentence
    assert "1 with equal scores" in told["lists_left_out"].sentence


def test_a_limit_keeps_the_best_and_the_worst_and_draws_the_others(tmp_path) -> None:
    completions = [f"answer {at}" for at in range(9)]
    scores = [4.0, 1.0, 5.0, 9.0, 2.0, 6.0, 0.0, 3.0, 5.0]
    rows = [{"prompt": str(row), "completions": completions, "scores": scores} for row in range(20)]
    lists = [*found(read(tmp_path, rows, max_completions=4, data_seed=1)).values()]
    kept = [[score for _, score in one] for one in lists]
    assert all(len(one) == 4 and max(one) == 9 and min(one) == 0 for one in kept)
    assert len({score for one in kept for score in one}) > 5
    assert lists == [*found(read(tmp_path, rows, max_completions=4, data_seed=1)).values()]
    assert lists != [*found(read(tmp_path, rows, max_completions=4, data_seed=2)).values()]
    assert {len(one) for one in found(read(tmp_path, rows, max_completions=2)).values()} == {2}


def pair(chosen: str, rejected: str, prompt: str = "p", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


D = "d"
GATHERED = {
    "one best": ([pair(A, B), pair(A, C)], [{A: -1, B: -2, C: -2}]),
    "a chain": ([pair(B, C), pair(A, B)], [{B: -2, C: -3, A: -1}]),
    "all pairs": ([pair(A, B), pair(A, C), pair(B, C)], [{A: -1, B: -2, C: -3}]),
    "two best": ([pair(A, C), pair(B, C)], [{A: -1, C: -2, B: -1}]),
    "not comparable": ([pair(A, B), pair(C, D)], [{A: -1, B: -2}, {C: -1, D: -2}]),
    "half a chain": ([pair(A, B), pair(B, C), pair(A, D)], [{A: -1, B: -2, D: -2}, {B: -1, C: -2}]),
    "apart": ([pair(A, B), pair(B, C, "q"), pair(A, C)], [{A: -1, B: -2, C: -2}, {B: -1, C: -2}]),
}


@pytest.mark.parametrize(("rows", "expected"), GATHERED.values(), ids=GATHERED)
def test_pairs_are_gathered_into_lists_that_order_nothing_more(tmp_path, rows, expected) -> None:
    data = read(tmp_path, rows, gather_lists=True)
    assert [dict(one) for one in found(data).values()] == expected
    assert data.order == "ranks"
    assert len(found(read(tmp_path, rows))) == len(rows)  # each by itself without the option


def test_pairs_that_contradict_each_other_are_left_out(tmp_path) -> None:
    data = read(tmp_path, [pair(A, B), pair(B, A), pair(A, C, "q")], gather_lists=True)
    assert [dict(one) for one in found(data).values()] == [{A: -1, C: -2}]
    assert [(finding.name, finding.rows) for finding in data.findings] == [("contradictory", [0, 1])]


def test_scores_of_pairs_order_a_list(tmp_path) -> None:
    rows = [
        pair(A, B, score_chosen=3.0, score_rejected=1.0),
        pair(C, A, score_chosen=5.0, score_rejected=3.0),
    ]
    data = read(tmp_path, rows, gather_lists=True)
    assert (found(data), data.order) == ({0: [(A, 3), (B, 1), (C, 5)]}, "scores")


def test_lists_survive_their_pair_rows(tmp_path) -> None:
    """Whatever the number of completions, tokenized rows give each completion once, with its score."""
    rows = [
        {"prompt": "p", "completions": [f"{at}" for at in range(size)], "scores": [float(at % 3) for at in range(size)]}
        for size in (2, 3, 4, 7)
    ]
    pairs = read(tmp_path, rows).rows
    assert len(pairs) == 1 + 2 + 2 + 4
    tokens = pairs.map(
        lambda row: {
            "prompt_ids": [100],
            "chosen_ids": [int(row["chosen"]), 9],
            "rejected_ids": [int(row["rejected"]), 9],
        }
    )
    whole = gathered(tokens, None, False, "train").kept
    assert [[ids[0] for ids in row["list_ids"]] for row in whole] == [[*range(size)] for size in (2, 3, 4, 7)]
    assert [row[LIST_SCORES] for row in whole] == [row["scores"] for row in rows]
    ends = [(row["chosen_ids"][0], row["rejected_ids"][0]) for row in whole]
    assert ends == [(1, 0), (2, 0), (2, 0), (2, 0)]
    texts = [(row["chosen"], row["rejected"]) for row in whole]
    assert texts == [(str(best), str(worst)) for best, worst in ends]


def test_truncation_leaves_out_lists_without_a_difference(tmp_path) -> None:
    scores = [[2.0, 1.0], [1.0, NAN]]
    tokens = Dataset.from_dict(
        {
            "prompt": ["p"] * 6, "chosen": ["c"] * 6, "rejected": ["r"] * 6,
            LIST_ROW: [0, 0, 1, 1, 2, 2], LIST_SCORES: scores * 3,
            "prompt_ids": [[1, 2]] * 4 + [[1, 2, 3, 4]] * 2,
            "chosen_ids": [[5, 6, 7], [5, 6, 9], [5, 6, 7], [5, 8], [5], [7]],
            "rejected_ids": [[5, 6, 8], [5], [5, 6, 8], [5], [6], [5]],
        }
    )  # fmt: skip
    found = [gathered(tokens, limit, keeps_end, "train") for limit, keeps_end in ((4, False), (5, False), (4, True))]
    assert [each.kept[LIST_ROW][:] for each in found] == [[1], [0, 1, 2], [0, 1, 2]]
    assert found[0].lost.tolist() == [EQUAL_CUT, 0, PROMPT_FILLS]
    assert found[0].whole[LIST_ROW][:] == [0, 1, 2]


def test_the_tiny_pairs_are_read_as_lists_of_two(tmp_path) -> None:
    data = read_lists(tiny.preferences(8), "eval_dataset", runs.config(tmp_path), EVERY_ROW, ())
    assert len(data.rows) == 8
    assert {*map(len, found(data).values())} == {2}
