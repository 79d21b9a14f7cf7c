"""Processes that create, write, merge and read one store at once do not disturb each other."""

from __future__ import annotations

import dataclasses
import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.stored import (
    REFERENCE,
    assert_holds,
    filled,
    keys,
    start_writing,
)
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.identity.identity import Identity
from trl_dpo_ext.reference.store.store import Store
from trl_dpo_ext.reference.store.table import MissingSequenceError


@pytest.mark.slow
def test_processes_that_write_at_once_do_not_disturb_each_other(tmp_path) -> None:
    """They also race to create the store, and two of them write the same sequences."""
    folder = tmp_path / "refs"
    writers = [start_writing(folder, a, a + 300, 7) for a in (0, 200, 200)]
    assert [(process.communicate(), process.returncode)[1] for process in writers] == [0, 0, 0]
    store = Store.open(folder, REFERENCE)
    assert len(store) == 500
    assert_holds(store, range(500))
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
    assert_holds(filled(tmp_path / "refs", range(5)), range(5))
    with pytest.raises(InputError, match="dtype is"):
        Store.open(tmp_path / "refs", dataclasses.replace(REFERENCE, dtype="bfloat16"))


def test_refresh_sees_what_others_have_written_or_removed(tmp_path) -> None:
    mine = Store.open(tmp_path / "refs", REFERENCE)
    filled(tmp_path / "refs", range(20), range(20, 30))
    assert len(mine) == 0
    assert mine.refresh() == 30
    assert_holds(mine, range(30))
    mine.parts[0].path.unlink()
    assert mine.refresh() == -20
    assert mine.missing(keys(range(30))) == keys(range(20))


def test_a_part_that_vanishes_while_it_is_wanted_is_looked_for_elsewhere(tmp_path) -> None:
    """As when another process has just merged it."""
    store = filled(tmp_path / "refs", range(20))
    filled(tmp_path / "refs", range(20))
    store.parts[0].path.unlink()
    assert_holds(store, range(20))
    store.parts[0].path.unlink()
    with pytest.raises(MissingSequenceError, match="20 sequences"):
        store.load(keys(range(20)))
