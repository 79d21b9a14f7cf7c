"""All processes go on together or fail together; here they are threads that exchange what they would gather."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from trl_dpo_ext.checks.machine import is_out_of_memory
from trl_dpo_ext.distributed import agreement
from trl_dpo_ext.distributed.agreement import Agreement, SharedFailure

PROCESSES = 3


class Exchange:
    """Gathers over threads. A thread that the others wait for in vain breaks the barrier, which is an error in all."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(PROCESSES, timeout=5)
        self.slots: list[Any] = [None] * PROCESSES
        self.rank = threading.local()

    def __call__(self, value: Any) -> list[Any]:
        self.slots[self.rank.value] = value
        self.barrier.wait()
        found = list(self.slots)
        self.barrier.wait()
        return found


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], Any]], list[Any]]:
    exchange = Exchange()
    monkeypatch.setattr(agreement, "gather", lambda value: torch.cat(exchange(value)))
    monkeypatch.setattr(agreement._trl, "gather_object", exchange)

    def on_all(work: Callable[[int], Any]) -> list[Any]:
        results: list[Any] = [None] * PROCESSES

        def one(rank: int) -> None:
            exchange.rank.value = rank
            try:
                results[rank] = work(rank)
            except BaseException as error:
                results[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(PROCESSES)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    return on_all


def together() -> Agreement:
    return Agreement(torch.device("cpu"), PROCESSES)


def test_without_a_failure_each_has_its_own_result(run) -> None:
    assert run(lambda rank: together().run(lambda: rank)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("errors", "message", "out_of_memory"),
    [
        ({1: ValueError("one")}, "ValueError: one", False),
        ({2: torch.OutOfMemoryError("CUDA out of memory.\nmore")}, "OutOfMemoryError: CUDA out of memory.", True),
        ({0: MemoryError("full"), 2: ValueError("two")}, "MemoryError: full", False),
    ],
)
def test_a_failure_of_one_is_one_of_all(run, errors, message: str, out_of_memory: bool) -> None:
    def work(rank: int) -> None:
        if rank in errors:
            raise errors[rank]

    found = run(lambda rank: together().run(lambda: work(rank)))
    assert [str(each) for each in found] == [message] * PROCESSES
    assert [each.out_of_memory for each in found] == [out_of_memory] * PROCESSES


def test_in_lockstep_all_run_as_many_forwards_as_the_longest(run) -> None:
    forwards = [0] * PROCESSES

    def work(rank: int) -> str:
        def forward() -> None:
            forwards[rank] += 1

        def mine(turn: Callable[[], None]) -> str:
            for _ in range(2 + 3 * rank):
                turn()
                forward()
            return f"done {rank}"

        return together().run_in_lockstep(mine, forward)

    assert run(work) == ["done 0", "done 1", "done 2"]
    assert forwards == [8, 8, 8]


@pytest.mark.parametrize("failing", range(PROCESSES))
def test_in_lockstep_a_failure_between_forwards_ends_all_after_equally_many(run, failing: int) -> None:
    forwards = [0] * PROCESSES

    def work(rank: int) -> None:
        def forward() -> None:
            forwards[rank] += 1

        def mine(turn: Callable[[], None]) -> None:
            for number in range(2 + rank):
                if rank == failing and number == 1:
                    raise ValueError("between")
                turn()
                forward()

        together().run_in_lockstep(mine, forward)

    found = run(work)
    assert all(isinstance(each, SharedFailure) and str(each) == "ValueError: between" for each in found)
    assert forwards == [1, 1, 1]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (MemoryError(), True),
        (RuntimeError("cuBLAS: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
    ],
)
def test_out_of_memory_is_told_from_other_failures(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_one_process_alone_raises_what_it_has_to_say() -> None:
    alone = Agreement(torch.device("cpu"), 1)
    with pytest.raises(SharedFailure, match="ValueError: alone"):
        alone.run(lambda: (_ for _ in ()).throw(ValueError("alone")))
    assert alone.run_in_lockstep(lambda turn: turn() or 5, lambda: None) == 5
