"""Checks by column find what a plain loop over the rows finds, in every layout, and say the same."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from unittest import mock

import pyarrow as pa
import pytest
from datasets import Dataset, Features, Json, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import tiny
from trl_dpo_ext.core.columns import Column
from trl_dpo_ext.data import batches, columnar
from trl_dpo_ext.data.columns import token_column_problems
from trl_dpo_ext.data.validation import check_preferences

COLUMNS = {
    "margin": Column("By how much the chosen side is better.", ge=0, le=5),
    "share": Column("A share.", ge=0, le=1),
    "chosen_token_weights": Column("Weight of each token.", ge=0, per_token="chosen"),
}
many = settings(max_examples=150, deadline=None, derandomize=True)

# --- the plain loop -------------------------------------------------------------------------------------------------


def number_problem(value: Any, meaning: Column) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "a number"
    if not math.isfinite(value):
        return "finite"
    if meaning.ge is not None and not value >= meaning.ge:
        return f">= {meaning.ge:g}"
    if meaning.le is not None and not value <= meaning.le:
        return f"<= {meaning.le:g}"
    return None


def value_problem(value: Any, meaning: Column) -> str | None:
    if meaning.per_token is None:
        return number_problem(value, meaning)
    if not isinstance(value, list):
        return f"a list of numbers, one per token of the {meaning.per_token} completion,"
    for token in value:
        if problem := number_problem(token, meaning):
            return f"{problem} at every token"
    return None


def says_nothing(completion: Any) -> bool:
    if not isinstance(completion, list):
        return not completion
    if not completion or completion[-1] is None:
        return True
    last = completion[-1]
    return not (last.get("content") or last.get("tool_calls") or last.get("thinking"))


def plain_loop(rows: list[Mapping[str, Any]], columns: Mapping[str, Column]) -> tuple[list[str], int]:
    """The problems, and how many rows have identical sides."""
    found: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        for column, meaning in columns.items():
            if problem := value_problem(row[column], meaning):
                text = f"column {column!r} must be {problem} ({meaning.help.rstrip('.')})"
                found.setdefault(text, []).append(index)
        for side in ("chosen", "rejected"):
            if says_nothing(row[side]):
                found.setdefault(f"the {side} completion is empty", []).append(index)
    problems = [
        f"data: {text}; wrong in {len(where)} of {len(rows)} rows, first in row {where[0]}."
        + " Filter these rows." * text.endswith("is empty")
        for text, where in found.items()
    ]
    return problems, sum(row["chosen"] == row["rejected"] for row in rows)


# --- any data -------------------------------------------------------------------------------------------------------

TEXT = st.sampled_from([None, "", "a", "b", "\u00e9", "a b"])
CALLS = st.sampled_from([None, [], [{"name": "f"}], [{"name": "g"}]])
PARTS = st.sampled_from([None, [], [{"type": "text", "text": "a"}], [{"type": "text", "text": None}]])


@st.composite
def messages(draw: Any, contents: Any, extra: list[str]) -> Any:
    message = {"role": draw(st.sampled_from(["user", "assistant"])), "content": draw(contents)}
    for name in extra:
        message[name] = draw(CALLS if name == "tool_calls" else TEXT)
    return draw(st.sampled_from([message, message, message, None]))


@st.composite
def sides(draw: Any) -> tuple[Any, Any]:
    """What the completions of both sides are drawn from: both texts, both conversations, or one of each."""
    if draw(st.booleans()):
        return TEXT, TEXT
    contents = draw(st.sampled_from([TEXT, PARTS]))
    fields = st.lists(st.sampled_from(["tool_calls", "thinking", "name"]), unique=True, max_size=3)
    first = draw(fields)
    second = first if draw(st.booleans()) else draw(fields)
    lists = [st.none() | st.lists(messages(contents, extra), max_size=3) for extra in (first, second)]
    return lists[0], (TEXT if draw(st.integers(0, 9)) == 0 else lists[1])


NUMBERS = st.sampled_from([0.0, 0.5, 1.0, 4.5, 5.0, -1.0, math.nan, math.inf, -math.inf, None])
GOOD = st.floats(0.25, 1.0)


@st.composite
def datasets_with_columns(draw: Any) -> Dataset:
    size = draw(st.integers(1, 12))

    def column(values: Any) -> list[Any]:
        return draw(st.lists(values, min_size=size, max_size=size))

    chosen, rejected = draw(sides())
    data = {"prompt": ["p"] * size, "chosen": column(chosen), "rejected": column(rejected)}
    if draw(st.booleans()):  # identical rows are rare otherwise
        data["rejected"] = [
            c if draw(st.booleans()) else r for c, r in zip(data["chosen"], data["rejected"], strict=True)
        ]
    kinds = [GOOD, GOOD, NUMBERS, st.integers(-1, 5), st.booleans(), st.sampled_from(["1", None])]
    data["margin"] = column(draw(st.sampled_from(kinds)))
    data["share"] = column(draw(st.sampled_from(kinds)))
    tokens = st.lists(draw(st.sampled_from([GOOD, GOOD, NUMBERS, st.integers(0, 2)])), max_size=3)
    data["chosen_token_weights"] = column(draw(st.sampled_from([tokens, tokens, st.none() | tokens, NUMBERS])))
    try:
        dataset = Dataset.from_dict(data)
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError):  # texts and conversations cannot stand in one column
        data["rejected"] = data["chosen"]
        dataset = Dataset.from_dict(data)
    order = draw(st.permutations(range(size)))
    kept = order[: draw(st.integers(1, size))]
    return dataset.select(kept) if draw(st.booleans()) else dataset


@many
@given(dataset=datasets_with_columns(), at_once=st.integers(1, 5))
@pytest.mark.slow
def test_any_data_gets_the_report_of_a_plain_loop(dataset: Dataset, at_once: int) -> None:
    problems, identical = plain_loop(list(dataset), COLUMNS)
    with mock.patch.object(batches, "_ROWS_AT_ONCE", at_once):
        report = check_preferences(dataset, "data", COLUMNS)
    assert report.problems == problems
    expected = f"chosen and rejected are identical in {identical} of {len(dataset)} rows"
    assert [expected in warning for warning in report.warnings] == [True] * bool(identical)


USER = {"role": "user", "content": "q", "tool_calls": None}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}


@pytest.mark.parametrize(
    "data",
    [
        {"chosen": ["a", "b"], "rejected": ["c", None]},
        {"chosen": [[USER, CALL], [USER]], "rejected": [[USER], []]},
        {"chosen": [[{"content": "a"}]], "rejected": [[{"content": "a", "thinking": "b"}]]},
        {"chosen": [[{"content": [{"type": "text", "text": "a"}]}]], "rejected": [[{"content": []}]]},
        {"chosen": [None, None], "rejected": ["a", "b"]},
    ],
    ids=["texts", "tool calls", "other fields", "parts", "nothing"],
)
def test_the_usual_layouts_are_never_read_row_by_row(data: dict) -> None:
    dataset = Dataset.from_dict(data)
    expected, _ = plain_loop(list(dataset), {})
    with mock.patch.object(batches.DatasetBatch, "rows", side_effect=AssertionError("row by row")):
        assert check_preferences(dataset, "data", {}).problems == expected


def test_a_good_dataset_with_columns_is_never_read_row_by_row() -> None:
    tokens = [[1.0, 2.0], [0.5]]
    dataset = tiny.preferences(2, margin=[1, 2], share=[0.5, 1.0], chosen_token_weights=tokens)
    with mock.patch.object(batches.DatasetBatch, "rows", side_effect=AssertionError("row by row")):
        assert check_preferences(dataset, "data", COLUMNS).problems == []


def test_messages_with_other_fields_are_not_identical() -> None:
    data = {"chosen": [[{"content": "a"}], []], "rejected": [[{"content": "a", "name": None}], []]}
    assert "identical in 1 of 2 rows" in check_preferences(Dataset.from_dict(data), "data", {}).warnings[0]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (pa.array([1.5]), pa.array(["a"])),
        (pa.array([{"a": "b"}]), pa.array([["b"]])),
        (pa.array([[1]], pa.list_(pa.int64(), 1)), pa.array([[1]], pa.list_(pa.int64(), 1))),
        (pa.array([b"a"]), pa.array([b"a"])),
    ],
    ids=["number and text", "struct and list", "lists of fixed size", "bytes"],
)
def test_other_layouts_are_not_compared_by_column(left: pa.Array, right: pa.Array) -> None:
    with pytest.raises(columnar.UnknownLayoutError):
        columnar.equal_rows(left, right)


def test_values_that_datasets_decodes_are_read_row_by_row() -> None:
    features = Features({"chosen": Json(), "rejected": Json(), "margin": Value("float16")})
    data = {"chosen": [[], "a"], "rejected": [[{"content": "b"}], "a"], "margin": [1.0, -1.0]}
    dataset = Dataset.from_dict(data, features=features)
    report = check_preferences(dataset, "data", {"margin": COLUMNS["margin"]})
    assert (report.problems, len(report.warnings)) == (plain_loop(list(dataset), {"margin": COLUMNS["margin"]})[0], 1)
    assert len(report.problems) == 2


@pytest.mark.parametrize("at_once", [1, 2, 1000])
def test_columns_with_another_number_of_values_than_tokens_are_counted(at_once: int) -> None:
    data = {
        "chosen_ids": [[1, 2], [3], [4, 5, 6], []],
        "chosen_token_weights": [[1.0, 1.0], [1.0, 2.0], [1.0], []],
    }
    with mock.patch.object(batches, "_ROWS_AT_ONCE", at_once):
        (problem,) = token_column_problems(Dataset.from_dict(data), "data", COLUMNS)
    assert "row 1 has 2 for a chosen completion of 1 tokens" in problem
    assert "wrong in 2 of 4 rows" in problem
    assert token_column_problems(Dataset.from_dict(data).select([0, 3]), "data", COLUMNS) == []
    assert token_column_problems(Dataset.from_dict(data).select([]), "data", COLUMNS) == []
