"""The reference pass: how processes share its work, and what it does where memory runs out."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from trl_dpo_ext.checks.machine import is_out_of_memory
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.identity.identity import Identity
from trl_dpo_ext.reference.precompute.batching import MOST_KEYS, Batch
from trl_dpo_ext.reference.precompute.pass_run import Fetch, PrecomputeStats
from trl_dpo_ext.reference.precompute.processes import Communicator
from trl_dpo_ext.reference.precompute.runner import ReferencePass, default_max_tokens, fetched_later
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
        def start(batch: Batch) -> Fetch:
            forwards[index] += 1
            return lambda: [logps(sequence) for sequence in batch.sequences]

        store = Store.open(folders[index], IDENTITY)
        mine = ReferencePass(
            store,
            start,
            max_tokens[index],
            synchronous_forward=synchronous_forward,
            communicator=meeting.of(index),
            disable_tqdm=True,
        )
        return mine.run(missing_of(store, data[index]))

    with ThreadPoolExecutor(COUNT) as pool:
        return list(pool.map(process, range(COUNT))), forwards


def missing_of(store: Store, data: dict[bytes, TokenSequence]) -> dict[bytes, TokenSequence]:
    return {key: data[key] for key in store.missing(data)}


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


def test_what_is_there_is_not_computed_again(tmp_path) -> None:
    run([tmp_path / "refs"] * 2, [work(0, 10)] * 2)
    (report, _), forwards = run([tmp_path / "refs"] * 2, [work(5, 20)] * 2)
    assert report.computed == 10
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


def alone(store: Store, max_tokens: int, before: Any) -> ReferencePass:
    """A pass of one process that calls `before` with every batch that it tries."""

    def start(batch: Batch) -> Fetch:
        before(batch)
        return lambda: [logps(sequence) for sequence in batch.sequences]

    return ReferencePass(store, start, max_tokens, disable_tqdm=True)


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


LLAMA_8B = SimpleNamespace(
    hidden_size=4096,
    intermediate_size=14336,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    _attn_implementation="sdpa",
)


def test_memory_that_pytorch_has_cached_counts_as_free(monkeypatch) -> None:
    """Otherwise a later pass gets smaller batches than the first, whose blocks PyTorch keeps."""

    def limit(free: int, reserved: int, allocated: int) -> int:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 80 << 30))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: reserved)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: allocated)
        return default_max_tokens(torch.device("cuda"), LLAMA_8B, torch.bfloat16)

    model = 16 << 30
    first, later = limit(20 << 30, model, model), limit(4 << 30, model + (16 << 30), model)
    assert later == first == int((20 << 30) / 2 / (2 * (10 * 4096 + 3 * 14336 + MOST_KEYS * 2 * 1024)))
    assert limit(1 << 20, model, model) == 4096
    assert limit(79 << 30, 0, 0) == 131072


def test_eager_attention_counts_the_scores_of_the_longest_sequence(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (20 << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 0)
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32}

    def limit(attention: str, longest: int) -> int:
        config = SimpleNamespace(**sizes, _attn_implementation=attention)
        return default_max_tokens(torch.device("cuda"), config, torch.bfloat16, longest)

    assert limit("sdpa", 4096) == limit("sdpa", 1) > limit("eager", 1024) > limit("eager", 2048)
    assert limit("eager", 2048) == int(
        (20 << 30) / 2 / (2 * (10 * 4096 + 3 * 14336 + MOST_KEYS * 2 * 4096) + 32 * 2048 * 8)
    )


def order_of(store: Store, batches: int, fail_at: int | None = None) -> list[str]:
    """In which order batches are started and fetched; one of them fails."""
    seen: list[str] = []

    def start(batch: Batch) -> Fetch:
        number = len([each for each in seen if each.startswith("start")])
        seen.append(f"start {number}")
        if number == fail_at:
            raise RuntimeError("CUDA error: device-side assert triggered")

        def fetch() -> list[np.ndarray]:
            seen.append(f"fetch {number}")
            return [logps(sequence) for sequence in batch.sequences]

        return fetch

    with contextlib.suppress(RuntimeError):
        ReferencePass(store, start, 1, disable_tqdm=True).run(work(0, batches))
    return seen


def test_a_batch_is_started_before_the_one_before_is_fetched(tmp_path) -> None:
    """A GPU would wait otherwise while the CPU takes results over and packs the next batch."""
    store = Store.open(tmp_path / "refs", IDENTITY)
    assert order_of(store, 3) == ["start 0", "start 1", "fetch 0", "start 2", "fetch 1", "fetch 2"]
    assert len(store) == 3


def test_what_was_started_before_an_error_is_fetched_and_kept(tmp_path) -> None:
    store = Store.open(tmp_path / "refs", IDENTITY)
    assert order_of(store, 3, fail_at=2) == ["start 0", "start 1", "fetch 0", "start 2", "fetch 1"]
    assert len(store) == 2


def test_memory_that_runs_out_while_results_are_fetched_halves_that_batch(tmp_path) -> None:
    sizes: list[int] = []

    def start(batch: Batch) -> Fetch:
        def fetch() -> list[np.ndarray]:
            sizes.append(batch.positions)
            if batch.positions > 20:
                raise RuntimeError("CUDA error: out of memory")
            return [logps(sequence) for sequence in batch.sequences]

        return fetch

    data, store = work(0, 41), Store.open(tmp_path / "refs", IDENTITY)
    assert ReferencePass(store, start, 80, disable_tqdm=True).run(data).computed == 41
    assert max(sizes) > 20
    assert_right(tmp_path / "refs", data)


def test_results_are_copied_to_the_cpu_without_waiting_and_awaited_by_an_event(monkeypatch) -> None:
    """A stand-in for a tensor on a GPU: the copy is started at once, and waited for when results are asked for."""
    done: list[str] = []

    class OnGpu:
        is_cuda, device = True, "cuda:1"

        def float(self) -> OnGpu:
            return self

        def to(self, device: str, non_blocking: bool) -> torch.Tensor:
            assert (device, non_blocking) == ("cpu", True)
            done.append("copy")
            return torch.arange(5.0)

    stream = SimpleNamespace(record_event=lambda: SimpleNamespace(synchronize=lambda: done.append("wait")))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream if device == "cuda:1" else None)
    fetch = fetched_later(OnGpu(), [2, 3])  # type: ignore[arg-type]
    assert done == ["copy"]
    assert [each.tolist() for each in fetch()] == [[0.0, 1.0], [2.0, 3.0, 4.0]]
    assert done == ["copy", "wait"]


@pytest.mark.parametrize(
    ("changes", "vectors"),
    [
        ({}, 10 * 4096 + 3 * 14336 + MOST_KEYS * 2 * 1024),
        ({"num_key_value_heads": None}, 10 * 4096 + 3 * 14336 + MOST_KEYS * 2 * 4096),
        ({"head_dim": 256}, 10 * 4096 + 3 * 14336 + MOST_KEYS * 2 * 2048),
        ({"intermediate_size": None}, 10 * 4096 + 3 * 4 * 4096 + MOST_KEYS * 2 * 1024),
        (
            {"intermediate_size": 6144, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
            10 * 4096 + 3 * 6144 + MOST_KEYS * 2 * 1024,
        ),
        ({"num_experts_per_tok": 2}, 10 * 4096 + 3 * 2 * 14336 + MOST_KEYS * 2 * 1024),
    ],
    ids=["grouped heads", "as many heads", "wide heads", "no size of the MLP", "small experts", "large experts"],
)
def test_the_default_limit_counts_what_a_position_of_a_packed_row_takes(monkeypatch, changes, vectors) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (16 << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 0)
    config = SimpleNamespace(**{**vars(LLAMA_8B), **changes})
    assert default_max_tokens(torch.device("cuda"), config, torch.bfloat16) == int((8 << 30) / (2 * vectors))
