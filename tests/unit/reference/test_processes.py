"""One process of a node makes arrays, the others map them; and what happens where that fails or a process dies."""

from __future__ import annotations

import errno
import os
import pickle
import platform
import signal
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.processes import mapped_memory, together
from tests.support.stored import filled, keys, sequence
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.precompute.processes import Communicator, Node
from trl_dpo_ext.reference.store.shared_memory import Address, Allocate, SharedMemory
from trl_dpo_ext.reference.store.table import LogpTable


def node_of(communicator: Communicator, local_rank: int | None = None, folder: Path | None = None) -> Node:
    local_rank = communicator.rank if local_rank is None else local_rank
    return Node.find(communicator, local_rank, folder or Path(tempfile.gettempdir()))


def count_up(allocate: Allocate, size: int = 1000) -> None:
    arrays = allocate({"numbers": ((size,), np.int32), "none": ((0, 2), np.uint64), "one": ((), np.float64)})
    arrays["numbers"][:] = np.arange(size)
    arrays["one"][...] = os.getpid()


def test_what_one_process_makes_the_others_read_and_cannot_change() -> None:
    def work(communicator: Communicator) -> Any:
        shared = node_of(communicator).once(count_up, "counting")
        arrays = shared.arrays
        with pytest.raises(ValueError, match="read-only"):
            arrays["numbers"][0] = 7
        return arrays["numbers"].tolist(), arrays["none"].shape, float(arrays["one"])

    results = together(4, work)
    assert all(result == results[0] for result in results)  # made by one process
    assert results[0][:2] == (list(range(1000)), (0, 2))


def test_processes_share_the_memory() -> None:
    size = 32 << 20

    def work(communicator: Communicator) -> tuple[int, int]:
        shared = node_of(communicator).once(lambda allocate: count_up(allocate, size // 4), "counting")
        assert int(shared.arrays["numbers"].sum(dtype=np.int64)) == (size // 4) * (size // 4 - 1) // 2
        communicator.gather(None)
        mapped = mapped_memory()
        communicator.gather(None)
        return mapped

    for mapped, share in together(4, work):
        assert mapped == pytest.approx(size, rel=0.01)
        assert share == pytest.approx(size / 4, rel=0.05)


def test_an_error_of_the_first_process_is_raised_on_all_in_its_words() -> None:
    def fail(_: Allocate) -> None:
        raise OSError(errno.EIO, "Input/output error", "part.parquet")

    first, *others = together(3, lambda communicator: node_of(communicator).once(fail, "reading the store"))
    assert isinstance(first, OSError)
    assert first.errno == errno.EIO
    for other in others:
        assert isinstance(other, InputError)
        assert str(other) == (
            "Process 0 failed while reading the store for the processes of its machine: [Errno 5] Input/output error: "
            "'part.parquet'"
        )


@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, None])
def test_others_do_not_wait_for_a_process_that_has_ended(tmp_path, monkeypatch, ended_by: int | None) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def end(allocate: Allocate) -> None:
        allocate({"numbers": ((1 << 20,), np.int64)})["numbers"][:] = 1
        if ended_by is None:
            os._exit(3)
        signal.signal(ended_by, signal.SIG_DFL) if ended_by != signal.SIGKILL else None
        os.kill(os.getpid(), ended_by)

    first, *others = together(3, lambda communicator: node_of(communicator).once(end, "reading the store"))
    assert first == (3 if ended_by is None else -ended_by)
    for other in others:
        assert isinstance(other, InputError)
        assert "Process 0 ended while reading the store" in str(other)
        assert "out of memory" in str(other)
    assert not [*tmp_path.iterdir(), *Path("/dev/shm").glob("*trl_dpo_ext*")]


def test_too_little_memory_is_an_error_of_all_before_anything_is_written(monkeypatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    results = together(2, lambda communicator: node_of(communicator).once(count_up, "reading the store"))
    assert all("No space left on device" in str(result) for result in results)


@pytest.mark.parametrize(
    ("hosts", "local_ranks", "nodes"),
    [
        ("aaaa", [0, 1, 2, 3], [(0, 1, 2, 3)]),
        ("aaaa", [0, 1, 0, 1], [(0, 1), (2, 3)]),  # two nodes on one machine
        ("aabb", [0, 1, 0, 1], [(0, 1), (2, 3)]),
        ("abab", [0, 0, 1, 1], [(0, 2), (1, 3)]),  # spread in turn, as Slurm can
        ("abba", [0, 0, 1, 1], [(0, 3), (1, 2)]),
        ("aaaa", [0, 0, 0, 0], [(0,), (1,), (2,), (3,)]),  # no launcher that counts
        ("abbb", [0, 0, 1, 2], [(0,), (1, 2, 3)]),
    ],
)
def test_the_first_process_of_each_node_works_for_it(hosts: str, local_ranks: list[int], nodes: list[Any]) -> None:
    def work(communicator: Communicator) -> Any:
        platform.node = lambda: hosts[communicator.rank]
        node = node_of(communicator, local_ranks[communicator.rank])
        made_by = int(node.once(count_up, "counting").arrays["one"])
        pids = communicator.gather(os.getpid())
        return node.ranks, pids.index(made_by)

    for rank, (ranks, made_by) in enumerate(together(4, work)):
        assert ranks == next(node for node in nodes if rank in node)
        assert made_by == ranks[0]


def test_processes_with_folders_of_their_own_work_for_themselves(tmp_path) -> None:
    (tmp_path / "apart").mkdir()
    folders = [tmp_path, tmp_path / "apart", tmp_path / "apart" / "..", tmp_path / "apart"]
    found = together(4, lambda communicator: node_of(communicator, folder=folders[communicator.rank]).ranks)
    assert found == [(0, 2), (1, 3), (0, 2), (1, 3)]


def test_a_process_that_cannot_open_the_others_memory_works_for_itself() -> None:
    """As in containers on one machine that do not see each other's processes."""

    def work(communicator: Communicator) -> Any:
        if communicator.rank == 2:
            os.readlink = lambda path: f"pipe:[{path}]"
        node = node_of(communicator)
        return node.ranks, node.once(count_up, "counting").arrays["numbers"].tolist() == list(range(1000))

    assert together(4, work) == [((0, 1, 3), True), ((0, 1, 3), True), ((2,), True), ((0, 1, 3), True)]


@pytest.mark.parametrize("missing", [True, False], ids=["not there", "forbidden"])
def test_without_such_memory_every_process_works_for_itself(monkeypatch, missing: bool) -> None:
    def forbidden(_: str) -> int:
        raise OSError(errno.EPERM, "Operation not permitted")

    if missing:
        monkeypatch.delattr(os, "memfd_create")
    else:
        monkeypatch.setattr(os, "memfd_create", forbidden)

    def work(communicator: Communicator) -> Any:
        node = node_of(communicator)
        shared = node.once(count_up, "counting")
        return node.ranks, shared.memory, shared.arrays["numbers"].sum()

    assert together(2, work) == [((0,), None, 499500), ((1,), None, 499500)]


def test_processes_that_read_the_same_are_told_from_those_that_do_not() -> None:
    contents = ["a", "b", "a", None, None, "b"]
    found = together(6, lambda communicator: node_of(communicator).alike(contents[communicator.rank]).ranks)
    assert found == [(0, 2), (1, 5), (0, 2), (3,), (4,), (1, 5)]


def test_an_error_of_any_process_is_raised_on_all() -> None:
    def work(communicator: Communicator) -> None:
        communicator.raise_together(KeyError("x") if communicator.rank == 2 else None, "checking")

    first, second, third = together(3, work)
    assert str(first) == str(second) == "Process 2 failed while checking: 'x'"
    assert isinstance(third, KeyError)


def test_an_address_that_leads_to_something_else_is_not_opened() -> None:
    """Another container numbers its processes from 1, too."""
    reading, writing = os.pipe()
    try:
        with pytest.raises(FileNotFoundError, match="another list of processes"):
            SharedMemory.attach(Address(os.getpid(), reading, "trl_dpo_ext-0"))
    finally:
        os.close(reading)
        os.close(writing)


def test_a_table_in_shared_memory_is_sent_to_workers_by_its_address(tmp_path) -> None:
    """Workers that are spawned, not forked, would otherwise hold a copy each."""
    store = filled(tmp_path / "refs", range(3000))

    def work(communicator: Communicator) -> Any:
        node = node_of(communicator)
        shared = node.once(lambda allocate: store.load_arrays(None, allocate), "reading the store")
        table = LogpTable.of(shared.arrays, "a store", shared.memory)
        sent = communicator.gather(pickle.dumps(table))
        theirs = pickle.loads(sent[1 - communicator.rank])
        for number in range(3000):
            np.testing.assert_array_equal(theirs[keys([number])[0]], sequence(number)[2])
        communicator.gather(None)
        return len(sent[0]), theirs.where

    for size, where in together(2, work):
        assert size < 1000
        assert where == "a store"
