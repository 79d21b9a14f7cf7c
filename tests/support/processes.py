"""Several processes that work together, forked from this one: cheap, and each can be killed like any other."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from trl_dpo_ext.reference.precompute.processes import Communicator

Work = Callable[[Communicator], Any]


def together(count: int, work: Work, timeout: float = 60) -> list[Any]:
    """What `work` returns on each process; the exception that it raised; or the negative signal that ended it."""
    context = multiprocessing.get_context("fork")
    ours, theirs = zip(*(context.Pipe() for _ in range(count)), strict=True)
    children = [context.Process(target=_process, args=(work, rank, count, theirs[rank])) for rank in range(count)]
    for child in children:
        child.start()
    for end in theirs:
        end.close()
    try:
        return _served(children, list(ours), timeout)
    finally:
        for child in children:
            child.kill()
            child.join()


def _served(children: list[Any], ends: list[Connection], timeout: float) -> list[Any]:
    """Pass around what the processes gather until each has ended."""
    results: dict[int, Any] = {}
    given: dict[int, Any] = {}
    while len(results) < len(ends):
        running = [end for rank, end in enumerate(ends) if rank not in results]
        ready = wait(running, timeout)
        assert ready, f"processes {sorted(set(range(len(ends))) - set(results))} hang"
        for end in ready:
            rank = ends.index(end)  # type: ignore[arg-type]
            try:
                kind, value = ends[rank].recv()
            except (EOFError, ConnectionResetError):
                children[rank].join()
                results[rank] = children[rank].exitcode
                continue
            if kind == "gather":
                given[rank] = value
            else:
                results[rank] = value
        if len(given) == len(ends):
            for end in ends:
                end.send([given[rank] for rank in range(len(ends))])
            given = {}
    return [results[rank] for rank in range(len(ends))]


def _process(work: Work, rank: int, count: int, end: Connection) -> None:
    def gather(value: Any) -> list[Any]:
        end.send(("gather", value))
        return end.recv()

    try:
        end.send(("result", work(Communicator(rank, count, gather))))
    except BaseException as error:
        end.send(("result", error))
    os._exit(0)


def mapped_memory() -> tuple[int, int]:
    """Size, and this process's proportional share, of the shared memory of ours that it maps, in bytes."""
    size = share = 0
    ours = False
    with open("/proc/self/smaps") as lines:
        for line in lines:
            first, *rest = line.split()
            if not first.endswith(":"):
                ours = "memfd:trl_dpo_ext-" in line
            elif ours and first in ("Size:", "Pss:"):
                size += int(rest[0]) << 10 if first == "Size:" else 0
                share += int(rest[0]) << 10 if first == "Pss:" else 0
    return size, share
