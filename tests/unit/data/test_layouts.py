"""Rows that are judged by column are judged as they would be one by one, and conversions can be repeated."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
from datasets import Dataset, IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st
from trl import extract_prompt

from tests.support import tiny
from trl_dpo_ext.data import batches
from trl_dpo_ext.data.layouts import apply_layout, one_layout, plan_layout
from trl_dpo_ext.data.plain_rows import PLAIN, READ, WITHOUT_PROMPT, row_codes
from trl_dpo_ext.data.rows import Layout, read_row

many = settings(max_examples=200, deadline=None, derandomize=True)

TEXT = st.sampled_from([None, "", "a", "ab", "abc", "a b ", "b", "\u00e9", "\u00e9 a", "a long text that goes on"])
ROLE = st.sampled_from(
    ["system", "user", "user", "assistant", "assistant", "assistant", "tool", "critic", "human", None]
)


@st.composite
def messages(draw: Any, extra: list[str]) -> Any:
    message = {"role": draw(ROLE), "content": draw(TEXT)}
    for name in extra:
        message[name] = draw(st.sampled_from([None, [], [{"name": "f"}]]))
    return message


@st.composite
def conversation(draw: Any, extra: list[str]) -> list[dict]:
    """Mostly a sound one, so that rows with one fault are common."""
    roles = draw(st.sampled_from([["user"], ["system", "user"], ["user", "assistant", "user"], ["assistant"], []]))
    sound = [
        {"role": role, "content": draw(st.sampled_from(["a", "b"])), **dict.fromkeys(extra)}
        for role in [*roles, *draw(st.sampled_from([[], ["assistant"]]))]
    ]
    if draw(st.integers(0, 5)) == 0:
        sound.append(draw(messages(extra)))
    return sound


@st.composite
def tables(draw: Any) -> Dataset:
    kind = draw(st.sampled_from(["texts", "messages", "text prompt", "no prompt", "no prompt, texts"]))
    extra = draw(st.sampled_from([[], ["tool_calls"]]))
    listed = conversation(extra)
    kinds = {
        "texts": (TEXT, TEXT),
        "messages": (listed, listed),
        "text prompt": (TEXT, listed),
        "no prompt": (None, listed),
        "no prompt, texts": (None, TEXT),
    }
    prompt, side = kinds[kind]
    size = draw(st.integers(1, 8))
    rows = []
    for _ in range(size):
        row = {} if prompt is None else {"prompt": draw(prompt)}
        row["chosen"] = draw(side)
        row["rejected"] = draw(side)
        if isinstance(row["chosen"], list) and draw(st.booleans()):
            row["rejected"] = [*row["chosen"][:-1], *draw(conversation(extra))[-1:]]
            if kind == "text prompt" and draw(st.booleans()) and row["chosen"]:
                row["prompt"] = row["chosen"][0]["content"]
        if draw(st.integers(0, 3)) == 0:
            row |= {"system": draw(TEXT)}
        rows.append(row)
    names = {name for row in rows for name in row}
    return Dataset.from_list([{name: row.get(name) for name in sorted(names)} for row in rows])


@many
@given(dataset=tables())
def test_a_row_that_is_judged_by_column_has_nothing_to_tell(dataset: Dataset) -> None:
    layout = Layout(tuple(dataset.column_names))
    (batch,) = batches.read_batches(dataset, layout.columns)
    codes, is_messages = row_codes(batch, layout)
    for row, code in zip(dataset, codes.tolist(), strict=True):
        reading = read_row(row, layout)
        if code != READ:
            assert (reading.problems, reading.doubts, reading.values) == ({}, set(), {})
            assert reading.is_messages == is_messages
            assert reading.without_prompt == (code == WITHOUT_PROMPT) or "prompt" not in row
            assert code == PLAIN or reading.notes == {"prompt: repeated by whole conversations -> dropped"}


SOUND = {
    "texts": tiny.preferences(4).to_list(),
    "messages": tiny.preferences(4, conversational=True).to_list(),
    "transcripts": [{"chosen": "Human: a Assistant: b", "rejected": "Human: a Assistant: c"}] * 4,
    "conversations": [
        {"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]}
        for row in tiny.preferences(4, conversational=True)
    ],
    "conversations beside a text": [
        {
            "prompt": row["prompt"][0]["content"],
            "chosen": row["prompt"] + row["chosen"],
            "rejected": row["prompt"] + row["rejected"],
        }
        for row in tiny.preferences(4, conversational=True)
    ],
    "empty system column": [{**row, "system": ""} for row in tiny.preferences(4)],
}


@pytest.mark.parametrize("rows", SOUND.values(), ids=SOUND)
def test_the_usual_layouts_are_never_read_row_by_row(rows: list[dict]) -> None:
    dataset = Dataset.from_list(rows)
    with (
        mock.patch.object(batches.DatasetBatch, "rows", side_effect=AssertionError("row by row")),
        mock.patch.object(batches.DatasetBatch, "rows_at", side_effect=AssertionError("row by row")),
        mock.patch.object(Dataset, "map", side_effect=AssertionError("rewritten")),
    ):
        plan = plan_layout(dataset, "data")
        assert (plan.problems, plan.warnings) == ([], [])
        apply_layout(dataset, plan)


def test_only_the_rows_that_need_it_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tiny.preferences(4, conversational=True).to_list()
    rows[2]["chosen"] = rows[2]["prompt"] + rows[2]["chosen"]
    read: list[list[int]] = []
    original = batches.DatasetBatch.rows_at

    def record(batch: Any, places: list[int], columns: Any) -> Any:
        read.append(places)
        return original(batch, places, columns)

    monkeypatch.setattr(batches.DatasetBatch, "rows_at", record)
    assert plan_layout(Dataset.from_list(rows), "data").convert
    assert read == [[2]]


def test_a_conversion_is_found_in_the_cache_again(tmp_path: Any) -> None:
    rows = [{**row, "chosen": row["chosen"][0]} for row in tiny.preferences(4, conversational=True)]
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    prints = {one_layout(Dataset.load_from_disk(str(tmp_path / "saved")))._fingerprint for _ in range(2)}
    assert len(prints) == 1


TEXT_PAIRS = [
    ("say yes", "say no"),
    ("say a b", "say b"),
    ("a", "b"),
    ("x y", "x  z"),
    ("same", "same"),
    ("ab c", "ab d"),
]


@pytest.mark.parametrize(("chosen", "rejected"), TEXT_PAIRS)
def test_an_implicit_prompt_of_texts_is_trls(chosen: str, rejected: str) -> None:
    row = {"chosen": chosen, "rejected": rejected}
    reading = read_row(row, Layout(("chosen", "rejected"), explicit=True))
    assert {**row, **reading.values} == extract_prompt(row)


TURNS = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "r"},
    {"role": "assistant", "content": "b"},
]


@pytest.mark.parametrize("rejected", [TURNS[:1] + TURNS[3:], TURNS[:3] + TURNS[1:2], TURNS, TURNS[:2]])
def test_an_implicit_prompt_of_messages_is_trls(rejected: list[dict]) -> None:
    row = {"chosen": TURNS, "rejected": rejected}
    layout = Layout(("chosen", "rejected"))
    assert read_row(row, layout).values == {}
    explicit = read_row(row, Layout(layout.columns, explicit=True))
    assert {**row, **explicit.values} == extract_prompt(row)


def as_messages(dataset: Any, **settings: Any) -> Any:
    return apply_layout(dataset, plan_layout(dataset, "data", conversational=True), **settings)


@pytest.mark.parametrize("streamed", [False, True])
def test_texts_become_messages_if_asked(streamed: bool) -> None:
    texts = tiny.preferences(4)
    expected = [
        {
            name: [{"role": "user" if name == "prompt" else "assistant", "content": row[name]}]
            for name in ("prompt", "chosen", "rejected")
        }
        for row in texts
    ]
    assert [*as_messages(texts.to_iterable_dataset() if streamed else texts)] == expected
    assert [*one_layout(texts)] == [*texts]


def test_a_column_system_becomes_the_first_message_of_texts() -> None:
    dataset = Dataset.from_list([{"prompt": "q", "chosen": "a", "rejected": "b", "system": "s"}])
    assert "text prompts have no place" in plan_layout(dataset, "data").problems[0]
    (row,) = as_messages(dataset)
    assert row["prompt"] == [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]


def test_texts_without_a_prompt_do_not_become_messages() -> None:
    (problem,) = plan_layout(
        Dataset.from_dict({"chosen": ["q a"], "rejected": ["q b"]}), "data", conversational=True
    ).problems
    assert "there is no prompt beside texts that become messages" in problem
    assert "Add a column 'prompt'" in problem


def test_messages_stay_as_they_are_where_texts_are_to_become_some() -> None:
    data = tiny.preferences(4, conversational=True)
    with mock.patch.object(batches.DatasetBatch, "rows_at", side_effect=AssertionError("row by row")):
        assert as_messages(data) is data


def test_columns_by_which_trl_may_take_texts_for_messages_are_removed() -> None:
    rows = [{**row, "messages": [{"role": "user", "content": "q"}]} for row in tiny.preferences(2)]
    assert one_layout(Dataset.from_list(rows)).column_names == ["prompt", "chosen", "rejected"]
    rows = [{**row, "completion": "a"} for row in tiny.preferences(2, conversational=True)]
    assert one_layout(Dataset.from_list(rows)).column_names == ["prompt", "chosen", "rejected"]
    stream = one_layout(IterableDataset.from_generator(lambda: iter(rows)))
    assert list(next(iter(stream))) == ["prompt", "chosen", "rejected"]


def test_other_columns_survive_a_conversion() -> None:
    rows = [
        {**row, "chosen": row["chosen"][0], "margin": 1.5, "tools": '[{"type": "function"}]'}
        for row in tiny.preferences(2, conversational=True)
    ]
    found = one_layout(Dataset.from_list(rows))
    assert (found["margin"][:], found["tools"][:]) == ([1.5] * 2, ['[{"type": "function"}]'] * 2)


def test_fields_of_messages_survive_a_conversion_without_empty_ones() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
    row = {"prompt": "q", "chosen": [call], "rejected": [{"role": "assistant", "content": "no"}]}
    (found,) = one_layout(Dataset.from_list([row], on_mixed_types="use_json"))
    assert found["prompt"] == [{"role": "user", "content": "q"}]
    assert (found["chosen"], found["rejected"]) == (row["chosen"], row["rejected"])
