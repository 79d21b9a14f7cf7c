"""Atomic file writes that survive crashes."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import socket
import time
from datetime import UTC, datetime
from pathlib import Path

TEMPORARY_SUFFIX = ".writing"
_STALE_AFTER = 86_400.0  # seconds; a write takes less, so that no process loses a file it is writing


def unique_name() -> str:
    """Return a name that no other process uses, sorted by time: `20250131T093000123456-host-1234-9f86d081`."""
    host = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())[:24] or "host"
    return f"{datetime.now(UTC).strftime('%Y%m%dT%H%M%S%f')}-{host}-{os.getpid()}-{secrets.token_hex(4)}"


def atomic_write(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that it is either complete and on the disk, or absent.

    Raises:
        OSError: the write failed; nothing is left behind.
    """
    temporary = write_temporary(path.parent, content)
    try:
        os.rename(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def create_exclusive(path: Path, content: bytes) -> bool:
    """Write a file atomically, but never over another one; of several processes, one succeeds.

    Returns:
        True if this process created the file.
    """
    temporary = write_temporary(path.parent, content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        if not _create_in_place(path, content):  # a file system without hard links
            return False
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def _create_in_place(path: Path, content: bytes) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    _write_and_sync(descriptor, content)
    return True


def write_temporary(folder: Path, content: bytes | memoryview) -> Path:
    """Write and sync a file with a temporary name in the folder; removed again if that fails."""
    temporary = folder / f".{unique_name()}{TEMPORARY_SUFFIX}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        _write_and_sync(descriptor, content)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _write_and_sync(descriptor: int, content: bytes | memoryview) -> None:
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder to the disk, if the file system can."""
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def remove_stale_temporaries(folder: Path) -> None:
    """Remove temporary files that are older than a day: their writers died."""
    for temporary in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        with contextlib.suppress(OSError):
            if time.time() - temporary.stat().st_mtime > _STALE_AFTER:
                temporary.unlink()
