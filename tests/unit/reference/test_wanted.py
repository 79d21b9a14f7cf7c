"""Which sequences a dataset holds: those that the collator would make of it, without calling it where that can be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.trainer.dpo_trainer import DataCollatorForPreference

from trl_dpo_ext.reference.precompute import wanted
from trl_dpo_ext.reference.precompute.sequences import batch_sequences
from trl_dpo_ext.reference.precompute.wanted import Sequences, content, portions
from trl_dpo_ext.reference.store.keys import unpack_keys

COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
IDS = st.lists(st.integers(0, 2**31 - 1), max_size=7)
ROWS = st.lists(st.tuples(IDS, IDS.filter(bool), IDS.filter(bool)), min_size=1, max_size=12)


def dataset(rows: list[Any], value_type: pa.DataType | None = None, large: bool = False) -> Dataset:
    kind = (pa.large_list if large else pa.list_)(value_type or pa.int64())
    return Dataset(pa.table({name: pa.array([row[at] for row in rows], kind) for at, name in enumerate(COLUMNS)}))


def made_up(count: int, seed: int = 0) -> list[list[list[int]]]:
    random = np.random.default_rng(seed)
    return [[random.integers(0, 50_000, random.integers(1, 9)).tolist() for _ in COLUMNS] for _ in range(count)]


def found(data: Any, collator: Any) -> dict[bytes, tuple[list[int], list[int]]]:
    """The sequences of all portions by key."""
    return {
        key: (sequence.prompt.tolist(), sequence.completion.tolist())
        for portion in portions(data, None, collator)
        for key, sequence in portion.by_key().items()
    }


def collated(data: Dataset, collator: Any) -> dict[bytes, tuple[list[int], list[int]]]:
    """The same, from the collator's batches."""
    rows = [dict(zip(COLUMNS, values, strict=True)) for values in zip(*(data[name] for name in COLUMNS), strict=True)]
    sequences = batch_sequences(collator(rows)) if rows else ()
    return {
        sequence.key: (sequence.prompt.tolist(), sequence.completion.tolist())
        for sequence in sequences
        if sequence is not None
    }


@given(ROWS, st.none() | st.integers(1, 12), st.sampled_from(["keep_start", "keep_end"]))
@settings(max_examples=60, deadline=None)
def test_the_columns_give_what_the_collator_makes_of_them(rows: list[Any], max_length: int | None, mode: str) -> None:
    collator = DataCollatorForPreference(0, max_length=max_length, truncation_mode=mode)
    data = dataset(rows)
    assert found(data, collator) == collated(data, collator)


def views() -> dict[str, Dataset]:
    rows = made_up(50)
    halves = [dataset(rows[:20]), dataset(rows[20:])]
    return {
        "whole": dataset(rows),
        "in another order": dataset(rows).shuffle(seed=1),
        "some rows": dataset(rows).select([3, 3, 41, 0]),
        "a slice": dataset(rows).select(range(7, 31)),
        "two parts": concatenate_datasets(halves),
        "two parts in another order": concatenate_datasets(halves).shuffle(seed=2),
        "filtered": dataset(rows).filter(lambda row: len(row["prompt_ids"]) > 4),
        "more columns": dataset(rows).add_column("score", [1.0] * 50),  # type: ignore[call-arg]
        "32 bits": dataset(rows, pa.int32()),
        "unsigned": dataset(rows, pa.uint32()),
        "16 bits": dataset([[[token % 999 for token in ids] for ids in row] for row in rows], pa.int16()),
        "long lists": dataset(rows, large=True),
        "as tensors": dataset(rows).with_format("torch"),
        "transformed in training": dataset(rows).with_transform(lambda batch: batch),
        "empty": dataset(rows).select([]),
    }


@pytest.mark.parametrize("name", views())
def test_every_view_of_a_dataset_gives_its_own_rows(name: str, monkeypatch) -> None:
    data = views()[name]
    collator = DataCollatorForPreference(0, max_length=8)
    expected = collated(data.with_format(None), collator)
    monkeypatch.setattr(DataCollatorForPreference, "torch_call", None)  # not needed
    assert found(data, collator) == expected
    assert bool(expected) == (name != "empty")


def test_a_collator_of_ones_own_is_asked() -> None:
    class Reversed(DataCollatorForPreference):
        def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
            return super().torch_call([{**row, "prompt_ids": row["prompt_ids"][::-1]} for row in examples])

    data = dataset(made_up(600))  # more rows than it is given at once
    for collator in (Reversed(0), lambda rows: Reversed(0)(rows)):
        assert found(data, collator) == collated(data, Reversed(0)) != collated(data, DataCollatorForPreference(0))


def test_a_stream_is_collated() -> None:
    data = dataset(made_up(20))
    collator = DataCollatorForPreference(0, max_length=8)
    assert found(data.to_iterable_dataset(), collator) == collated(data, collator)


@pytest.mark.parametrize("own", [False, True], ids=["TRL's collator", "another"])
def test_portions_are_cut_and_hold_no_sequence_twice(monkeypatch, own: bool) -> None:
    monkeypatch.setattr(wanted, "SEQUENCES_AT_ONCE", 40)
    monkeypatch.setattr(wanted, "_ROWS_AT_ONCE", 15)
    monkeypatch.setattr(wanted, "_ROWS_COLLATED_AT_ONCE", 15)
    rows = made_up(40)
    data, host = dataset([*rows, *rows]), DataCollatorForPreference(0)
    several = list(portions(data, None, (lambda rows: host(rows)) if own else host))
    assert len(several) == 3
    for portion in several:
        keys = unpack_keys(portion.keys)
        assert len(set(keys)) == len(keys) <= 60
        assert keys == [sequence.key for sequence in portion]
    assert {key for portion in several for key in unpack_keys(portion.keys)} == collated(data, host).keys()


def test_some_sequences_are_copied_without_the_others() -> None:
    (portion,) = portions(dataset(made_up(50)), None, DataCollatorForPreference(0))
    chosen = np.arange(len(portion)) % 7 == 3
    some = portion.copied(chosen)
    everything = list(portion.by_key().items())
    for (key, sequence), at in zip(some.by_key().items(), np.flatnonzero(chosen), strict=True):
        assert key == everything[at][0] == sequence.key
        assert sequence.prompt.tolist() == everything[at][1].prompt.tolist()
        assert sequence.start == everything[at][1].start
    assert len(some.ids) == sum(len(one.prompt) + len(one.completion) for one in some)
    assert some.longest == max(len(one.prompt) + len(one.completion) for one in some)
    none = portion.copied(np.zeros(len(portion), bool))
    assert (len(none), none.longest, none.by_key()) == (0, 0, {})


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([[[1], [2], [-100]]], "must not be negative|in \\[0"),
        ([[[1], [2**31], [3]]], "not in range|out of bounds|31 bits|Integer value"),
        ([[[1], None, [3]]], "no token ids"),
        ([[[1], [None], [3]]], "no token ids"),
    ],
)
def test_what_is_no_token_id_is_refused(rows: list[Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        found(dataset(rows), DataCollatorForPreference(0))


def test_equal_data_are_told_by_content_not_by_object() -> None:
    rows, collator = made_up(2100), DataCollatorForPreference(0, max_length=8)
    mine = content(dataset(rows), collator)
    assert isinstance(mine, bytes)
    assert content(dataset(rows), DataCollatorForPreference(9, max_length=8)) == mine
    assert content(dataset(rows).add_column("score", [1.0] * 2100), collator) == mine  # type: ignore[call-arg]
    assert content(dataset([*rows, *rows[:5]]).select(range(2100)), collator) == mine


@pytest.mark.parametrize("place", [0, 999, 1000, 2099])
@pytest.mark.parametrize("column", range(3))
def test_one_token_makes_data_differ(place: int, column: int) -> None:
    rows, collator = made_up(2100), DataCollatorForPreference(0)
    mine = content(dataset(rows), collator)
    rows[place][column][-1] += 1
    assert content(dataset(rows), collator) != mine


def test_order_lengths_and_truncation_make_data_differ() -> None:
    rows = made_up(30)
    split = [[[*row[0], row[1][0]], row[1][1:] or [1], row[2]] for row in rows]  # the same ids, cut elsewhere
    seen = [
        content(data, DataCollatorForPreference(0, max_length=length, truncation_mode=mode))
        for data in (dataset(rows), dataset(rows).shuffle(seed=1), dataset(rows[:-1]), dataset(split))
        for length in (None, 4)
        for mode in ("keep_start", "keep_end")
    ]
    assert len(set(seen)) == len(seen)


def test_of_a_stream_or_another_collator_nothing_is_told() -> None:
    data, collator = dataset(made_up(3)), DataCollatorForPreference(0)
    assert content(data.to_iterable_dataset(), collator) is None
    assert content(data, lambda rows: collator(rows)) is None
    assert content(data.remove_columns("chosen_ids"), collator) is None


def test_nothing_is_nothing() -> None:
    assert len(Sequences.of(())) == 0
    assert list(portions(dataset([]), None, DataCollatorForPreference(0))) == []
