"""Hashing gigabytes: in chunks, by several threads, with a result that depends on the content alone."""

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
    """As many as the process may use, since hashing lets go of the interpreter's lock."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(max(1, min(16, usable))) as pool:
        yield pool


def combined(*words: str | int, digests: Iterable[bytes] = ()) -> bytes:
    """One digest of names, numbers and other digests, in the order given."""
    content = hashlib.blake2b("\0".join(map(str, words)).encode(), digest_size=32)
    for digest in digests:
        content.update(digest)
    return content.digest()


def chunks_of_memory(pool: ThreadPoolExecutor, memory: memoryview) -> list[Future[bytes]]:
    """Digests of a buffer's chunks, on their way."""
    return [pool.submit(_digest, memory[at : at + CHUNK]) for at in range(0, len(memory), CHUNK)]


def _digest(memory: memoryview) -> bytes:
    return hashlib.blake2b(memory, digest_size=32).digest()


def files_hash(pool: ThreadPoolExecutor, paths: Sequence[Path]) -> list[str]:
    """The hash of each file's content, 64 hexadecimal digits.

    Raises:
        OSError: When one cannot be read.
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
    content, left = hashlib.blake2b(digest_size=32), CHUNK
    with path.open("rb") as file:
        file.seek(start)
        while left and (block := file.read(min(_BLOCK, left))):
            content.update(block)
            left -= len(block)
    return content.digest()
