"""The store: what goes in comes out, whatever happened to the process, the disk or the files."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import pickle
import shutil
import struct
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tests.support.stored import REFERENCE, filled, keys, right, sequence
from trl_dpo_ext.cli import main as cli
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.identity.identity import Identity
from trl_dpo_ext.reference.store.atomic import unique_name
from trl_dpo_ext.reference.store.keys import KeyIndex, pack_keys, sequence_key
from trl_dpo_ext.reference.store.store import LogpTable, MissingSequenceError, Store, StoreWriteError


def test_what_goes_in_comes_out_also_of_another_object(tmp_path) -> None:
    store = filled(tmp_path / "refs", range(300), range(200, 500))
    for seen in (store, Store.open(tmp_path / "refs", REFERENCE), Store.read_only(tmp_path / "refs")):
        assert len(seen) == 500
        assert len(seen.parts) == 2
        right(seen, range(500))
        right(seen, [499, 3, 250, 3])


def test_missing_says_each_key_once_in_the_order_asked(tmp_path) -> None:
    store = filled(tmp_path / "refs", range(10))
    asked = keys([12, 3, 11, 12, 9, 30])
    assert store.missing(iter(asked)) == keys([12, 11, 30])
    assert keys([3])[0] in store
    assert keys([12])[0] not in store


def test_a_store_that_holds_nothing_answers_too(tmp_path) -> None:
    store = Store.open(tmp_path / "deep" / "refs", REFERENCE)
    assert len(store) == 0
    assert store.missing(keys(range(3))) == keys(range(3))
    assert store.values([]) == []
    assert len(store.load()) == 0


def test_what_is_missing_is_numbered_and_the_first_is_named(tmp_path) -> None:
    store = filled(tmp_path / "refs", range(10))
    with pytest.raises(MissingSequenceError, match=f"2 sequences are not in .*refs; .*{keys([77])[0].hex()}") as caught:
        store.values(keys([5, 77, 78]))
    assert caught.value.keys == keys([77, 78])
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # as a dataloader's worker passes it on


def test_another_reference_is_refused_with_what_differs(tmp_path) -> None:
    filled(tmp_path / "refs", range(3))
    other = dataclasses.replace(REFERENCE, quantization="nf4 double bfloat16", dtype="bfloat16")
    with pytest.raises(InputError) as caught:
        Store.open(tmp_path / "refs", other)
    said = str(caught.value)
    assert "quantization is none in the store and nf4 double bfloat16 in this run (--ref_quantization)" in said
    assert "dtype is float32 in the store and bfloat16 in this run" in said
    assert "--ref_store another folder" in said


def test_log_probs_that_are_not_finite_are_refused(tmp_path) -> None:
    store = Store.open(tmp_path / "refs", REFERENCE)
    with store.writer() as writer:
        for bad in (np.nan, np.inf, -np.inf, 1e300):
            with pytest.raises(ValueError, match="log-probs must be finite"):
                writer.add(keys([1])[0], 2, np.array([-1.0, bad]))
        writer.add(*sequence(5))
    right(store, [5])
    assert len(store) == 1


# --- keys -----------------------------------------------------------------------------------------------------------

IDS = st.lists(st.integers(0, 2**31 - 1), max_size=40)


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ([1, 2, 3], [50000, 7], "4e27a24c78f0653571c60831316831ed"),
        ([], [], "d2d26df6544bf8dc340a6524134569f6"),
        ([0], [2**31 - 1], "250b6d202245e630894dff8a8f09a3c0"),
    ],
)
def test_keys_never_change(prompt: list[int], completion: list[int], expected: str) -> None:
    """A store of last year is found again; the formula once more, without the package."""
    content = struct.pack("<qq", len(prompt), len(completion))
    content += struct.pack(f"<{len(prompt) + len(completion)}i", *prompt, *completion)
    assert hashlib.blake2b(content, digest_size=16, person=b"trl_dpo_ext.seq1").hexdigest() == expected
    assert sequence_key(prompt, completion).hex() == expected


@settings(max_examples=200, deadline=None)
@given(IDS, IDS)
def test_the_container_of_the_ids_does_not_matter(prompt: list[int], completion: list[int]) -> None:
    expected = sequence_key(prompt, completion)
    assert sequence_key(tuple(prompt), tuple(completion)) == expected
    for dtype in (np.int32, np.int64, np.uint32, ">i8"):
        assert sequence_key(np.array(prompt, dtype), np.array(completion, dtype)) == expected
    assert (
        sequence_key(torch.tensor(prompt, dtype=torch.int64), torch.tensor(completion, dtype=torch.int32)) == expected
    )


@settings(max_examples=200, deadline=None)
@given(IDS, IDS, IDS, IDS)
def test_keys_are_equal_for_equal_sequences_only(p1: list[int], c1: list[int], p2: list[int], c2: list[int]) -> None:
    assert (sequence_key(p1, c1) == sequence_key(p2, c2)) == ((p1, c1) == (p2, c2))
    if p1 + c1:
        together = [sequence_key((p1 + c1)[:at], (p1 + c1)[at:]) for at in range(len(p1 + c1) + 1)]
        assert len(set(together)) == len(together)  # where the prompt ends is content


@pytest.mark.parametrize(
    "ids", [[-100], [2**31], [1.5], np.array([-1]), np.array([2**31]), np.array([1.0]), np.array([[1]]), ["a"]]
)
def test_what_is_no_token_id_has_no_key(ids: Any) -> None:
    with pytest.raises(ValueError, match="Token ids must"):
        sequence_key([1], ids)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(0, 5), max_size=30))
def test_the_index_finds_what_a_dictionary_finds_also_where_first_halves_are_equal(
    held: list[int], asked: list[int]
) -> None:
    def key(number: int) -> bytes:
        return bytes([number % 2] * 8 + [0] * 7 + [number // 2])

    index = KeyIndex.build(pack_keys(key(number) for number in held))
    first = {number: at for at, number in reversed(list(enumerate(held)))}
    assert index.find(pack_keys(key(number) for number in asked)).tolist() == [
        first.get(number, -1) for number in asked
    ]
    assert len(index) == len(first)


# --- processes that die, and processes at once ------------------------------------------------------------------------


def start(*arguments: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.stored", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def killed_after(process: subprocess.Popen[str], lines: int) -> tuple[int, int]:
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
        given, written = killed_after(start(tmp_path / "refs", start_at, 10_000, 10), lines)
        store = Store.open(tmp_path / "refs", REFERENCE)
        assert store.damaged == {}
        right(store, range(start_at + written))  # what was said to be on the disk is
        missing = store.missing(keys(range(given + 1)))
        assert len(missing) <= 11
        assert not list((tmp_path / "refs" / "parts").glob(".*"))
        start_at = len(store)
    filled(tmp_path / "refs", range(start_at, 10_000))
    right(Store.open(tmp_path / "refs", REFERENCE), range(10_000))


def test_processes_that_write_at_once_do_not_disturb_each_other(tmp_path) -> None:
    """They also race to create the store, and two of them write the same sequences."""
    folder = tmp_path / "refs"
    writers = [start(folder, a, a + 300, 7) for a in (0, 200, 200)]
    assert [(process.communicate(), process.returncode)[1] for process in writers] == [0, 0, 0]
    store = Store.open(folder, REFERENCE)
    assert len(store) == 500
    right(store, range(500))
    report = store.verify()
    assert report.problems == []
    assert report.sequences == 900
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "manifest.json", "parts"]


def test_of_two_runs_that_create_a_store_for_different_references_one_is_refused(tmp_path) -> None:
    other = dataclasses.replace(REFERENCE, dtype="bfloat16")
    for number in range(30):
        folder, barrier = tmp_path / str(number), threading.Barrier(2)

        def begin(identity: Identity, folder: Path = folder, barrier: threading.Barrier = barrier) -> str:
            barrier.wait()
            try:
                return Store.open(folder, identity).identity.dtype
            except InputError as error:
                return "refused" if "dtype is" in str(error) else str(error)

        with ThreadPoolExecutor(2) as pool:
            outcomes = list(pool.map(begin, [REFERENCE, other]))
        assert outcomes.count("refused") == 1
        (winner,) = {*outcomes} - {"refused"}
        assert Store.read_only(folder).identity.dtype == winner


def test_a_file_system_without_hard_links_is_served(tmp_path, monkeypatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    right(filled(tmp_path / "refs", range(5)), range(5))
    with pytest.raises(InputError, match="dtype is"):
        Store.open(tmp_path / "refs", dataclasses.replace(REFERENCE, dtype="bfloat16"))


def test_refresh_sees_what_others_have_written_or_removed(tmp_path) -> None:
    mine = Store.open(tmp_path / "refs", REFERENCE)
    filled(tmp_path / "refs", range(20), range(20, 30))
    assert len(mine) == 0
    assert mine.refresh() == 30
    right(mine, range(30))
    mine.parts[0].path.unlink()
    assert mine.refresh() == -20
    assert mine.missing(keys(range(30))) == keys(range(20))


def test_a_part_that_vanishes_while_it_is_wanted_is_looked_for_elsewhere(tmp_path) -> None:
    """As when another process has just merged it."""
    store = filled(tmp_path / "refs", range(20))
    filled(tmp_path / "refs", range(20))
    store.parts[0].path.unlink()
    right(store, range(20))
    store.parts[0].path.unlink()
    with pytest.raises(MissingSequenceError, match="20 sequences"):
        store.load(keys(range(20)))


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_are_not(tmp_path) -> None:
    parts = filled(tmp_path / "refs", range(3)).folder / "parts"
    stamp, host, _, random = unique_name().split("-")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = {
        f".{stamp}-{host}-{dead.pid}-{random}.writing": False,
        f".{stamp}-{host}-{os.getpid()}-{random}.writing": True,
        f".{stamp}-another-{dead.pid}-{random}.writing": True,
        f".{stamp}-longgone-{dead.pid}-{random}.writing": False,
        ".of something else.writing": True,
    }
    for name in names:
        (parts / name).write_bytes(b"half a part")
    os.utime(next(parts.glob("*longgone*")), (0, 0))
    right(Store.open(tmp_path / "refs", REFERENCE), range(3))
    assert {name: (parts / name).exists() for name in names} == names


def test_a_temporary_file_that_is_taken_away_is_written_again(tmp_path, monkeypatch) -> None:
    """By a process in another container that took this one for dead."""
    real, taken = os.rename, []

    def rename(source: Any, target: Any) -> None:
        if not taken:
            taken.append(source)
            os.unlink(source)
        real(source, target)

    store = Store.open(tmp_path / "refs", REFERENCE)
    monkeypatch.setattr(os, "rename", rename)
    with store.writer() as writer:
        writer.add(*sequence(7))
    assert taken
    right(store, [7])


def test_a_long_pass_leaves_few_parts(tmp_path) -> None:
    store = filled(tmp_path / "refs", range(1000), sequences=2)
    assert len(list((tmp_path / "refs" / "parts").iterdir())) < 40
    for seen in (store, Store.open(tmp_path / "refs", REFERENCE)):
        right(seen, range(1000))
        assert sum(part.sequences for part in seen.parts) == 1000


def test_parts_are_cut_by_time_and_by_tokens(tmp_path) -> None:
    store = Store.open(tmp_path / "refs", REFERENCE)
    with store.writer(seconds=0.02) as writer:
        writer.add(*sequence(1))
        assert writer.written == 0
        time.sleep(0.03)
        writer.add(*sequence(2))
        assert writer.written == 2
    with store.writer(tokens=20) as writer:
        for number in (12, 25):  # 12 tokens each
            writer.add(*sequence(number))
        assert writer.written == 2


def test_what_was_gathered_is_kept_when_the_pass_fails(tmp_path) -> None:
    store = Store.open(tmp_path / "refs", REFERENCE)

    def run_out_of_memory() -> None:
        with store.writer() as writer:
            writer.add(*sequence(1))
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        run_out_of_memory()
    right(Store.open(tmp_path / "refs", REFERENCE), [1])


# --- damage -----------------------------------------------------------------------------------------------------------


def only_part(store: Store) -> Path:
    return store.parts[0].path


@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_no_flipped_byte_gets_through(tmp_path) -> None:
    """At every offset of a small part, and some of a larger one: found, or without any effect on what is read."""
    for count, step in ((3, 1), (400, 53)):
        store = filled(tmp_path / str(count), range(count))
        whole, found = only_part(store).read_bytes(), 0
        for at in range(0, len(whole), step):
            only_part(store).write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
            try:
                seen = Store.read_only(tmp_path / str(count))
                if not seen.damaged:
                    right(seen, range(count))
                assert len(seen.verify().damaged) == len(seen.damaged)
                found += bool(seen.damaged)
            except MissingSequenceError:
                found += 1
            except InputError as error:  # a whole part, but of another reference
                pytest.fail(f"offset {at}: {error}")
        assert found > 0.7 * len(whole) / step


@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_no_truncated_part_gets_through(tmp_path) -> None:
    store = filled(tmp_path / "refs", range(50))
    whole = only_part(store).read_bytes()
    for length in [*range(0, len(whole), 37), len(whole) - 1]:
        only_part(store).write_bytes(whole[:length])
        seen = Store.read_only(tmp_path / "refs")
        assert list(seen.damaged) == [only_part(store).name]
        assert seen.missing(keys(range(50))) == keys(range(50))


def test_a_damaged_part_is_set_aside_named_and_computed_again(tmp_path) -> None:
    store = filled(tmp_path / "refs", range(50), range(50, 60))
    path = only_part(store)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=f"{path.name} is damaged: .* renamed to {path.name}.damaged"):
        store = Store.open(tmp_path / "refs", REFERENCE)
    assert path.with_name(f"{path.name}.damaged").exists()
    assert store.missing(keys(range(60))) == keys(range(50))
    filled(tmp_path / "refs", range(50))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        right(Store.open(tmp_path / "refs", REFERENCE), range(60))


def spoil_values(path: Path) -> None:
    """Flip a byte in the middle of the log-probs, which lie last before the footer."""
    content = bytearray(path.read_bytes())
    footer = int.from_bytes(content[-8:-4], "little")
    content[len(content) - footer - 100] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("read", [lambda store: store.load(keys(range(60))), lambda store: store.values(keys([3]))])
def test_altered_log_probs_are_found_when_they_are_read(tmp_path, read: Any) -> None:
    store = filled(tmp_path / "refs", range(50), range(50, 60))
    spoil_values(only_part(store))
    store = Store.open(tmp_path / "refs", REFERENCE)
    assert store.missing(keys(range(60))) == []
    with pytest.warns(UserWarning, match="log-probs|damaged"), pytest.raises(MissingSequenceError):
        read(store)
    assert store.missing(keys(range(60))) == keys(range(50))


def test_altered_log_probs_are_found_before_the_pass_where_that_is_asked_for(tmp_path) -> None:
    store = filled(tmp_path / "refs", range(50), range(50, 60))
    spoil_values(only_part(store))
    with pytest.warns(UserWarning, match="damaged"):
        assert store.missing(keys(range(60)), check_values=True) == keys(range(50))
    filled(tmp_path / "refs", range(50))
    store.refresh()
    right(store, range(60))


def test_a_sequence_that_another_part_holds_too_survives_the_damage_of_one(tmp_path) -> None:
    store = filled(tmp_path / "refs", range(50), range(50))
    spoil_values(only_part(store))
    with pytest.warns(UserWarning, match="damaged"):
        right(Store.open(tmp_path / "refs", REFERENCE), range(50))


def test_a_part_of_another_reference_is_refused_by_name(tmp_path) -> None:
    """Whoever copies the parts of two stores together would train against a mixture."""
    store = filled(tmp_path / "refs", range(3))
    other = Store.open(tmp_path / "other", dataclasses.replace(REFERENCE, dtype="bfloat16"))
    with other.writer() as writer:
        writer.add(*sequence(5))
    shutil.copy(only_part(other), tmp_path / "refs" / "parts")
    with pytest.raises(InputError, match=f"{only_part(other).name} was computed with another reference"):
        Store.open(tmp_path / "refs", REFERENCE)
    with pytest.raises(InputError, match="another reference"):
        store.refresh()


def test_verify_names_sequences_that_are_held_twice_with_different_values(tmp_path) -> None:
    store = filled(tmp_path / "refs", range(20), range(10, 30))
    assert store.verify().problems == []
    key, prompt_tokens, logps = sequence(5)
    with store.writer() as writer:
        writer.add(key, prompt_tokens, logps - np.float32(0.5))
    report = store.verify()
    assert report.conflicting == (key,)
    assert report.apart == pytest.approx(0.5, abs=1e-6)
    right(store, [5])  # the older one counts, for every process


# --- folders and disks ------------------------------------------------------------------------------------------------


def test_a_path_that_is_something_else_is_refused_before_any_work(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "manifest.json").write_text('{"name": "a browser extension"}')
    for name, expected in {
        "file": "file is not a folder",
        "file/below": "file is not a folder",
        "home": r"holds other things \(thesis.tex\)",
        "project": "manifest.json that is no store's",
    }.items():
        with pytest.raises(InputError, match=expected):
            Store.open(tmp_path / name, REFERENCE)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "file",
        "home",
        "manifest.json",
        "project",
        "thesis.tex",
    ]


def test_a_store_that_is_not_there_is_said(tmp_path) -> None:
    for read in (Store.read_only, lambda folder: Store.open(folder, REFERENCE, create=False)):
        with pytest.raises(InputError, match="There is no store at"):
            read(tmp_path / "refs")
    assert not (tmp_path / "refs").exists()


@pytest.mark.parametrize(
    ("alter", "expected"),
    [
        (lambda text: text[:-20], "is damaged. Restore it from a copy, or delete it"),
        (lambda text: "", "is damaged"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "format 2, which this version .* does not know"),
        (lambda text: text.replace('"weights"', '"wights"'), "lacks 'weights'"),
        (lambda text: "[]", "no store's"),
    ],
)  # fmt: skip
def test_a_manifest_that_cannot_be_read_is_said(tmp_path, alter: Any, expected: str) -> None:
    manifest = filled(tmp_path / "refs", range(3)).folder / "manifest.json"
    manifest.write_text(alter(manifest.read_text()))
    with pytest.raises(InputError, match=expected):
        Store.open(tmp_path / "refs", REFERENCE)


def test_a_store_without_its_manifest_recognizes_its_parts(tmp_path) -> None:
    (filled(tmp_path / "refs", range(3)).folder / "manifest.json").unlink()
    with pytest.raises(InputError, match="another reference"):
        Store.open(tmp_path / "refs", dataclasses.replace(REFERENCE, dtype="bfloat16"))
    (tmp_path / "refs" / "manifest.json").unlink()
    right(Store.open(tmp_path / "refs", REFERENCE), range(3))


def refusing_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may run as root, whom permissions do not bind."""
    real = os.open

    def open_(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, "read-only")))


def test_a_folder_that_cannot_be_written_to_is_read_but_a_pass_is_refused_before_it_begins(
    tmp_path, monkeypatch
) -> None:
    filled(tmp_path / "refs", range(30), range(30, 40))
    refusing_to_write(monkeypatch)
    with pytest.raises(InputError, match="cannot be created: Read-only file system"):
        Store.open(tmp_path / "new", REFERENCE)
    store = Store.open(tmp_path / "refs", REFERENCE)
    right(store, range(40))
    with pytest.raises(InputError, match=r"cannot be added to: it is open for reading only|Read-only file system"):
        store.writer()
    spoil_values(only_part(store))
    with pytest.warns(UserWarning, match="It is ignored; what it held counts as missing"):
        assert len(store.missing(keys(range(40)), check_values=True)) == 30
    assert store.refresh() == 0
    assert only_part(Store.read_only(tmp_path / "refs")).exists()


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
        StoreWriteError, match=r"No space left on device\. 4 sequences of this run are kept, the last 4 are not"
    ):
        writer.add(*sequence(17))
    monkeypatch.undo()
    right(Store.open(tmp_path / "refs", REFERENCE), range(14))
    writer.flush()  # as after making room
    right(Store.open(tmp_path / "refs", REFERENCE), range(18))


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
    assert "File too large. 0 sequences of this run are kept, the last 2990 are not" in run.stderr
    assert len(list((tmp_path / "refs" / "parts").iterdir())) == 1
    right(Store.open(tmp_path / "refs", REFERENCE), range(10))


def test_a_disk_with_too_little_room_is_said_before_the_pass(tmp_path) -> None:
    store = Store.open(tmp_path / "refs", REFERENCE)
    with pytest.raises(InputError, match=r"needs about 4000000\.0 GB more and its disk has"):
        store.writer(expected_tokens=10**15)
    store.writer(expected_tokens=1000, expected_sequences=10)


# --- elsewhere --------------------------------------------------------------------------------------------------------


def test_dataloader_workers_read_what_was_loaded(tmp_path) -> None:
    store = filled(tmp_path / "refs", range(64))
    loaded = store.load(keys(range(64)))
    sent = pickle.loads(pickle.dumps(Collator(loaded)))  # as spawned workers get it; forked ones share it
    for collate in (sent, Collator(loaded)):
        batches = DataLoader(range(64), batch_size=8, num_workers=2, multiprocessing_context="fork", collate_fn=collate)  # type: ignore[arg-type]
        for batch, number in zip(batches, range(0, 64, 8), strict=True):
            for row, logps in enumerate(batch):
                np.testing.assert_array_equal(logps, sequence(number + row)[2])
    assert pickle.loads(pickle.dumps(store)).missing(keys([64])) == keys([64])
    assert loaded.nbytes == 64 * 32 + 8 + 4 * len(loaded.flat)


@dataclasses.dataclass
class Collator:
    loaded: LogpTable

    def __call__(self, numbers: list[int]) -> list[np.ndarray]:
        return self.loaded.values(keys(numbers))


def test_a_copy_on_another_machine_is_the_same_store(tmp_path) -> None:
    filled(tmp_path / "refs", range(30))
    shutil.copytree(tmp_path / "refs", tmp_path / "there" / "under another name", copy_function=shutil.copyfile)
    right(Store.open(tmp_path / "there" / "under another name", REFERENCE), range(30))


def test_links_as_in_the_hubs_cache_are_followed(tmp_path) -> None:
    for path in filled(tmp_path / "refs", range(30)).folder.rglob("*.*"):
        link = tmp_path / "snapshot" / path.relative_to(tmp_path / "refs")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    (tmp_path / "snapshot" / ".gitattributes").write_text("")
    right(Store.read_only(tmp_path / "snapshot"), range(30))
    right(Store.open(tmp_path / "snapshot", REFERENCE), range(30))


@pytest.mark.parametrize("how", ["folder", "files"])
def test_the_hubs_datasets_library_reads_it(tmp_path, how: str) -> None:
    store = filled(tmp_path / "refs", range(30), range(30, 50))
    arguments = (
        {"path": str(store.folder)}
        if how == "folder"
        else {"path": "parquet", "data_files": str(store.folder / "parts" / "*.parquet")}
    )
    rows = load_dataset(**arguments, split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.num_rows == 50
    by_key = {row["key"]: row for row in rows}
    for number in range(50):
        key, prompt_tokens, logps = sequence(number)
        row = by_key[key.hex()]
        assert (row["prompt_tokens"], row["completion_tokens"]) == (prompt_tokens, len(logps))
        np.testing.assert_array_equal(np.array(row["token_logps"], np.float32), logps)


def test_pandas_and_duckdb_read_it(tmp_path) -> None:
    store = filled(tmp_path / "refs", range(30), range(30, 50))
    key, _, logps = sequence(25)
    frame = pandas.read_parquet(store.folder / "parts").set_index("key")
    np.testing.assert_array_equal(frame.loc[key.hex(), "token_logps"], logps)
    query = f"select completion_tokens, list_sum(token_logps) from '{store.folder}/parts/*.parquet' where key = '{key.hex()}'"
    ((tokens, total),) = duckdb.sql(query).fetchall()
    assert tokens == len(logps)
    assert total == pytest.approx(float(logps.sum()), rel=1e-6)


def test_columns_of_later_versions_are_left_alone(tmp_path) -> None:
    path = only_part(filled(tmp_path / "refs", range(30)))
    table = pq.read_table(path)
    table = table.append_column("entropy", pa.array(np.zeros(30, np.float32)))
    metadata = pq.ParquetFile(path).metadata.metadata
    with pq.ParquetWriter(path, table.schema.with_metadata(None)) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({k: v for k, v in metadata.items() if k.startswith(b"trl_dpo_ext.")})
    right(Store.open(tmp_path / "refs", REFERENCE), range(30))


def test_rewritten_parts_are_recognized_by_their_content_only_with_their_checksums(tmp_path) -> None:
    """`push_to_hub` of a loaded dataset writes new files without them; such a copy is not trusted."""
    path = only_part(filled(tmp_path / "refs", range(30)))
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    with pytest.warns(UserWarning, match="checksum of its keys and lengths"):
        assert len(Store.read_only(tmp_path / "refs")) == 0


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_shows_and_checks(tmp_path, capsys) -> None:
    store = filled(tmp_path / "refs", range(30), range(25, 50))
    assert cli.main(["store", str(store.folder)]) == 0
    said = capsys.readouterr().out
    tokens = sum(len(sequence(number)[2]) for number in [*range(30), *range(25, 50)])
    for expected in (
        "sequences        50 (5 more are held twice)",
        f"tokens           {tokens}",
        "parts            2, ",
        "f00d",
        "torch 2",
    ):
        assert expected in said
    assert cli.main(["store", str(store.folder), "--verify"]) == 0
    assert "verified         2 parts are as they were written" in capsys.readouterr().out
    spoil_values(only_part(store))
    assert cli.main(["store", str(store.folder)]) == 0
    before = {path.name for path in store.folder.rglob("*")}
    assert cli.main(["store", str(store.folder), "--verify"]) == 1
    assert f"{only_part(store).name} is damaged" in capsys.readouterr().out
    only_part(store).write_bytes(b"")
    assert cli.main(["store", str(store.folder), "--verify"]) == 1
    assert f"{only_part(store).name} is damaged" in capsys.readouterr().out
    assert {path.name for path in store.folder.rglob("*")} == before  # it only looks


def test_the_command_says_what_is_no_store(tmp_path, capsys) -> None:
    assert cli.main(["store", str(tmp_path / "nowhere")]) == 2
    assert "There is no store at" in capsys.readouterr().err
