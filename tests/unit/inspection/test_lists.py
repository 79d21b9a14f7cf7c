"""Every completion of a list is inspected: counted once, compared with every other that the list orders."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets

from tests.support import runs, tiny
from tests.support.lists import expanded, lists
from trl_dpo_ext import InputError, inspect_preferences
from trl_dpo_ext.forward.packing import pack
from trl_dpo_ext.inspection.result import write_rows

LONG = "well let me think about that it is a very good question"


def one(*completions: str, prompt: str = "say ", **columns: Any) -> dict[str, Any]:
    """A list in which a completion is better than those behind it."""
    scores = [float(len(completions) - at) for at in range(len(completions))]
    return {"prompt": prompt, "completions": [*completions], "scores": scores, **columns}


PLAIN = one("yes it is", "no", "paris is", "four legs", prompt="what ")
FINDINGS = {
    # the finding: lists that have it in a completion that is neither the best nor the worst one
    "empty_answer": (one("yes it is", " ", "four", "no"), {}),
    "near_identical": (one("yes", f"{LONG} yes", f"{LONG} no", "four"), {}),
    "identical_after_truncation": (one("no", "yes it blue", "yes it four", "four"), {"max_length": 3}),
    "answer_cut": (one("yes", LONG, "paris", "no"), {"max_length": 8}),
    "eos_cut": (one("yes", LONG, "paris", "no"), {"max_length": 8}),
    "double_eos": (one("yes it is", "no <eos> ", "four", "what"), {}),
    "special_token_in_text": (one("yes it is", "no <eos> four", "four", "what"), {}),
    "one_token_answer": (one("yes it is", "no", "four legs", "what is"), {}),
    "unicode": (one("yes it is", "no\N{REPLACEMENT CHARACTER}", "four legs", "what is"), {}),
    "script_differs": (
        one("yes it is", "\N{CYRILLIC SMALL LETTER BE}\N{CYRILLIC SMALL LETTER EN}" * 9, "four legs", "what is"),
        {},
    ),
}  # fmt: skip


def inspect(rows: Any, folder: Any, test: Any = None, **settings: Any) -> Any:
    data = {"train": rows if isinstance(rows, Dataset) else Dataset.from_list(rows)}
    data |= {} if test is None else {"test": Dataset.from_list(test)}
    return inspect_preferences(data, tiny.tokenizer(), runs.config(folder, **settings))


def found(inspected: Any, split: str = "train") -> dict[str, Any]:
    return {finding.name: finding for finding in inspected.found[split]}


def test_completions_without_a_rank_are_told_as_training_tells_them(tmp_path: Any) -> None:
    row = {"prompt": "say ", "completions": ["yes it is", "no", "four legs"], "ranks": [None, 2, 3]}
    told = found(inspect([row], tmp_path))["answers_unscored"].sentence
    assert told == "completions without a usable rank are left out: 1 in 1 of 1 lists, first in row 0"
    wrong = found(inspect([row, {**row, "ranks": [None, 3, 4]}], tmp_path))
    assert any("the ranks are no order" in finding.sentence for finding in wrong.values())


@pytest.mark.parametrize("size", [3.4e38, 1e300])
def test_scores_of_any_size_are_inspected(tmp_path: Any, size: float, recwarn: Any) -> None:
    pairs = {"prompt": "say ", "chosen": "yes it is", "rejected": "no", "score_chosen": size, "score_rejected": -size}
    other = {**pairs, "chosen": "paris", "rejected": "four legs", "score_chosen": 1.0, "score_rejected": 0.0}
    rows = [pairs, other] if size > 1e39 else [one("yes it is", "no", scores=[size, -size]), PLAIN]
    block = inspect(rows, tmp_path).data["splits"]["train"]["length_bias"]["scores"]
    assert all(value is not None for value in block.values())
    assert not [each for each in recwarn if issubclass(each.category, RuntimeWarning)]


@pytest.mark.parametrize(
    ("name", "row", "settings"),
    [
        pytest.param(name, *case, id=name, marks=[pytest.mark.slow] if at > 1 else [])
        for at, (name, case) in enumerate(FINDINGS.items())
    ],
)
def test_a_completion_between_the_best_and_the_worst_has_a_finding(tmp_path, name, row, settings) -> None:
    many = [{**PLAIN, "prompt": f"{word} "} for word in ("what", "is", "the")]
    data = [*many, row] if name != "one_token_answer" else [one("yes it", "no four", prompt="what "), row]
    finding = found(inspect(data, tmp_path, **settings))[name]
    assert (finding.unit, finding.rows[-1], finding.total) == ("lists", len(data) - 1, len(data))
    assert finding.count == 1
    assert f"1 of {len(data)} lists" in finding.sentence or "0 best (0 %) and 1 other answers" in finding.sentence
    without = {**row, **{key: [row[key][0], row[key][-1]] for key in ("completions", "scores")}}
    assert name not in found(inspect([*data[:-1], without], tmp_path, **settings))


def test_a_copy_is_a_list_with_the_same_completions(tmp_path) -> None:
    row = one("yes it is", "no", "paris", "four legs")
    order = [2, 0, 3, 1]
    shuffled = {**row, **{key: [row[key][at] for at in order] for key in ("completions", "scores")}}
    other = one("yes it is", "what", "paris", "four legs")  # the same best and worst one
    finding = found(inspect([row, other, shuffled], tmp_path))["duplicate_row"]
    assert (finding.rows, finding.total) == ([2], 3)
    assert "1 of 3 lists are copies of lists before them" in finding.sentence


def test_lists_contradict_each_other_in_any_pair(tmp_path) -> None:
    first, second = one("yes it is", "no", "paris", "four legs"), one("what is", "paris", "no", "blue sky")
    assert found(inspect([PLAIN, first, second], tmp_path))["contradictory"].rows == [1, 2]


def test_every_completion_is_counted_once(tmp_path) -> None:
    data = concatenate_datasets([lists((4, 3, 2, 5)), lists((1,))])
    inspected = inspect(data, tmp_path)
    block, notes = inspected.data["splits"]["train"], found(inspected)
    assert notes["lists_as_pairs"].count == 4
    assert (notes["lists_left_out"].count, notes["lists_left_out"].rows) == (1, [4])
    counts = {"loaded": 5, "lists": 5, "kept": 4, "dropped": 1, "completions": 14, "pairs": 10}
    assert {name: block["rows"][name] for name in counts} == counts
    token = tiny.tokenizer()
    answers = [[len(token(text)["input_ids"]) + 1 for text in row["completions"]] for row in lists((4, 3, 2, 5))]
    best = [[score == max(row["scores"]) for score in row["scores"]] for row in lists((4, 3, 2, 5))]
    lengths = block["lengths"]
    for side, wanted in (("chosen", True), ("rejected", False)):
        mine = [
            n for row, good in zip(answers, best, strict=True) for n, g in zip(row, good, strict=True) if g == wanted
        ]
        assert lengths[side]["before"]["n"] == len(mine)
        assert lengths[side]["before"]["mean"] == pytest.approx(np.mean(mine))
    assert sum(block["tokens"]["scored"].values()) == sum(map(sum, answers))
    assert block["length_bias"]["before"]["n"] == len(expanded(lists((4, 3, 2, 5))))


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"max_length": 7},
        pytest.param({"max_length": 7, "truncation_mode": "keep_end"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_run_feeds_what_was_shown_of_lists(tmp_path, settings) -> None:
    inspected = inspect(lists((4, 3, 2, 5)), tmp_path, **settings)
    trainer = runs.trainer(tmp_path, train_dataset=lists((4, 3, 2, 5)), loss_type="simpo", **settings)
    batch = trainer.data_collator([*trainer.train_dataset])
    ids, attended = (batch[name][batch["list_answers"]].numpy() for name in ("input_ids", "attention_mask"))
    fed = [tuple(row[mask == 1].tolist()) for row, mask in zip(ids, attended, strict=True)]
    shown = set()
    for row in inspected.rows([0, 1, 2, 3][-len(trainer.train_dataset) :]):
        for side in ("chosen", "rejected"):
            prompt, answer = (slice(*row["kept"][name]) for name in (f"prompt_{side}", side))
            shown.add((row["row"], *row["prompt_ids"][prompt], *row[f"{side}_ids"][answer]))
    numbers = np.repeat(batch["list_numbers"].numpy(), batch["list_sizes"].numpy()).tolist()
    assert shown == {(number, *each) for number, each in zip(numbers, fed, strict=True)}
    tokens = inspected.data["splits"]["train"]["tokens"]["fed"]
    assert tokens["plain"] == sum(map(len, fed))
    parts = [[np.array(each) for n, each in zip(numbers, fed, strict=True) if n == number] for number in set(numbers)]
    assert tokens["share_prompt"] == sum(pack(part, [0] * len(part)).input_ids.size for part in parts)


def test_a_list_is_shown_by_its_best_completion_beside_each_other(tmp_path) -> None:
    inspected, token = inspect(lists((4, 3, 2, 5)), tmp_path), tiny.tokenizer()
    shown = [[token.decode(row[f"{side}_ids"]) for side in ("chosen", "rejected")] for row in inspected.rows([1])]
    assert shown == [["yes no <eos>", "well let me think about that <eos>"], ["yes no <eos>", "five <eos>"]]
    assert len(inspected.data["examples"]) <= 3
    write_rows(inspected, tmp_path / "rows.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == [0] * 3 + [1] * 2 + [2] + [3] * 4


def test_splits_are_compared_by_whole_lists(tmp_path) -> None:
    same, other = one("yes it is", "no", "paris"), one("yes it is", "what", "paris")
    inspected = inspect([same, PLAIN], tmp_path, test=[same, other, {**PLAIN, "prompt": "blue "}])
    overlap = inspected.data["overlap"]
    assert {name: overlap[name]["exact"] for name in ("prompts", "prompt_chosen", "rows")} == {
        "prompts": 2, "prompt_chosen": 2, "rows": 1,
    }  # fmt: skip
    assert found(inspected, "test")["train_test_overlap"].rows == [0, 1]


def test_one_row_for_each_completion_is_counted_in_lists(tmp_path) -> None:
    rows = [
        {"prompt": f"{word} ", "response": text, "helpfulness": score, "source": word}
        for word in ("say", "what")
        for score, text in enumerate(("no", "paris is", LONG))
    ]
    data = inspect(rows, tmp_path).data["splits"]["train"]
    assert {name: data["rows"][name] for name in ("loaded", "lists", "kept", "dropped")} == {
        "loaded": 6, "lists": 2, "kept": 2, "dropped": 0,
    }  # fmt: skip
    assert data["layout"] == "lists, texts"
    assert data["length_bias"]["scores"]["n"] == 6
    inspected = inspect_preferences(
        Dataset.from_list(rows), tiny.tokenizer(), runs.config(tmp_path), subset_column="source"
    )
    assert {name: each["before"]["n"] for name, each in inspected.data["splits"]["train"]["length_bias"]["subsets"].items()} == {
        "say": 3, "what": 3,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("conversational", [False, True])
def test_roles_of_every_completion_are_counted(tmp_path, conversational: bool) -> None:
    roles = inspect(lists((4, 3), conversational), tmp_path).data["splits"]["train"]["roles"]
    assert (roles and roles["sequences"]) == ([["user | assistant | assistant", 5]] if conversational else None)


def test_lists_of_equal_tokens_are_left_out_and_told_by_reason(tmp_path) -> None:
    equal, cut = one("yes it", "yes  it"), one("yes it is", "yes it no", "yes it")
    filled = one("yes", "no", prompt="say yes no four legs ")
    inspected = inspect([equal, cut, filled, one("no", "four")], tmp_path, max_length=3)
    finding = found(inspected)["dropped"]
    assert (finding.rows, finding.total, finding.unit) == ([0, 1, 2], 4, "lists")
    assert "in 1 the prompt alone fills max_length=3" in finding.sentence
    assert "in 1 all completions are identical after truncation" in finding.sentence
    assert "in 1 all completions are different texts and the same tokens" in finding.sentence
    with pytest.raises(InputError, match="Row 0 of the train split was dropped: nothing of it can be learned"):
        inspected.rows([0])
    (error,) = [each for each in inspect([equal] * 2, tmp_path).found["train"] if each.level == "error"]
    assert error.sentence.startswith("all 2 lists have nothing to learn")
