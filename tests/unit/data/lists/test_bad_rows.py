"""Rows of lists that nothing can be learned from end in an error or a warning with counts, before training."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
from datasets import Dataset

from tests.support import runs, tiny
from trl_dpo_ext.data.columns import loss_columns
from trl_dpo_ext.data.findings import Finding
from trl_dpo_ext.data.prepare import checked_datasets
from trl_dpo_ext.errors import InputError

NAN = float("nan")
A, B, C = "yes it is", "no", "four legs"
GOOD = {"prompt": "say ", "completions": [A, B, C], "scores": [3.0, 1.0, 2.0]}


def construct(folder: Any, rows: list[dict[str, Any]], **settings: Any) -> tuple[Any, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = runs.trainer(folder, **{"train_dataset": Dataset.from_list(rows), "loss_type": "simpo", **settings})
    return run, [str(each.message) for each in caught if "dataset" in str(each.message)]


def checked(folder: Any, rows: list[dict[str, Any]]) -> list[Finding]:
    """What is found in rows before they are tokenized, with a `weight_column`."""
    args = runs.config(folder, weight_column="weight")
    found: list[Finding] = []
    columns = loss_columns(args, args.loss_mixture())
    checked_datasets(columns, args, tell=lambda _, each: found.append(each), train_dataset=Dataset.from_list(rows))
    return found


def in_layout(layout: str, *completions: str, prompt: str = "say ") -> list[dict[str, Any]]:
    """A list in a public layout, the first completion the best one."""
    scores = [float(len(completions) - at) for at in range(len(completions))]
    if layout == "UltraFeedback":
        items = [{"response": text, "overall_score": s} for text, s in zip(completions, scores, strict=True)]
        return [{"instruction": prompt, "completions": items}]
    if layout == "Nectar":
        items = [{"answer": text, "rank": float(at)} for at, text in enumerate(completions, 1)]
        return [{"prompt": prompt, "answers": items}]
    if layout == "HelpSteer":
        return [
            {"prompt": prompt, "response": text, "helpfulness": s} for text, s in zip(completions, scores, strict=True)
        ]
    if layout == "one chosen":
        return [{"prompt": prompt, "chosen": completions[0], "rejected": [*completions[1:]]}]
    if layout == "gathered":
        return [{"prompt": prompt, "chosen": completions[0], "rejected": text} for text in completions[1:]]
    return [{"prompt": prompt, "completions": [*completions], layout: scores if layout == "scores" else 0}]


PUBLIC = ["best", "UltraFeedback", "Nectar", "HelpSteer", "one chosen", "gathered"]
LAYOUTS = ["scores", *(pytest.param(layout, marks=pytest.mark.slow) for layout in PUBLIC)]
EQUAL = {
    "tokens": (("yes it", "yes  it", "yes   it"), {}, "in {} all completions are different texts and the same tokens"),
    "truncated": (
        ("yes it is", "yes it no", "yes it"),
        {"max_length": 3},
        "in {} all completions are identical after truncation to max_length=3",
    ),
    "filled": (("yes", "no", "four"), {"max_length": 1}, "in {} the prompt alone fills max_length=1"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("completions", "settings", "words"), EQUAL.values(), ids=EQUAL)
def test_lists_without_a_difference_stop_the_run(tmp_path, layout, completions, settings, words) -> None:
    rows = [*in_layout(layout, *completions), *in_layout(layout, *completions, prompt="what ")]
    with pytest.raises(InputError, match=r"train dataset: all 2 lists have nothing to learn") as caught:
        construct(tmp_path, rows, **settings, **({"gather_lists": True} if layout == "gathered" else {}))
    assert words.format(2) in str(caught.value)
    assert "Filter these rows" in str(caught.value) or "Raise max_length" in str(caught.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lists_without_a_difference_are_left_out_and_counted(tmp_path, layout) -> None:
    more = {"gather_lists": True} if layout == "gathered" else {}
    rows = [*in_layout(layout, "yes it is", "yes it no"), *in_layout(layout, A, B, "yes it no", prompt="what ")]
    run, told = construct(tmp_path, rows, max_length=3, **more)
    assert len(run.train_dataset) == 1
    (dropped,) = [each for each in told if "(ignore_findings: dropped)" in each]
    assert "1 of 2 lists have nothing to learn and are left out, first in row 0: in 1 all completions are" in dropped
    (same,) = [each for each in told if "(ignore_findings: identical_after_truncation)" in each]
    assert "a better and a worse completion are identical after truncation to max_length=3 in 1 of 1 lists" in same


@pytest.mark.parametrize("sizes", [2, 3, 4])
def test_wrong_weights_are_counted_in_lists(tmp_path, sizes) -> None:
    row = {"prompt": "say ", "completions": [A, B, C, "paris is"][:sizes], "scores": [4.0, 3.0, 2.0, 1.0][:sizes]}
    rows = [{**row, "weight": weight} for weight in (1.0, NAN, -1.0, NAN)]
    with pytest.raises(InputError) as caught:
        checked(tmp_path, rows)
    assert [each.partition("; ")[2] for each in caught.value.problems] == [
        "wrong in 2 of 4 rows, first in row 1.",
        "wrong in 1 of 4 rows, first in row 2.",
    ]
    (told,) = checked(tmp_path, [{**row, "weight": 0.0}] * 3)
    assert (told.name, told.count, told.total) == ("loss_column", 3, 3)


def test_doubts_and_templates_count_lists(tmp_path) -> None:
    """What is said of rows before and after tokenization counts a list once, and not the rows that hold it."""
    said = [[{"role": "assistant", "content": text}] for text in (A, B, C, "paris is", "blue sky")]
    row = {"prompt": [{"role": "user", "content": "say"}], "completions": said, "scores": [5.0, 4.0, 3.0, 2.0, 1.0]}
    users = [{**row, "completions": [[{**each[0], "role": "user"}] for each in said]}]
    _, told = construct(tmp_path, [row, *users])
    (doubt,) = [each for each in told if "(ignore_findings: last_turn)" in each]
    assert "in 1 of 2 rows, first in row 1" in doubt
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{% for", "{% if messages[-1].content == 'four legs' %}{{ raise_exception('no legs') }}{% endif %}{% for", 1
    )
    with pytest.raises(InputError, match="refuses 2 of 2 rows, first row 0: no legs"):
        construct(tmp_path, [row, {**row, "completions": said[2:] + said[:2]}], processing_class=tokenizer)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt": "p", "chosen": A, "rejected": B}, {"prompt": "p", "chosen": B, "rejected": A}], "2 of 2 rows"),
        ([{"prompt": "p", "chosen": A, "rejected": A}], "1 of 1 rows"),
    ],
)
def test_pairs_that_leave_no_list_say_why(tmp_path, rows, words) -> None:
    with pytest.raises(InputError, match=f"no list is left to train on: {words} are left out.* Decide which rows"):
        construct(tmp_path, rows, gather_lists=True)


@pytest.mark.parametrize(
    "row",
    [
        {**GOOD, "completions": [A, None, C]},
        {"prompt": "p", "chosen": A, "rejected": [B, None]},
        {"instruction": "p", "completions": [{"response": t, "overall_score": 1.0} for t in (A, None)]},
    ],
)
def test_missing_completions_are_counted(tmp_path, row) -> None:
    with pytest.raises(
        InputError,
        match=r"a completion is missing \(None\), neither a text nor messages; wrong in 2 of 2 rows.* Filter these",
    ):
        construct(tmp_path, [row, row])


@pytest.mark.parametrize("huge", [1e39, -1e39, 1e308, float("inf")])
@pytest.mark.parametrize("layout", ["completions", "UltraFeedback", "HelpSteer"])
def test_scores_that_are_infinite_in_batches_count_as_none(tmp_path, layout, huge) -> None:
    """Batches hold float32."""
    rows = [{**GOOD, "scores": [1.0, 2.0, huge]}] if layout == "completions" else in_layout(layout, A, B, C)
    if layout == "UltraFeedback":
        rows[0]["completions"][2]["overall_score"] = huge
    elif layout == "HelpSteer":
        rows[2]["helpfulness"] = huge
    rows = [{**row, "weight": 1.0} for row in rows]
    (told,) = [each for each in checked(tmp_path, rows) if each.name == "answers_unscored"]
    assert "completions without a usable score are left out: 1 in 1 of 1 lists" in told.sentence


SIZES = {
    "margin": {"loss_type": "margin"},
    "rpo_sq": {"loss_type": "rpo_sq"},
    "infonca": {"loss_type": "infonca", "infonca_tau": 1.0},
    "sppo_list": {"loss_type": ["sigmoid", "sppo_list"]},
}


@pytest.mark.parametrize("lowest", [-3.4028234663852886e38, -1e30])
@pytest.mark.parametrize("settings", SIZES.values(), ids=SIZES)
def test_scores_that_losses_cannot_compute_with_are_refused_with_all_else(tmp_path, settings, lowest) -> None:
    """A number that stands for no score is finite, and its difference from another one, or that squared, is not."""
    rows = [GOOD, {**GOOD, "scores": [3.0, lowest, 1.0]}, {**GOOD, "completions": [A, "", C]}]
    for name in ("train_dataset", "eval_dataset"):
        with pytest.raises(InputError) as caught:
            construct(tmp_path, [GOOD], **{**settings, name: Dataset.from_list(rows)})
        large, empty = sorted(caught.value.problems, reverse=True)
        assert large.startswith(f"{name}: scores must be from -1e+15 to 1e+15 (")
        assert "wrong in 1 of 3 rows, first in row 1. Scale them, and give None to completions without" in large
        assert "a completion is empty; wrong in 1 of 3 rows, first in row 2" in empty


def test_losses_of_the_order_alone_take_scores_of_any_size(tmp_path) -> None:
    huge = {**GOOD, "prompt": "what ", "scores": [3e38, -3e38, 0.0]}
    run, told = construct(tmp_path, [GOOD, huge], loss_type=["pl_reference_free", "simpo"], max_steps=1)
    assert told == []
    run.train()
    assert all(math.isfinite(value) for line in runs.logs(run) for value in line.values())


def test_weights_of_lists_that_are_infinite_in_batches_are_counted(tmp_path) -> None:
    with pytest.raises(InputError, match=r"must be finite in float32.*; wrong in 2 of 3 rows, first in row 1"):
        checked(tmp_path, [{**GOOD, "weight": each} for each in (1.0, 1e39, 1e50)])
