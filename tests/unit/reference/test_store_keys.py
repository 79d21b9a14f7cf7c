"""Keys depend on the token ids alone and never change; the index finds what a dictionary finds."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_dpo_ext.reference.store.keys import KeyIndex, pack_keys, sequence_key

IDS = st.lists(st.integers(0, 2**31 - 1), max_size=40)


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ([1, 2, 3], [50000, 7], "4e27a24c78f0653571c60831316831ed"),
        ([], [], "d2d26df6544bf8dc340a6524134569f6"),
        ([0], [2**31 - 1], "250b6d202245e630894dff8a8f09a3c0"),
    ],
)
def test_keys_never_change(prompt: list[int], completion: list[int], expected: str) -> None:
    """A store of last year is found again; the formula once more, without the package."""
    content = struct.pack("<qq", len(prompt), len(completion))
    content += struct.pack(f"<{len(prompt) + len(completion)}i", *prompt, *completion)
    assert hashlib.blake2b(content, digest_size=16, person=b"trl_dpo_ext.seq1").hexdigest() == expected
    assert sequence_key(prompt, completion).hex() == expected


@settings(max_examples=200, deadline=None)
@given(IDS, IDS)
def test_the_container_of_the_ids_does_not_matter(prompt: list[int], completion: list[int]) -> None:
    expected = sequence_key(prompt, completion)
    assert sequence_key(tuple(prompt), tuple(completion)) == expected
    for dtype in (np.int32, np.int64, np.uint32, ">i8"):
        assert sequence_key(np.array(prompt, dtype), np.array(completion, dtype)) == expected
    assert (
        sequence_key(torch.tensor(prompt, dtype=torch.int64), torch.tensor(completion, dtype=torch.int32)) == expected
    )


@settings(max_examples=200, deadline=None)
@given(IDS, IDS, IDS, IDS)
def test_keys_are_equal_for_equal_sequences_only(p1: list[int], c1: list[int], p2: list[int], c2: list[int]) -> None:
    assert (sequence_key(p1, c1) == sequence_key(p2, c2)) == ((p1, c1) == (p2, c2))
    if p1 + c1:
        together = [sequence_key((p1 + c1)[:at], (p1 + c1)[at:]) for at in range(len(p1 + c1) + 1)]
        assert len(set(together)) == len(together)  # where the prompt ends is content


@pytest.mark.parametrize(
    "ids", [[-100], [2**31], [1.5], np.array([-1]), np.array([2**31]), np.array([1.0]), np.array([[1]]), ["a"]]
)
def test_what_is_no_token_id_has_no_key(ids: Any) -> None:
    with pytest.raises(ValueError, match="Token ids must"):
        sequence_key([1], ids)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(0, 5), max_size=30))
def test_the_index_finds_what_a_dictionary_finds_also_where_first_halves_are_equal(
    held: list[int], asked: list[int]
) -> None:
    def key(number: int) -> bytes:
        return bytes([number % 2] * 8 + [0] * 7 + [number // 2])

    index = KeyIndex.build(pack_keys(key(number) for number in held))
    first = {number: at for at, number in reversed(list(enumerate(held)))}
    assert index.find(pack_keys(key(number) for number in asked)).tolist() == [
        first.get(number, -1) for number in asked
    ]
    assert len(index) == len(first)
