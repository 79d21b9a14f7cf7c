"""The reference pass: how processes share its work, and what it does where memory runs out."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.identity.identity import Identity
from trl_dpo_ext.reference.precompute.batching import Batch
from trl_dpo_ext.reference.precompute.runner import (
    Communicator,
    PrecomputeStats,
    ReferencePass,
    default_max_tokens,
    is_out_of_memory,
)
from trl_dpo_ext.reference.precompute.sequences import TokenSequence
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


def work(start: int, stop: int) -> dict[bytes, TokenSequence]:
    made = [
        TokenSequence(np.arange(n, n + 4, dtype=np.int32), np.arange(n % 5 + 1, dtype=np.int32), 3)
        for n in range(start, stop)
    ]
    return {one.key: one for one in made}


def logps(sequence: TokenSequence) -> np.ndarray:
    return -(sequence.completion + sequence.prompt[0] / 10).astype(np.float32)


def run(
    folders: list[Path],
    data: list[dict[bytes, TokenSequence]],
    synchronous_forward: bool = False,
    max_tokens: tuple[int, ...] = (30, 30),
) -> tuple[list, list[int]]:
    """Both processes' reports, and how many forwards each ran."""
    meeting, forwards = Meeting(), [0] * COUNT

    def process(index: int) -> PrecomputeStats:
        def score(batch: Batch) -> list[np.ndarray]:
            forwards[index] += 1
            return [logps(sequence) for sequence in batch.sequences]

        store = Store.open(folders[index], IDENTITY)
        mine = ReferencePass(
            store,
            score,
            max_tokens[index],
            synchronous_forward=synchronous_forward,
            communicator=meeting.of(index),
            disable_tqdm=True,
        )
        return mine.run(data[index])

    with ThreadPoolExecutor(COUNT) as pool:
        return list(pool.map(process, range(COUNT))), forwards


def assert_right(folder: Path, data: dict[bytes, TokenSequence]) -> None:
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


@pytest.mark.parametrize("limits", [(26_000, 25_650), (25_650, 26_000), (131_072, 4096)])
def test_processes_with_unlike_free_memory_make_the_same_batches(tmp_path, limits: tuple[int, int]) -> None:
    """Each with its own limit would cut the work elsewhere and leave out sequences between two of its batches."""
    random = np.random.default_rng(0)
    made = [
        TokenSequence(np.arange(n, n + 50, dtype=np.int32), np.arange(length, dtype=np.int32), 49)
        for n, length in enumerate(random.integers(20, 900, size=800))
    ]
    data = {one.key: one for one in made}
    reports, forwards = run([tmp_path / "refs"] * 2, [data, data], max_tokens=limits)
    assert [report.computed for report in reports] == [800, 800]
    assert min(forwards) > 0
    assert_right(tmp_path / "refs", data)


def test_a_store_that_stays_incomplete_is_named_with_its_likely_cause(tmp_path) -> None:
    with_a_silent_peer = Communicator(0, 2, lambda value: [value, value])
    store = Store.open(tmp_path / "refs", IDENTITY)
    reference_pass = alone(store, 30, lambda batch: None)
    reference_pass.communicator = with_a_silent_peer
    with pytest.raises(InputError, match=r"\d+ of 41 sequences are still missing from .*refs .* a shared filesystem"):
        reference_pass.run(work(0, 41))


def alone(store: Store, max_tokens: int, before: Any) -> ReferencePass:
    """A pass of one process that calls `before` with every batch that it tries."""

    def score(batch: Batch) -> list[np.ndarray]:
        before(batch)
        return [logps(sequence) for sequence in batch.sequences]

    return ReferencePass(store, score, max_tokens, disable_tqdm=True)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError(
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call"
    ),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError(
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input."
    ),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    RuntimeError("FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed for size::8"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:40])
def test_every_librarys_way_to_run_out_of_memory_halves_the_batch(tmp_path, error: RuntimeError) -> None:
    tried = []

    def limited(batch: Batch) -> None:
        tried.append(batch.positions)
        if batch.positions > 20:
            raise error

    data = work(0, 41)
    assert is_out_of_memory(error)
    assert alone(Store.open(tmp_path / "refs", IDENTITY), 80, limited).run(data).computed == 41
    assert max(tried) > 20
    assert_right(tmp_path / "refs", data)


def test_other_errors_of_the_model_are_raised_and_what_was_computed_is_kept(tmp_path) -> None:
    tried = []

    def fail(batch: Batch) -> None:
        tried.append(batch)
        if len(tried) == 3:
            raise RuntimeError("CUDA error: device-side assert triggered")

    store = Store.open(tmp_path / "refs", IDENTITY)
    with pytest.raises(RuntimeError, match="device-side assert"):
        alone(store, 30, fail).run(work(0, 41))
    assert len(store) == sum(len(batch.keys) for batch in tried[:2])


def test_one_sequence_that_does_not_fit_is_refused_with_the_flag_and_the_librarys_words(tmp_path) -> None:
    def never(batch: Batch) -> None:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    with pytest.raises(InputError, match=r"--precompute_ref_max_tokens below \d+ .*CUBLAS_STATUS_ALLOC_FAILED"):
        alone(Store.open(tmp_path / "refs", IDENTITY), 80, never).run(work(0, 9))


def test_what_halving_learned_is_there_for_the_next_pass(tmp_path) -> None:
    failures = []

    def limited(batch: Batch) -> None:
        if batch.positions > 20:
            failures.append(batch)
            raise torch.OutOfMemoryError("CUDA out of memory.")

    store = Store.open(tmp_path / "refs", IDENTITY)
    first = alone(store, 80, limited)
    first.run(work(0, 41))
    assert failures
    assert 10 <= first.max_tokens <= 20
    failures.clear()
    alone(store, first.max_tokens, limited).run(work(41, 80))
    assert not failures


def test_after_a_pass_every_process_has_the_smallest_limit(tmp_path) -> None:
    meeting, limits = Meeting(), [70, 50]

    def process(index: int) -> int:
        mine = alone(Store.open(tmp_path / "refs", IDENTITY), limits[index], lambda batch: None)
        mine.communicator = meeting.of(index)
        mine.run(work(0, 20))
        return mine.max_tokens

    with ThreadPoolExecutor(COUNT) as pool:
        assert list(pool.map(process, range(COUNT))) == [50, 50]


def test_memory_that_pytorch_has_cached_counts_as_free(monkeypatch) -> None:
    """Otherwise a later pass gets smaller batches than the first, whose blocks PyTorch keeps."""

    def limit(free: int, reserved: int, allocated: int) -> int:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 80 << 30))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: reserved)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: allocated)
        config = SimpleNamespace(hidden_size=4096, intermediate_size=14336)
        return default_max_tokens(torch.device("cuda"), config, torch.bfloat16)

    model = 16 << 30
    first, later = limit(20 << 30, model, model), limit(4 << 30, model + (16 << 30), model)
    assert later == first == int((20 << 30) / 2 / (2 * (10 * 4096 + 3 * 14336)))
    assert limit(1 << 20, model, model) == 4096
    assert limit(79 << 30, 0, 0) == 131072
