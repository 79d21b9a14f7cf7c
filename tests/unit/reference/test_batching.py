"""Which sequences a batch asks for, and in which rows and batches the missing ones are computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.trainer.dpo_trainer import DataCollatorForPreference

from trl_dpo_ext.reference.precompute.batching import MOST_KEYS, make_batches
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


def test_completions_of_one_prompt_share_it():
    (batch,) = make_batches(work(([1, 2, 3, 4], [5]), ([1, 2, 3, 4], [6, 7])), 100, share=True)
    assert (batch.positions, batch.tokens, batch.scored) == (5, 5, 3)
    assert batch.packed().input_ids.tolist() == [[1, 2, 3, 4, 6]]


def test_models_that_take_no_packed_rows_get_a_row_for_each_sequence():
    (batch,) = make_batches(work(([1, 2, 3, 4], [5]), ([1, 2, 3, 4], [6, 7])), 100, share=False)
    assert batch.packed().input_ids.tolist() == [[1, 2, 3, 4, 6], [1, 2, 3, 4, 0]]
    assert (batch.positions, batch.tokens) == (10, 9)


def test_turns_of_one_conversation_are_computed_once():
    start = list(range(100, 130))
    turns = [(start, [1, 2, 3]), ([*start, 1, 2, 4], [5, 6]), ([*start, 1, 2, 4, 5, 7], [8, 9])]
    other = (list(range(200, 230)), [1, 2, 3])
    (batch,) = make_batches(work(turns[2], other, turns[0], turns[1]), 1000, share=True)
    # 30 tokens of the start; 1, 2; then 4, 5 and 7, 8: what is predicted last is not fed.
    assert batch.tokens == 30 + 2 + 4 + 32


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
    batches = make_batches(wanted, limit, share)
    assert sorted(key for batch in batches for key in batch.keys) == sorted(wanted)
    for batch in batches:
        assert [wanted[key] for key in batch.keys] == list(batch.sequences)
        assert batch.positions <= limit or len(batch.keys) == 1
        packed = batch.packed()
        assert packed.input_ids.size == batch.positions
        for sequence, places in zip(batch.sequences, packed.places, strict=True):
            fed = [*sequence.prompt, *sequence.completion[:-1]]
            assert packed.input_ids.flatten()[places].tolist() == fed
    longest = [batch.longest for batch in batches]
    assert longest == sorted(longest, reverse=True)


@pytest.mark.parametrize("share", [True, False])
def test_halves_hold_the_same_work(share):
    wanted = work(([1, 2], [3]), ([1, 2], [4, 5]), ([6], [7]))
    (batch,) = make_batches(wanted, 100, share)
    first, second = batch.halves()
    assert (*first.keys, *second.keys) == batch.keys
    assert (len(first.keys), len(second.keys)) == (1, 2)
    assert first.halves() == [first]


def test_a_long_prompt_that_many_share_is_cut_where_attention_would_copy_it_too_often() -> None:
    prompt = list(range(1, 41))
    wanted = work(*((prompt, [50 + number]) for number in range(20)))
    batches = make_batches(wanted, 60, share=True)
    assert len(batches) > 1  # all of them are 40 positions
    assert all(batch.positions <= 60 for batch in batches)
    assert all(len(batch.keys) * 40 <= MOST_KEYS * 60 for batch in batches)
    assert sum(len(batch.keys) for batch in batches) == 20
