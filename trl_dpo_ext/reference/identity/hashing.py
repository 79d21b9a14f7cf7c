"""Hash gigabytes in chunks, on several threads; the result depends on the content alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

CHUNK = 1 << 26
_BLOCK = 1 << 22


@contextmanager
def hashing_threads() -> Iterator[ThreadPoolExecutor]:
    """Open a pool with one thread per usable CPU: hashing releases the interpreter's lock."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(max(1, min(16, usable))) as pool:
        yield pool


def combined(*fields: str | int, digests: Iterable[bytes] = ()) -> bytes:
    """Combine names, numbers and other digests, in the order given, into one digest."""
    content = hashlib.blake2b("\0".join(map(str, fields)).encode(), digest_size=32)
    for digest in digests:
        content.update(digest)
    return content.digest()


def chunks_of_memory(pool: ThreadPoolExecutor, memory: memoryview) -> list[Future[bytes]]:
    """Start hashing a buffer's chunks and return the futures of their digests."""
    return [pool.submit(_digest, memory[at : at + CHUNK]) for at in range(0, len(memory), CHUNK)]


def _digest(memory: memoryview) -> bytes:
    return hashlib.blake2b(memory, digest_size=32).digest()


def files_hash(pool: ThreadPoolExecutor, paths: Sequence[Path]) -> list[str]:
    """Hash the content of each file: 64 hexadecimal digits each.

    Raises:
        OSError: a file cannot be read.
    """
    sizes = [path.stat().st_size for path in paths]
    chunks = [
        [pool.submit(_chunk_of_file, path, at) for at in range(0, size, CHUNK)]
        for path, size in zip(paths, sizes, strict=True)
    ]
    return [
        combined("file", size, digests=(chunk.result() for chunk in of_file)).hex()
        for size, of_file in zip(sizes, chunks, strict=True)
    ]


def _chunk_of_file(path: Path, start: int) -> bytes:
    content, remaining = hashlib.blake2b(digest_size=32), CHUNK
    with path.open("rb") as file:
        file.seek(start)
        while remaining and (block := file.read(min(_BLOCK, remaining))):
            content.update(block)
            remaining -= len(block)
    return content.digest()
