"""A folder that is not a store, not readable or not writable is refused before any work, with the reason."""

from __future__ import annotations

import dataclasses
import errno
import os
from typing import Any

import pytest

from tests.support.stored import (
    REFERENCE,
    assert_holds,
    corrupt_values,
    filled,
    first_part,
    keys,
)
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.store.store import Store


def test_a_path_that_is_something_else_is_refused_before_any_work(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "manifest.json").write_text('{"name": "a browser extension"}')
    for name, expected in {
        "file": "file is not a directory",
        "file/below": "file is not a directory",
        "home": r"contains other files \(thesis.tex\)",
        "project": "manifest.json was not written by trl-dpo-ext",
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
        with pytest.raises(InputError, match=r"refs is not a reference store: it has no manifest\.json"):
            read(tmp_path / "refs")
    assert not (tmp_path / "refs").exists()


@pytest.mark.parametrize(
    ("alter", "expected"),
    [
        (lambda text: text[:-20], "is corrupt. Restore it from a copy, or delete it"),
        (lambda text: "", "is corrupt"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "format 2, but this version of trl-dpo-ext reads formats up to 1"),
        (lambda text: text.replace('"weights"', '"wights"'), "has no field 'weights'"),
        (lambda text: "[]", "was not written by trl-dpo-ext"),
        (lambda text: text.replace('"recorded": {', '"recorded": 5, "_": {'), "manifest.json is corrupt"),
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
    assert_holds(Store.open(tmp_path / "refs", REFERENCE), range(3))


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
    with pytest.raises(InputError, match=r"Cannot create the reference store .*new: Read-only file system"):
        Store.open(tmp_path / "new", REFERENCE)
    store = Store.open(tmp_path / "refs", REFERENCE)
    assert_holds(store, range(40))
    with pytest.raises(InputError, match="is missing sequences and is not writable: it was opened read-only"):
        store.writer()
    corrupt_values(first_part(store))
    with pytest.warns(UserWarning, match="It is ignored, and its sequences count as missing"):
        assert len(store.missing(keys(range(40)), check_values=True)) == 30
    assert store.refresh() == 0
    assert first_part(Store.read_only(tmp_path / "refs")).exists()
