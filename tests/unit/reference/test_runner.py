"""How processes share a pass: each sequence once where they see one folder and have the same data, their own otherwise."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trl_dpo_ext.reference.identity.identity import Identity
from trl_dpo_ext.reference.precompute.batching import Batch
from trl_dpo_ext.reference.precompute.runner import Communicator, PrecomputeStats, ReferencePass
from trl_dpo_ext.reference.precompute.sequences import Sequence
from trl_dpo_ext.reference.store.store import Store

IDENTITY = Identity(weights="memory:f00d", config="{}")
COUNT = 2


class Meeting:
    """Gathers objects among threads that stand for processes."""

    def __init__(self) -> None:
        self.barrier, self.values = threading.Barrier(COUNT, timeout=30), [None] * COUNT

    def of(self, index: int) -> Communicator:
        def gather(value: Any) -> list[Any]:
            self.values[index] = value
            self.barrier.wait()
            everyone = list(self.values)
            self.barrier.wait()
            return everyone

        return Communicator(index, COUNT, gather)


def work(start: int, stop: int) -> dict[bytes, Sequence]:
    made = [
        Sequence(np.arange(n, n + 4, dtype=np.int32), np.arange(n % 5 + 1, dtype=np.int32), 3)
        for n in range(start, stop)
    ]
    return {one.key: one for one in made}


def logps(sequence: Sequence) -> np.ndarray:
    return -(sequence.completion + sequence.prompt[0] / 10).astype(np.float32)


def run(
    folders: list[Path], data: list[dict[bytes, Sequence]], synchronous_forward: bool = False
) -> tuple[list, list[int]]:
    """Both processes' reports, and how many forwards each ran."""
    meeting, forwards = Meeting(), [0] * COUNT

    def process(index: int) -> PrecomputeStats:
        def score(batch: Batch) -> list[np.ndarray]:
            forwards[index] += 1
            return [logps(sequence) for row in batch.rows for sequence in row.sequences]

        store = Store.open(folders[index], IDENTITY)
        mine = ReferencePass(
            store, score, 8, 30, synchronous_forward=synchronous_forward, processes=meeting.of(index), silent=True
        )
        return mine.run(data[index])

    with ThreadPoolExecutor(COUNT) as pool:
        return list(pool.map(process, range(COUNT))), forwards


def assert_right(folder: Path, data: dict[bytes, Sequence]) -> None:
    loaded = Store.open(folder, IDENTITY).load(data)
    for key, sequence in data.items():
        np.testing.assert_array_equal(loaded[key], logps(sequence))


def test_processes_that_see_one_folder_compute_each_sequence_once(tmp_path) -> None:
    data = work(0, 41)
    reports, forwards = run([tmp_path / "refs"] * 2, [data, data])
    assert [report.computed for report in reports] == [41, 41]  # over both
    assert min(forwards) > 0
    assert_right(tmp_path / "refs", data)
    assert not list((tmp_path / "refs").glob(".process-*"))


def test_processes_with_folders_of_their_own_fill_both(tmp_path) -> None:
    data = work(0, 41)
    reports, _ = run([tmp_path / "a", tmp_path / "b"], [data, data])
    assert [report.computed for report in reports] == [82, 82]
    for name in "ab":
        assert_right(tmp_path / name, data)


def test_processes_with_data_of_their_own_compute_their_own(tmp_path) -> None:
    first, second = work(0, 20), work(15, 41)
    run([tmp_path / "refs"] * 2, [first, second])
    assert_right(tmp_path / "refs", {**first, **second})


@pytest.mark.parametrize("stop", [1, 2, 7])
def test_in_lockstep_each_process_runs_as_many_forwards_as_the_other(tmp_path, stop: int) -> None:
    data = work(0, stop)
    _, forwards = run([tmp_path / "refs"] * 2, [data, data], synchronous_forward=True)
    assert forwards[0] == forwards[1] > 0
    assert_right(tmp_path / "refs", data)


def test_what_is_there_is_found(tmp_path) -> None:
    run([tmp_path / "refs"] * 2, [work(0, 10)] * 2)
    (report, _), forwards = run([tmp_path / "refs"] * 2, [work(5, 20)] * 2)
    assert (report.found, report.computed) == (5, 10)
    assert "5 sequences found, 10 computed" in str(report)
    assert sum(forwards) > 0
