"""The reference pass over rows with images: batches, workers, memory, and processes, with a collator made up for that."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.processes import together
from tests.support.stored import REFERENCE
from trl_dpo_ext import _trl
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.precompute.image_batching import make_image_batches
from trl_dpo_ext.reference.precompute.image_pass import ImagePass
from trl_dpo_ext.reference.precompute.image_preparation import Workers
from trl_dpo_ext.reference.precompute.image_rows import ImageRows
from trl_dpo_ext.reference.precompute.pass_run import Fetch, PrecomputeStats
from trl_dpo_ext.reference.precompute.processes import Communicator
from trl_dpo_ext.reference.precompute.sequences import batch_sequences
from trl_dpo_ext.reference.store.keys import pack_keys, sequence_key, unpack_keys
from trl_dpo_ext.reference.store.store import Store

Row = dict[str, Any]


def row(number: int) -> Row:
    """Of three to nine tokens and up to two images."""
    prompt = [number + 1, 3] + [7] * (number % 5)
    return {"prompt": prompt, "sides": ([5] * (1 + number % 2), [6, number + 1]), "images": [number] * (number % 3)}


def collate(rows: list[Row]) -> dict[str, Any]:
    """In TRL's layout: chosen half first, images of both halves."""
    rows = [each.pop("row") if "row" in each else each for each in rows]
    sequences = [(each["prompt"], each["sides"][side]) for side in range(2) for each in rows]
    width = max(len(prompt) + len(side) for prompt, side in sequences)
    batch = {name: torch.zeros(len(sequences), width, dtype=torch.long) for name in _trl.TEXT_KEYS[:3]}
    for at, (prompt, side) in enumerate(sequences):
        end = len(prompt) + len(side)
        batch["input_ids"][at, :end] = torch.tensor(prompt + side)
        batch["attention_mask"][at, :end] = 1
        batch["completion_mask"][at, len(prompt) : end] = 1
    images = [float(image) for each in rows for image in each["images"]] * 2
    return {**batch, "pixel_values": torch.tensor(images)} if images else batch


def scored(batch: dict[str, Any], rows: list[Row]) -> list[np.ndarray]:
    """Made-up log-probs of every row of a batch, which depend on its tokens and its images."""
    return [
        np.zeros(0, np.float32) if each is None else of(each.prompt, each.completion) for each in batch_sequences(batch)
    ]


def of(prompt: Any, completion: Any) -> np.ndarray:
    return -(np.asarray(completion) + np.sum(prompt) / 8).astype(np.float32)


def rows_of(data: list[Row]) -> ImageRows:
    keys = [[sequence_key(each["prompt"], side) for side in each["sides"]] for each in data]
    packed = pack_keys([key for sides in keys for key in sides]).reshape(-1, 2, 2)
    tokens = np.array([len(each["prompt"]) + max(map(len, each["sides"])) for each in data], np.int32)
    images = np.array([len(each["images"]) for each in data], np.int32)
    scored = np.array([[len(side) for side in each["sides"]] for each in data], np.int32).reshape(-1, 2)
    return ImageRows(np.arange(len(data)), packed, np.ones((len(data), 2), bool), tokens, images, scored)


def made(folder: Path, data: list[Row], before: Any = lambda batch: None, **settings: Any) -> ImagePass:
    def score(batch: dict[str, Any]) -> Fetch:
        before(batch)
        logps = scored(batch, data)
        return lambda: logps

    settings = {"collator": collate, "max_tokens": 60, "disable_tqdm": True, **settings}
    return ImagePass(Store.open(folder, REFERENCE), data, None, score=score, **settings)


def assert_right(folder: Path, data: list[Row]) -> None:
    wanted = {sequence_key(each["prompt"], side): of(each["prompt"], side) for each in data for side in each["sides"]}
    loaded = Store.open(folder, REFERENCE).load(wanted)
    for key, logps in wanted.items():
        np.testing.assert_array_equal(loaded[key], logps)


DATA = [row(number) for number in range(30)]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_row_is_computed_and_found_under_its_keys(tmp_path, workers: int) -> None:
    stats = made(tmp_path, DATA, workers=Workers(workers)).run(rows_of(DATA))
    assert_right(tmp_path, DATA)
    assert stats.computed == 60
    assert stats.scored == sum(len(side) for each in DATA for side in each["sides"])
    assert stats.tokens == sum(2 * len(each["prompt"]) + sum(map(len, each["sides"])) for each in DATA)
    assert stats.images == 2 * sum(len(each["images"]) for each in DATA)
    assert f"{stats.images} images" in str(stats)


def test_batches_hold_rows_of_like_length_within_the_limit_and_no_row_without_images_beside_one_with(tmp_path) -> None:
    shapes = []
    mine = made(tmp_path, DATA, lambda batch: shapes.append((batch["input_ids"].shape, "pixel_values" in batch)))
    stats = mine.run(rows_of(DATA))
    assert all(rows * width <= 60 for (rows, width), _ in shapes)
    for kind in (True, False):
        widths = [width for (_, width), has in shapes if has == kind]
        assert widths == sorted(widths, reverse=True)
        assert len(widths) > 2
    assert [has for _, has in shapes] == sorted((has for _, has in shapes), reverse=True)
    assert stats.positions == sum(rows * width for (rows, width), _ in shapes) < 1.2 * stats.tokens


def test_a_row_longer_than_the_limit_is_a_batch_alone() -> None:
    rows = rows_of(DATA)
    assert [batch.size for batch in make_image_batches(rows, 1)] == [1] * len(rows.rows)
    assert sum(batch.size for batch in make_image_batches(rows, 50)) == len(rows.rows)


def test_only_what_is_lacking_is_written(tmp_path) -> None:
    rows = rows_of(DATA)
    rows.lacking[::2, 0] = rows.lacking[1::2, 1] = False
    assert made(tmp_path, DATA).run(rows).computed == 30
    store, keys = Store.open(tmp_path, REFERENCE), rows.keys.reshape(-1, 2)
    assert store.lacks(keys).tolist() == (~rows.lacking).ravel().tolist()


def test_a_side_of_which_nothing_is_scored_is_stored_so_that_it_is_found(tmp_path) -> None:
    def cut(rows: list[Row]) -> dict[str, Any]:
        return {name: value[:, :3] if value.dim() > 1 else value for name, value in collate(rows).items()}

    rows = rows_of(DATA)
    made(tmp_path, DATA, collator=cut).run(rows)
    store = Store.open(tmp_path, REFERENCE)
    keys = unpack_keys(rows.keys.reshape(-1, 2))
    assert not store.missing(keys)
    lengths = {len(values) for values in store.load(keys).values(keys)}
    assert 0 in lengths
    assert max(lengths) == 1


def test_the_random_state_of_the_run_is_left_as_it_is(tmp_path) -> None:
    """Otherwise a run with a store would drop out other units than one with a live reference."""
    before = torch.get_rng_state()
    made(tmp_path, DATA, workers=Workers(2)).run(rows_of(DATA))
    assert torch.equal(before, torch.get_rng_state())


# Memory


def limited(most: int, tried: list[int]) -> Any:
    def before(batch: dict[str, Any]) -> None:
        tried.append(batch["input_ids"].numel())
        if tried[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    return before


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_that_does_not_fit_is_halved_and_so_are_those_that_workers_have_made(tmp_path, workers: int) -> None:
    tried: list[int] = []
    mine = made(tmp_path, DATA, limited(40, tried), max_tokens=120, workers=Workers(workers))
    assert mine.run(rows_of(DATA)).computed == 60
    assert len([size for size in tried if size > 40]) in (1, 2)  # then the limit is known
    assert mine.max_tokens <= 60
    assert_right(tmp_path, DATA)


def test_batches_that_no_worker_has_taken_up_are_cut_by_the_lowered_limit(tmp_path) -> None:
    """Otherwise every later batch would be prepared whole, in vain, and its halves in the main process."""
    prepared: list[int] = []

    def counting(rows: list[Row]) -> dict[str, Any]:
        prepared.append(len(rows))
        return collate(rows)

    made(tmp_path, DATA, limited(40, []), max_tokens=120, collator=counting).run(rows_of(DATA))
    assert 0 < sum(prepared) - len(DATA) < len(DATA) / 2


def test_one_row_that_does_not_fit_is_refused_with_what_to_set_and_finished_rows_are_kept(tmp_path) -> None:
    def never(batch: dict[str, Any]) -> None:
        if "pixel_values" in batch and batch["pixel_values"][0] == 1.0:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(
        InputError, match=r"one row with 1 images, .* Let the processor make smaller images .*max_pixel"
    ):
        made(tmp_path, DATA, never, max_tokens=20).run(rows_of(DATA))
    assert len(Store.open(tmp_path, REFERENCE)) > 20


def test_where_forwards_wait_for_one_another_a_batch_that_does_not_fit_is_refused_with_the_flag(tmp_path) -> None:
    with pytest.raises(InputError, match=r"Set --precompute_ref_max_tokens below \d+, let the processor"):
        made(tmp_path, DATA, limited(10, []), synchronous_forward=True).run(rows_of(DATA))


# Errors of preparation


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_the_collator_names_the_row_and_keeps_its_message(tmp_path, workers: int) -> None:
    def broken(rows: list[Row]) -> dict[str, Any]:
        if any(each["prompt"][0] == 8 for each in rows):
            raise OSError("image file is truncated (3 bytes not processed)")
        return collate(rows)

    with pytest.raises(InputError, match=r"^Row 7 of the dataset .* \(OSError: image file is truncated"):
        made(tmp_path, DATA, collator=broken, workers=Workers(workers), max_tokens=20).run(rows_of(DATA))
    assert len(Store.open(tmp_path, REFERENCE)) > 0


def test_rows_that_fail_only_together_are_named_together(tmp_path) -> None:
    def broken(rows: list[Row]) -> dict[str, Any]:
        if len(rows) > 1:
            raise ValueError("sizes differ")
        return collate(rows)

    with pytest.raises(
        InputError, match=r"^Rows \d+, \d+, .*together cannot be prepared .*\(ValueError: sizes differ\)"
    ):
        made(tmp_path, DATA, collator=broken).run(rows_of(DATA))


def test_a_worker_that_is_killed_is_an_error_that_says_what_to_lower(tmp_path) -> None:
    def killed(rows: list[Row]) -> dict[str, Any]:
        if rows[0]["prompt"][0] == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return collate(rows)

    with pytest.raises(InputError, match="Lower --dataloader_num_workers"):
        made(tmp_path, DATA, collator=killed, workers=Workers(1), max_tokens=20).run(rows_of(DATA))


def test_rows_whose_log_probs_are_not_finite_are_left_out_where_the_caller_wants_that(tmp_path) -> None:
    data = [*DATA[:5], {"prompt": [np.inf, 3], "sides": ([5], [6]), "images": []}]

    def overflow(rows: list[Row]) -> dict[str, Any]:
        return collate([{**each, "prompt": [9, 3]} if each["prompt"][0] == np.inf else each for each in rows])

    rows, nonfinite = rows_of([*DATA[:5], {**data[5], "prompt": [9, 3]}]), []

    def score(batch: dict[str, Any]) -> Fetch:
        return lambda: [
            values * np.inf if ids[0] == 9 else values
            for values, ids in zip(scored(batch, data), batch["input_ids"], strict=True)
        ]

    mine = made(tmp_path, data, collator=overflow, nonfinite=nonfinite)
    mine.score = score
    mine.run(rows)
    assert {*nonfinite} == {*unpack_keys(rows.keys[5])}
    assert_right(tmp_path, DATA[:5])


# Processes


def on(folder: Path, data: list[Row], **settings: Any) -> Any:
    """What each of several processes does: (its statistics, whether each of its forwards had images)."""

    def work(communicator: Communicator) -> tuple[PrecomputeStats, list[bool]]:
        calls: list[bool] = []
        mine = made(
            folder, data, lambda batch: calls.append("pixel_values" in batch), communicator=communicator, **settings
        )
        return mine.run(rows_of(data)), calls

    return work


def test_processes_share_rows(tmp_path) -> None:
    (first, some), (second, others) = together(2, on(tmp_path, DATA))
    assert first.computed == second.computed == 60
    assert min(len(some), len(others)) > 2
    assert_right(tmp_path, DATA)


@pytest.mark.parametrize("data", [DATA, DATA[:1], DATA[:3], [DATA[0], DATA[1]], DATA[1:3], DATA[:7]], ids=len)
def test_in_lockstep_all_processes_call_the_vision_tower_in_the_same_forwards(tmp_path, data: list[Row]) -> None:
    """Where weights are gathered for each module, a process that runs other modules than the rest waits forever."""
    results = together(3, on(tmp_path, data, synchronous_forward=True, max_tokens=30))
    calls = [each for _, each in results]
    assert calls[0] == calls[1] == calls[2] != []
    assert results[0][0].computed == 2 * len(data)
    assert_right(tmp_path, data)


def test_in_lockstep_an_error_of_preparation_is_raised_on_every_process(tmp_path) -> None:
    def broken(rows: list[Row]) -> dict[str, Any]:
        raise OSError("image file is truncated")

    results = together(2, on(tmp_path, DATA[:1], synchronous_forward=True, collator=broken))
    assert all(isinstance(each, InputError) and "image file is truncated" in str(each) for each in results)


# What both sides have in common


def test_images_of_both_sides_stand_in_a_batch_once_where_they_are_the_same(tmp_path) -> None:
    seen = []
    mine = made(tmp_path, DATA, seen.append, images_once=True, workers=Workers(1))
    stats = mine.run(rows_of(DATA))
    assert stats.images == sum(len(each["images"]) for each in DATA)
    once = [batch for batch in seen if _trl.IMAGES_ONCE in batch]
    assert sum(len(batch["pixel_values"]) for batch in once) == stats.images
    assert all("pixel_values" not in batch for batch in seen if _trl.IMAGES_ONCE not in batch)
    assert_right(tmp_path, DATA)
