"""Files that are whole or absent, whatever dies while they are written."""

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

WRITING = ".writing"
_DAY = 86_400.0


def unique_name() -> str:
    """A name no other process or machine gives, sorted by time: `20250131T093000123456-host-1234-9f86d081`."""
    host = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())[:24] or "host"
    return f"{datetime.now(UTC).strftime('%Y%m%dT%H%M%S%f')}-{host}-{os.getpid()}-{secrets.token_hex(4)}"


def atomic_write(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that it is there in full and on the disk, or not there at all.

    Raises:
        OSError: As the system says; nothing is left behind then.
    """
    for last in (False, False, True):
        temporary = write_temporary(path.parent, content)
        try:
            os.rename(temporary, path)
            break
        except FileNotFoundError:  # tidied away by a process that took this one for dead
            if last:
                raise
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    sync_folder(path.parent)


def create_exclusive(path: Path, content: bytes) -> bool:
    """The same, but never over another file; of several processes one wins. Returns whether this one did."""
    temporary = write_temporary(path.parent, content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        if not _create_exclusively(path, content):  # a file system without hard links
            return False
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def _create_exclusively(path: Path, content: bytes) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    _fill(descriptor, content)
    return True


def write_temporary(folder: Path, content: bytes | memoryview) -> Path:
    """Write a synced file of a temporary name in the folder; removed again when that fails."""
    temporary = folder / f".{unique_name()}{WRITING}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        _fill(descriptor, content)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _fill(descriptor: int, content: bytes | memoryview) -> None:
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, where the file system can."""
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
    """Remove temporary files of processes that died: of this machine by their number, of others after a day.

    A process that is alive in another container of the same name may lose its file to this; it then writes it again.
    """
    for temporary in folder.glob(f".*{WRITING}"):
        parts = temporary.name.removesuffix(WRITING).split("-")
        if len(parts) != 4 or not parts[2].isdigit():
            continue
        here = parts[1] == unique_name().split("-")[1]
        with contextlib.suppress(OSError):
            if not _alive(int(parts[2])) if here else time.time() - temporary.stat().st_mtime > _DAY:
                temporary.unlink()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
