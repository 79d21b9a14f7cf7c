"""Arrays that one process writes and other processes of its machine map.

The memory is anonymous: it takes no space in /dev/shm or a temporary folder, and the kernel frees it when the last
process that maps it ends, however it ends. Other processes open it through /proc, which needs Linux.
"""

from __future__ import annotations

import json
import mmap
import os
import secrets
import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

if sys.platform == "linux":
    import fcntl

_NAME = "trl_dpo_ext-"
_HEADER_BYTES = 4096
"""One page in front of the arrays that says where they are; all zero until they are complete."""
_ALIGNMENT = 64

Layout = Mapping[str, tuple[tuple[int, ...], Any]]
"""Shape and dtype of arrays by name."""
Allocate = Callable[[Layout], dict[str, np.ndarray]]


class WriterEndedError(Exception):
    """Raised by `SharedMemory.wait` when the writing process has ended before its arrays were complete."""


@dataclass(frozen=True)
class Address:
    """Where other processes of the machine find shared memory: a descriptor of a process, and the name behind it."""

    process: int
    descriptor: int
    name: str

    @property
    def path(self) -> str:
        """Path of the descriptor, for `open`."""
        return f"/proc/{self.process}/fd/{self.descriptor}"


class SharedMemory:
    """Memory that one process fills with arrays and others map. Made by `create` and by `attach`.

    The writer holds a lock from `create` to `publish` or `fail`. The kernel releases it when the process ends, so those
    that `wait` never wait for a process that was killed.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor, self._name = descriptor, name
        self._header = b"{}"
        weakref.finalize(self, os.close, descriptor)

    @classmethod
    def create(cls) -> SharedMemory | None:
        """Create empty memory as its writer; None where the system has no such memory."""
        name = _NAME + secrets.token_hex(8)
        try:
            descriptor = os.memfd_create(name)
        except (AttributeError, OSError):  # not Linux, or forbidden
            return None
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return cls(descriptor, name)

    @classmethod
    def attach(cls, address: Address) -> SharedMemory:
        """Open the memory of another process.

        Raises:
            OSError: this process cannot see it, such as one in another container.
        """
        if not os.readlink(address.path).startswith(f"/memfd:{address.name}"):
            raise FileNotFoundError(f"{address.path} is something else: this process has another list of processes.")
        return cls(os.open(address.path, os.O_RDONLY | os.O_CLOEXEC), address.name)

    @property
    def address(self) -> Address:
        """Where others find this memory as long as this object exists."""
        return Address(os.getpid(), self._descriptor, self._name)

    def allocate(self, layout: Layout) -> dict[str, np.ndarray]:
        """Reserve arrays for the writer to fill; a second call replaces those of the first.

        Raises:
            OSError: the machine has too little memory.
        """
        places, end = {}, _HEADER_BYTES
        for name, (shape, dtype) in layout.items():
            places[name] = (np.dtype(dtype).str, list(shape), end)
            end += int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            end += -end % _ALIGNMENT
        os.posix_fallocate(self._descriptor, 0, end)  # or a full machine would end the process at its first write
        self._header = json.dumps(places).encode()
        return _arrays(mmap.mmap(self._descriptor, end), places)

    def publish(self) -> dict[str, np.ndarray]:
        """Let the others read what was written, and return the arrays as they see them."""
        os.pwrite(self._descriptor, self._header, 0)
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        return self._mapped(self._header)

    def fail(self) -> None:
        """Let the others go on without arrays."""
        os.pwrite(self._descriptor, b"null", 0)
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def wait(self) -> dict[str, np.ndarray] | None:
        """Wait for the writer, and map its arrays, which cannot be written to; None if it failed.

        Raises:
            WriterEndedError: the writing process has ended before.
        """
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        header = os.pread(self._descriptor, _HEADER_BYTES, 0).rstrip(b"\0")
        if not header:
            raise WriterEndedError
        return None if header == b"null" else self._mapped(header)

    def _mapped(self, header: bytes) -> dict[str, np.ndarray]:
        return _arrays(mmap.mmap(self._descriptor, 0, prot=mmap.PROT_READ), json.loads(header))


def private(layout: Layout) -> dict[str, np.ndarray]:
    """Allocate arrays of this process alone."""
    return {name: np.empty(shape, dtype) for name, (shape, dtype) in layout.items()}


def _arrays(memory: mmap.mmap, places: Mapping[str, tuple[str, list[int], int]]) -> dict[str, np.ndarray]:
    return {
        name: np.frombuffer(memory, dtype, int(np.prod(shape, dtype=np.int64)), offset).reshape(shape)
        for name, (dtype, shape, offset) in places.items()
    }
