"""Which sequences a batch asks for, and in which rows and batches the missing ones are computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.trainer.dpo_trainer import DataCollatorForPreference

from trl_dpo_ext.reference.precompute.batching import Batch, PromptRow, make_batches
from trl_dpo_ext.reference.precompute.sequences import TokenSequence, batch_sequences


def sequence(prompt: list[int], completion: list[int]) -> TokenSequence:
    return TokenSequence(np.array(prompt, np.int32), np.array(completion, np.int32), len(prompt) - 1)


def work(*items: tuple[list[int], list[int]]) -> dict[bytes, TokenSequence]:
    made = [sequence(prompt, completion) for prompt, completion in items]
    return {one.key: one for one in made}


EXAMPLES = [
    {"prompt_ids": [5, 6, 7], "chosen_ids": [8, 9], "rejected_ids": [10]},
    {"prompt_ids": [11], "chosen_ids": [12], "rejected_ids": [13, 14, 15]},
]


def as_lists(sequences):
    return [(s.prompt.tolist(), s.completion.tolist(), s.start) for s in sequences]


def test_a_batch_asks_for_its_rows_chosen_first():
    batch = DataCollatorForPreference(pad_token_id=0)(EXAMPLES)
    assert as_lists(batch_sequences(batch)) == [
        ([5, 6, 7], [8, 9], 2),
        ([11], [12], 0),
        ([5, 6, 7], [10], 2),
        ([11], [13, 14, 15], 0),
    ]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("keep_start", [([5, 6, 7], [8], 2), ([11], [12], 0), ([5, 6, 7], [10], 2), ([11], [13, 14, 15], 0)]),
        ("keep_end", [([6, 7], [8, 9], 1), ([11], [12], 0), ([5, 6, 7], [10], 2), ([11], [13, 14, 15], 0)]),
    ],
)
def test_what_was_truncated_is_not_asked_for(mode, expected):
    batch = DataCollatorForPreference(pad_token_id=0, max_length=4, truncation_mode=mode)(EXAMPLES)
    assert as_lists(batch_sequences(batch)) == expected


def test_padding_on_the_left_asks_for_the_same_tokens_at_another_place():
    batch = DataCollatorForPreference(pad_token_id=0)(EXAMPLES)
    lengths = batch["attention_mask"].sum(1)
    flipped = {
        name: torch.stack([torch.roll(row, int(row.numel() - n)) for row, n in zip(tensor, lengths, strict=True)])
        for name, tensor in batch.items()
    }
    right, left = list(batch_sequences(batch)), list(batch_sequences(flipped))
    assert [one.key for one in right] == [one.key for one in left]
    width = batch["input_ids"].size(1)
    assert [one.start for one in left] == [one.start + width - int(n) for one, n in zip(right, lengths, strict=True)]


def test_a_row_without_a_prompt_counts_its_first_token_as_one_since_it_is_never_scored():
    batch = DataCollatorForPreference(pad_token_id=0)(
        [{"prompt_ids": [], "chosen_ids": [1, 2, 3], "rejected_ids": [4]}]
    )
    first, second = batch_sequences(batch)
    assert as_lists([first]) == [([1], [2, 3], 0)]
    assert second is None  # one token, nothing to predict it from


def test_a_fully_truncated_row_asks_for_nothing():
    batch = DataCollatorForPreference(pad_token_id=0, max_length=3)(EXAMPLES[:1])
    assert list(batch_sequences(batch)) == [None, None]


def test_completions_of_one_prompt_share_a_row():
    (batch,) = make_batches(work(([1, 2, 3, 4], [5]), ([1, 2, 3, 4], [6, 7])), 100, 64, share=True)
    (row,) = batch.rows
    assert row.width == 3 + 1 + 2
    assert (batch.positions, batch.tokens, batch.scored) == (6, 6, 3)


def test_models_that_take_no_shared_rows_get_a_row_for_each():
    batches = make_batches(work(([1, 2, 3, 4], [5]), ([1, 2, 3, 4], [6, 7])), 100, 64, share=False)
    assert [len(row.keys) for batch in batches for row in batch.rows] == [1, 1]


def test_long_completions_after_a_short_prompt_do_not_share_where_attention_costs_more_than_the_prompt():
    long = [list(range(100, 4100)), list(range(5000, 9000))]
    batches = make_batches(work(*((([1, 2], completion)) for completion in long)), 10_000, 64, share=True)
    assert [len(row.keys) for batch in batches for row in batch.rows] == [1, 1]


def test_rows_with_and_without_branches_keep_apart():
    items = work(([1, 2, 3], [4]), ([1, 2, 3], [5]), ([7, 8, 9], [10]))
    batches = make_batches(items, 1000, 64, share=True)
    assert sorted(len({len(row.keys) for row in batch.rows}) for batch in batches) == [1, 1]


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(1, 3), min_size=1, max_size=6), st.lists(st.integers(1, 9), min_size=1, max_size=9)
        ),
        min_size=1,
        max_size=40,
    ),
    st.integers(1, 60),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_every_sequence_is_computed_once_within_the_limit(items, limit, share):
    wanted = work(*items)
    batches = make_batches(wanted, limit, 8, share)
    keys = [key for batch in batches for row in batch.rows for key in row.keys]
    assert sorted(keys) == sorted(wanted)
    for batch in batches:
        assert batch.positions <= limit or len(batch.rows) == 1
        for row in batch.rows:
            assert len({one.prompt.tobytes() for one in row.sequences}) == 1
            assert len(row.keys) == 1 or row.width <= limit
    widths = [max(row.width for row in batch.rows) for batch in batches]
    assert widths == sorted(widths, reverse=True)


def test_halves_hold_the_same_work():
    wanted = work(([1, 2], [3]), ([1, 2], [4, 5]), ([6], [7]))
    (first, second) = (sequence([1, 2], [3]), sequence([1, 2], [4, 5]))
    shared = PromptRow((first.key, second.key), (first, second))
    alone = sequence([6], [7])
    batch = Batch((shared, PromptRow((alone.key,), (alone,))))
    assert [half.rows for half in batch.halves()] == [(batch.rows[0],), (batch.rows[1],)]
    assert [half.rows[0].keys for half in Batch((shared,)).halves()] == [(first.key,), (second.key,)]
    assert {key for half in batch.halves() for row in half.rows for key in row.keys} == set(wanted)
