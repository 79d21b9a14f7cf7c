"""A packed row: every sequence stands in it once, sees itself and nothing else, and shares what it can."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from trl_dpo_ext.forward import packing
from trl_dpo_ext.forward.packing import pack, pad
from trl_dpo_ext.forward.trees import Trees, visible_keys


def ids(*sequences: list[int]) -> list[np.ndarray]:
    return [np.array(sequence, dtype=np.int32) for sequence in sequences]


def test_a_row_is_each_prompt_and_a_branch_for_each_completion() -> None:
    packed = pack(ids([5, 6, 7, 9], [8, 12], [5, 6, 7, 10, 11]), ["a", "b", "a"])
    assert packed.input_ids.tolist() == [[5, 6, 7, 9, 10, 11, 8, 12]]
    assert [places.tolist() for places in packed.places] == [[0, 1, 2, 3], [6, 7], [0, 1, 2, 4, 5]]
    assert packed.trees is not None
    assert packed.trees.positions.tolist() == [0, 1, 2, 3, 3, 4, 0, 1]
    blocks = [(block.own, block.ahead) for block in packed.trees.blocks]
    assert blocks == [(slice(0, 4), ()), (slice(4, 6), (slice(0, 3),)), (slice(6, 8), ())]


def test_without_groups_nothing_is_shared() -> None:
    packed = pack(ids([5, 6], [5, 6]), None)
    assert packed.input_ids.tolist() == [[5, 6, 5, 6]]


def test_conversations_that_continue_one_another_stand_once() -> None:
    system = list(range(100, 120))
    turns = [[*system, 1], [*system, 1, 2, 3], [*system, 1, 2, 3, 4], [*system, 9]]
    packed = pack(ids(*turns), list("abcd"))
    assert packed.input_ids.size == len(system) + 5
    for sequence, places in zip(turns, packed.places, strict=True):
        assert packed.input_ids[0, places].tolist() == sequence


def test_short_beginnings_are_shared_within_a_group_alone() -> None:
    packed = pack(ids([1, 2, 3], [1, 2, 4], [1, 2, 5]), ["a", "a", "b"])
    assert packed.input_ids.size == 4 + 3


def test_a_width_in_whole_blocks_is_filled_with_what_nothing_sees() -> None:
    given = pack(ids([5, 6, 7], [5, 8]), ["a", "a"])
    packed = given.filled(8)
    assert packed.trees is not None
    assert packed.places is given.places
    assert given.filled(4) is given
    assert packed.input_ids.shape == (1, 8)
    assert packed.trees.subtree_ends.tolist()[:4] == [4, 3, 3, 4]
    assert pack(ids([], []), ["a", "a"]).input_ids.shape == (1, 1)


def test_padded_rows_hold_one_sequence_each() -> None:
    padded = pad(ids([5, 6, 7], [8]))
    assert padded.input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert [places.tolist() for places in padded.places] == [[0, 1, 2], [3]]
    assert padded.trees is None


def random_case(seed: int) -> tuple[list[np.ndarray], list[int] | None, int]:
    draw = random.Random(seed)  # two ids, so that many beginnings meet
    sequences = [np.array([draw.randint(3, 4) for _ in range(draw.randint(0, 7))]) for _ in range(draw.randint(1, 8))]
    return sequences, [draw.randint(0, 2) for _ in sequences] if draw.random() < 0.8 else None, draw.choice([1, 8])


@pytest.mark.parametrize("least", [1, 2, 16])
def test_every_token_sees_its_own_sequence_and_nothing_else(monkeypatch, least: int) -> None:
    monkeypatch.setattr(packing, "LEAST_SHARED", least)
    for seed in range(100):
        sequences, groups, multiple = random_case(seed)
        packed = pack(sequences, groups)
        packed = packed.filled(-(-packed.input_ids.size // multiple) * multiple)
        trees, row = packed.trees, packed.input_ids[0]
        assert trees is not None
        place = np.arange(trees.width)
        assert len(row) == trees.width > 0
        assert trees.width % multiple == 0
        for sequence, places in zip(sequences, packed.places, strict=True):
            assert row[places].tolist() == sequence.tolist()
            assert trees.positions[places].tolist() == list(range(len(sequence)))
            for position, own in enumerate(places):  # as flex_attention is told
                seen = np.flatnonzero((place <= own) & (own < trees.subtree_ends))
                assert seen.tolist() == places[: position + 1].tolist()
        check_blocks(trees)
        check_rows(trees)


def check_blocks(trees: Trees) -> None:
    """The blocks follow one another, and a block's keys are what its queries see."""
    place = np.arange(trees.width)
    assert [p for block in trees.blocks for p in range(block.own.start, block.own.stop)] == place.tolist()
    indices = trees.on(torch.device("cpu"))
    queries, keys, most_queries, most_keys = indices.cumulative
    assert (queries.diff().max(), keys.diff().max()) == (most_queries, most_keys)
    for block, start, end in zip(trees.blocks, keys[:-1], keys[1:], strict=True):
        of_block = indices.keys[start:end].tolist()
        assert len(of_block) == block.num_ahead + block.num_own
        for number, own in enumerate(range(block.own.start, block.own.stop), start=block.num_ahead + 1):
            assert of_block[:number] == np.flatnonzero((place <= own) & (own < trees.subtree_ends)).tolist()


def check_rows(trees: Trees) -> None:
    """Unfolded rows hold the sequences, and every place is found in one of them."""
    indices = trees.on(torch.device("cpu"))
    (rows,), back = indices.rows(10**6, 10**9)
    assert rows.flatten()[back].tolist() == list(range(trees.width))
    for row, places in zip(rows.tolist(), sorted(trees.sequences, key=len, reverse=True), strict=True):
        assert row[: len(places)] == places.tolist()


def test_windows_and_chunks_are_measured_in_the_sequence() -> None:
    cpu = torch.device("cpu")
    assert visible_keys(2, 4, (None, None), cpu)[0, 0].int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert visible_keys(2, 4, (2, None), cpu)[0, 0].int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]
    assert visible_keys(2, 4, (None, 3), cpu)[0, 0].int().tolist() == [[1, 1, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize(("places", "scores"), [(1, 1), (12, 10**9), (10**6, 80), (20, 100)])
def test_rows_come_in_groups_of_like_length_within_limits(places: int, scores: int) -> None:
    trees = Trees([4, 3, 9, 2, 5, 1, 7], [-1, 0, 0, -1, 3, 3, -1])
    groups, back = trees.on(torch.device("cpu")).rows(places, scores)
    assert trees.on(torch.device("cpu")).rows(places, scores)[0] is groups
    flat = torch.cat([group.flatten() for group in groups])
    assert flat[back].tolist() == list(range(trees.width))
    assert [len(row) for group in groups for row in group] == sorted(
        (len(row) for group in groups for row in group), reverse=True
    )
    for group in groups:
        rows, longest = group.shape
        assert rows == 1 or (rows * longest <= places and rows * longest**2 <= scores)
    assert sum(len(group) for group in groups) == len(trees.sequences)
