"""Processes that work together: all of a run, and those of one machine, of which one reads for the others."""

from __future__ import annotations

import platform
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ..store.shared_memory import Address, Allocate, Layout, SharedMemory, WriterEndedError, private


@dataclass(frozen=True)
class Communicator:
    """Rank and collectives of a process; by default a single process."""

    rank: int = 0
    world_size: int = 1
    gather: Callable[[Any], list[Any]] = lambda value: [value]
    """Gathers one object of each process, ordered by rank, on every process; also used as a barrier."""

    def raise_together(self, error: Exception | None, doing: str) -> None:
        """Raise on every process if one of them has an error; every process calls this.

        Args:
            error: of this process.
            doing: what the processes do, for the message of those that have no error.

        Raises:
            InputError: another process has an error.
        """
        errors = self.gather(None if error is None else str(error) or type(error).__name__)
        if error is not None:
            raise error
        failed = next((rank for rank, text in enumerate(errors) if text is not None), None)
        if failed is not None:
            raise InputError(f"Process {failed} failed while {doing}: {errors[failed]}")


@dataclass(frozen=True)
class Shared:
    """Arrays that one process has made for others, and the memory that holds them."""

    arrays: dict[str, np.ndarray]
    memory: SharedMemory | None
    """None where they belong to this process alone."""


@dataclass(frozen=True)
class Node:
    """Processes that can map each other's memory, of which the first does what needs to be done once.

    Attributes:
        communicator: of all processes of the run.
        ranks: of the node's processes.
    """

    communicator: Communicator
    ranks: tuple[int, ...]

    @classmethod
    def find(cls, communicator: Communicator, local_rank: int, folder: Path) -> Node:
        """Find the processes of this one's machine that see the same folder; every process of the run calls this.

        Local ranks tell nodes apart that run on one machine. A process that cannot open the memory of the first, such
        as one in another container, is a node alone.

        Args:
            communicator: of all processes.
            local_rank: of this process on its machine, as the launcher counts.
            folder: that has to be the same one.
        """
        status, memory = folder.stat(), SharedMemory.create()
        sees = (platform.node(), status.st_dev, status.st_ino)
        everyone = communicator.gather((sees, local_rank, memory and memory.address))
        node: list[int] = []
        for rank, (theirs, local, _) in enumerate(everyone):
            if theirs != sees:
                continue
            if node and local <= everyone[node[-1]][1]:  # where another node begins
                if communicator.rank in node:
                    break
                node = []
            node.append(rank)
        first = node[0]
        reached = communicator.gather(first == communicator.rank or _can_open(everyone[first][2]))
        if not reached[communicator.rank]:
            return cls(communicator, (communicator.rank,))
        return cls(communicator, tuple(rank for rank in node if reached[rank]))

    @property
    def is_first(self) -> bool:
        """Whether this is the process that works for the node."""
        return self.communicator.rank == self.ranks[0]

    def alike(self, content: Hashable) -> Node:
        """The processes of this node that have equal content; every process of the run calls this.

        Args:
            content: None equals no other process's.
        """
        contents = self.communicator.gather(content)
        mine = self.communicator.rank
        return Node(
            self.communicator,
            tuple(rank for rank in self.ranks if rank == mine or (content is not None and contents[rank] == content)),
        )

    def once(self, work: Callable[[Allocate], object], doing: str) -> Shared:
        """Let the node's first process make arrays that all of its processes map; every process of the run calls this.

        Args:
            work: fills the arrays that it allocates; called on the first process.
            doing: what that is, for error messages.

        Raises:
            InputError: the first process of a node failed; on that process, whatever `work` raised.
        """
        memory = SharedMemory.create() if self.is_first else None
        addresses = self.communicator.gather(memory and memory.address)
        arrays: dict[str, np.ndarray] | None = None
        error: Exception | None = None
        if self.is_first:
            try:
                arrays = self._made(work, memory)
            except Exception as failure:
                error = failure
                if memory is not None:
                    memory.fail()
        elif addresses[self.ranks[0]] is not None:
            memory = SharedMemory.attach(addresses[self.ranks[0]])
            arrays = self._awaited(memory, doing)
        self.communicator.raise_together(error, f"{doing} for the processes of its machine")
        assert arrays is not None
        return Shared(arrays, memory)

    def _made(self, work: Callable[[Allocate], object], memory: SharedMemory | None) -> dict[str, np.ndarray]:
        if memory is None and len(self.ranks) > 1:
            raise InputError("The system has refused more shared memory (memfd_create). Raise its limit.")
        made: dict[str, np.ndarray] = {}

        def allocate(layout: Layout) -> dict[str, np.ndarray]:
            made.clear()
            made.update((memory.allocate if memory else private)(layout))
            return made

        work(allocate)
        if memory is None:
            return made
        made.clear()  # what can be written to; others, and this process from now on, only read
        return memory.publish()

    def _awaited(self, memory: SharedMemory, doing: str) -> dict[str, np.ndarray] | None:
        try:
            return memory.wait()
        except WriterEndedError:
            raise InputError(
                f"Process {self.ranks[0]} ended while {doing} for the processes of its machine. Its own output says "
                "why; if it says nothing, the machine has probably run out of memory."
            ) from None


def _can_open(address: Address | None) -> bool:
    try:
        return address is not None and bool(SharedMemory.attach(address))
    except OSError:
        return False
