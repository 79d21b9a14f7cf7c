"""A killed process, a failing pass or a full disk costs what was buffered, and nothing that was written."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from tests.support.stored import (
    REFERENCE,
    assert_holds,
    filled,
    keys,
    sequence,
    start_writing,
)
from trl_dpo_ext.cli import main as cli
from trl_dpo_ext.errors import InputError, StoreWriteError
from trl_dpo_ext.reference.store.atomic import atomic_write, create_exclusive, remove_stale_temporaries, unique_name
from trl_dpo_ext.reference.store.store import Store

pytestmark = pytest.mark.slow


def killed_after(process: Popen[str], lines: int) -> tuple[int, int]:
    """The last number given to the writer, and how many it had put on the disk, when the process was killed."""
    assert process.stdout is not None
    for _ in range(lines):
        given, written = map(int, process.stdout.readline().split())
    process.kill()
    rest = process.stdout.read().splitlines()
    process.wait()
    return tuple(map(int, rest[-1].split())) if rest else (given, written)


def test_kill_9_loses_the_part_being_written_and_the_next_run_computes_that_only(tmp_path) -> None:
    start_at = 0
    for lines in (3, 101):
        given, written = killed_after(start_writing(tmp_path / "refs", start_at, 10_000, 10), lines)
        store = Store.open(tmp_path / "refs", REFERENCE)
        assert store.corrupt == {}
        assert_holds(store, range(start_at + written))  # what was said to be on the disk is
        missing = store.missing(keys(range(given + 1)))
        assert len(missing) <= 11
        start_at = len(store)
        leftovers = list((tmp_path / "refs" / "parts").glob(".*"))
        assert len(leftovers) <= 2  # of each process that was killed, at most the file it was writing
    for leftover in leftovers:
        os.utime(leftover, (0, 0))
    Store.open(tmp_path / "refs", REFERENCE)
    assert not list((tmp_path / "refs" / "parts").glob(".*"))
    filled(tmp_path / "refs", range(start_at, 10_000))
    assert_holds(Store.open(tmp_path / "refs", REFERENCE), range(10_000))


@pytest.mark.parametrize("hours", [0, 23, 25, 24 * 365])
def test_temporaries_older_than_a_day_are_removed_and_younger_ones_may_still_be_written(tmp_path, hours: int) -> None:
    parts = filled(tmp_path / "refs", range(3)).folder / "parts"
    temporary, other = parts / f".{unique_name()}.writing", parts / ".nfs0001"
    then = time.time() - 3600 * hours
    for path in (temporary, other):
        path.write_bytes(b"half a part")
        os.utime(path, (then, then))
    assert_holds(Store.open(tmp_path / "refs", REFERENCE), range(3))
    assert temporary.exists() == (hours < 24)
    assert other.exists()  # a file of something else


def test_a_temporary_that_another_process_removes_at_the_same_time_is_no_error(tmp_path, monkeypatch) -> None:
    temporary = tmp_path / f".{unique_name()}.writing"
    temporary.write_bytes(b"")
    os.utime(temporary, (0, 0))
    real = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path: (real(path), real(path)))  # the other process is faster
    remove_stale_temporaries(tmp_path)
    assert not temporary.exists()


@pytest.mark.parametrize(("write", "call"), [(atomic_write, "rename"), (create_exclusive, "link")])
def test_a_write_that_fails_at_its_last_step_leaves_nothing(tmp_path, monkeypatch, write: Any, call: str) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(OSError, match="Input/output error"):
        write(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


def test_a_file_appears_only_after_its_content_is_on_the_disk(tmp_path, monkeypatch) -> None:
    """And its name is on the disk when the write returns."""
    calls = []
    for name in ("fsync", "rename"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (calls.append(name), real(*args)))
    atomic_write(tmp_path / "file", b"content")
    assert calls == ["fsync", "rename", "fsync"]
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_store_that_cannot_be_written_is_an_error_of_the_system_that_crosses_processes() -> None:
    error = pickle.loads(pickle.dumps(StoreWriteError("the disk is full", 7)))
    assert isinstance(error, OSError)
    assert not isinstance(error, InputError)
    assert (str(error), error.lost) == ("the disk is full", 7)


def test_the_command_line_prints_that_a_store_cannot_be_written(capsys, monkeypatch) -> None:
    def fail(argv: Any, prog: str) -> int:
        raise StoreWriteError("Cannot write to the reference store", 3)

    monkeypatch.setattr("trl_dpo_ext.cli.train.run", fail)
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == "error: Cannot write to the reference store\n"


def test_what_was_gathered_is_kept_when_the_pass_fails(tmp_path) -> None:
    store = Store.open(tmp_path / "refs", REFERENCE)

    def run_out_of_memory() -> None:
        with store.writer() as writer:
            writer.add(*sequence(1))
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        run_out_of_memory()
    assert_holds(Store.open(tmp_path / "refs", REFERENCE), [1])


def test_a_full_disk_says_what_is_kept_and_nothing_is_lost(tmp_path, monkeypatch) -> None:
    """The kernel's own answer, from the device that is always full."""
    store = filled(tmp_path / "refs", range(10))
    writer = store.writer(sequences=4)
    for number in range(10, 14):
        writer.add(*sequence(number))
    real = os.open
    monkeypatch.setattr(
        os,
        "open",
        lambda path, flags, *rest: real("/dev/full", os.O_WRONLY) if flags & os.O_CREAT else real(path, flags, *rest),
    )
    for number in range(14, 17):
        writer.add(*sequence(number))
    with pytest.raises(
        StoreWriteError, match=r"No space left on device\. 4 sequences of this run are stored, the last 4 are not"
    ):
        writer.add(*sequence(17))
    monkeypatch.undo()
    assert_holds(Store.open(tmp_path / "refs", REFERENCE), range(14))
    writer.flush()  # as after making room
    assert_holds(Store.open(tmp_path / "refs", REFERENCE), range(18))


def test_a_write_that_the_system_cuts_off_leaves_no_part(tmp_path) -> None:
    """A process whose files may have 4000 bytes: the system writes a piece and refuses the rest."""
    program = (
        "import resource, sys; from tests.support.stored import *; from pathlib import Path\n"
        "store = filled(Path(sys.argv[1]), range(10))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        "filled(Path(sys.argv[1]), range(10, 3000))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "refs")], env=environment, capture_output=True, text=True
    )
    assert "File too large. 0 sequences of this run are stored, the last 2990 are not" in run.stderr
    assert len(list((tmp_path / "refs" / "parts").iterdir())) == 1
    assert_holds(Store.open(tmp_path / "refs", REFERENCE), range(10))


def test_a_disk_with_too_little_room_is_said_before_the_pass(tmp_path) -> None:
    store = Store.open(tmp_path / "refs", REFERENCE)
    with pytest.raises(InputError, match=r"needs about 4000000\.0 GB more, but its disk has"):
        store.writer(expected_tokens=10**15)
    store.writer(expected_tokens=1000, expected_sequences=10)
