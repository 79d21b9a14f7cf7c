"""A store of reference log-probs: a folder of Parquet parts with one log-prob per token, keyed by token ids.

    store = Store.open("refs", identity)
    todo = store.missing(keys)
    with store.writer() as writer:          # raises for a read-only folder, before any work
        for key in todo:
            writer.add(key, prompt_tokens, token_logps)
    logps = store.load(keys)                # in memory
    logps[key]                              # (completion_tokens,) float32

Several processes and machines may write at once without a lock: every part has a unique name and is written
atomically. Opening reads keys and lengths only; the sequences of a corrupt part count as missing (see `parts`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

from ...errors import InputError
from ..identity.identity import Identity
from .another_reference import AnotherReferenceError
from .atomic import remove_stale_temporaries
from .keys import KeyIndex, pack_keys
from .manifest import MANIFEST, PARTS, Manifest, check_folder, create_store, read_manifest, write_error
from .parts import CORRUPT_SUFFIX, SUFFIX, CorruptPartError, Part, quarantine, read_logps, read_part
from .shared_memory import Allocate, private
from .table import LogpTable, described, load_arrays
from .verify import VerifyReport, verify
from .writer import PartWriter


@dataclass(frozen=True)
class PartIndex:
    """The sequences of a set of parts, in the order of the parts' names; of duplicates, the first counts."""

    parts: tuple[Part, ...]

    @cached_property
    def index(self) -> KeyIndex:
        """Return an index over the sequences of all parts, one part after the other."""
        return KeyIndex.build(np.concatenate([np.empty((0, 2), np.uint64), *(part.packed_keys for part in self.parts)]))

    @cached_property
    def starts(self) -> np.ndarray:
        """Return the position of each part's first sequence in that order, (parts + 1,)."""
        return np.cumsum([0, *(part.sequences for part in self.parts)])


class Store:
    """Per-token reference log-probs, keyed by token ids. Create one with `Store.open` or `Store.read_only`.

    Attributes:
        folder: of the store.
        identity: of the reference that computed all log-probs.
        created: date and time in UTC.
        corrupt: reasons by name for the parts that this object found corrupt; their sequences count as missing.
    """

    def __init__(self, folder: Path, manifest: Manifest, is_writable: bool, read_index: bool = True) -> None:
        self.folder = folder
        self.identity = manifest.identity
        self.created = manifest.created
        self.corrupt: dict[str, str] = {}
        self._is_writable = is_writable
        self._parts: dict[str, Part] = {}
        self._index: PartIndex | None = None
        self._is_read = False
        self._checked: set[str] = set()
        if read_index:
            self.refresh()

    @classmethod
    def open(cls, folder: str | Path, identity: Identity, *, create: bool = True, read_index: bool = True) -> Store:
        """Open the store of a reference, and create it if the folder is empty or absent.

        Read-only folders are opened too, since they may hold everything that a run needs; only `writer` rejects them.

        Args:
            folder: of the store.
            identity: of the reference.
            create: whether to create an absent store, rather than raise.
            read_index: whether to read keys and lengths now, rather than when they are first needed.

        Raises:
            InputError: the store was computed with another reference (the message lists the fields that differ), the
                path is something else, or the store cannot be created.
        """
        folder = Path(folder)
        check_folder(folder)
        manifest = read_manifest(folder)
        if manifest is None:
            manifest = create_store(folder, identity) if create else _raise_absent(folder)
        differences = identity.differences(manifest.identity)
        if differences:
            raise AnotherReferenceError(folder, differences)
        is_writable = write_error(folder) is None
        if is_writable:
            remove_stale_temporaries(folder / PARTS)
            remove_stale_temporaries(folder)
        return cls(folder, manifest, is_writable, read_index)

    @classmethod
    def read_only(cls, folder: str | Path) -> Store:
        """Open a store of any reference, without writing, renaming or removing anything.

        Raises:
            InputError: the folder is not a store.
        """
        folder = Path(folder)
        check_folder(folder)
        manifest = read_manifest(folder)
        if manifest is None:
            _raise_absent(folder)
        return cls(folder, manifest, is_writable=False)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Return the parts in use, oldest first."""
        return self._part_index.parts

    @property
    def _part_index(self) -> PartIndex:
        if not self._is_read:
            self.refresh()
        if self._index is None:
            self._index = PartIndex(tuple(self._parts[name] for name in sorted(self._parts)))
        return self._index

    def __len__(self) -> int:
        """Return the number of sequences, without duplicates."""
        return len(self._part_index.index)

    def __contains__(self, key: bytes) -> bool:
        return not self.missing([key])

    def missing(self, keys: Iterable[bytes], *, check_values: bool = False) -> list[bytes]:
        """Return the keys that the store does not hold, each once, in the order given.

        Args:
            keys: from `sequence_key`.
            check_values: see `lacks`.
        """
        unique = list(dict.fromkeys(keys))
        return [unique[at] for at in np.flatnonzero(self.lacks(pack_keys(unique), check_values=check_values))]

    def lacks(self, packed: np.ndarray, *, check_values: bool = False) -> np.ndarray:
        """Return for each key whether the store does not hold it, (keys,) bool.

        Args:
            packed: (keys, 2) uint64, from `pack_keys`.
            check_values: whether to read and check the log-probs of every part that holds one of the keys, unless this
                object has done so; otherwise a part whose log-probs were altered is found when `load` reads it.
        """
        found = self._part_index.index.find(packed)
        if check_values:
            numbers = np.unique(np.searchsorted(self._part_index.starts, found[found >= 0], side="right") - 1)
            for part in [self.parts[number] for number in numbers]:
                self._check_values(part)
            found = self._part_index.index.find(packed)
        return found < 0

    def _check_values(self, part: Part) -> None:
        if part.path.name in self._checked:
            return
        try:
            read_logps(part)
        except FileNotFoundError as error:
            self._refresh_after(error)
        except CorruptPartError as error:
            self._drop(error)
        else:
            self._checked.add(part.path.name)

    def load(self, keys: Iterable[bytes] | None = None) -> LogpTable:
        """Read the log-probs of these sequences (None for all) into memory: 4 bytes per token, 32 per sequence.

        Raises:
            MissingSequenceError: the store lacks a sequence, or the only part that holds it is corrupt.
        """
        packed = None if keys is None else pack_keys(dict.fromkeys(keys))
        return LogpTable.of(self.load_arrays(packed), described(self.folder))

    def load_arrays(self, packed: np.ndarray | None, allocate: Allocate = private) -> dict[str, np.ndarray]:
        """Read the log-probs of the sequences of these packed keys, each once (None for all), as `LogpTable.of` takes.

        Args:
            packed: (keys, 2) uint64, from `pack_keys`.
            allocate: makes the arrays; called again if a part turns out to be corrupt.

        Raises:
            MissingSequenceError: the store lacks a sequence, or the only part that holds it is corrupt.
        """
        while True:  # ends: every iteration but the last drops a part
            try:
                return load_arrays(self.folder, self.parts, self._part_index.index, packed, allocate)
            except CorruptPartError as error:
                self._drop(error)
            except FileNotFoundError as error:
                self._refresh_after(error)

    def forget(self) -> None:
        """Free the keys and lengths of all sequences; they are read again when they are next needed."""
        self._parts, self._index, self._is_read = {}, None, False
        self._checked.clear()
        pa.default_memory_pool().release_unused()  # what reading parts has taken

    def values(self, keys: Iterable[bytes]) -> list[np.ndarray]:
        """Read the log-probs of some sequences from the disk, (completion_tokens,) float32 each.

        Every call reads all parts that hold them; use `load` for repeated lookups.

        Raises:
            MissingSequenceError: the store lacks a sequence.
        """
        keys = list(keys)
        loaded = self.load(keys)
        return [loaded[key] for key in keys]

    def verify(self) -> VerifyReport:
        """Read every part completely and report what is wrong; changes nothing."""
        return verify(self.parts, self.corrupt)

    def writer(self, **settings: Any) -> PartWriter:
        """Return a context manager that adds sequences; `settings` are those of `PartWriter`.

        Raises:
            InputError: the folder is not writable, or the disk has too little space for the expected size.
        """
        reason = write_error(self.folder) if self._is_writable else "it was opened read-only"
        if reason:
            raise InputError(
                f"Reference store {self.folder} is missing sequences and is not "
                f"writable: {reason}. Fill it with `trl-dpo-ext precompute`, or copy it."
            )
        return PartWriter(self.folder, self.identity.fingerprint, self.add_part, **settings)

    def add_part(self, part: Part, replaces: Sequence[Part] = ()) -> None:
        """Add a part that was just written, and drop the parts that it was merged from."""
        for merged in replaces:
            self._parts.pop(merged.path.name, None)
        self._parts[part.path.name] = part
        self._index = None

    def refresh(self) -> int:
        """Look for parts that other processes have added or removed; returns the change in the number of sequences."""
        before = len(self) if self._is_read else 0
        self._is_read = True
        names = {path.name for path in (self.folder / PARTS).glob(f"*{SUFFIX}") if not path.name.startswith(".")}
        for name in self._parts.keys() - names:
            del self._parts[name]
        for name in sorted(names - self._parts.keys() - self.corrupt.keys()):
            self._open_part(self.folder / PARTS / name)
        self._index = None
        return len(self) - before

    def _refresh_after(self, error: FileNotFoundError) -> None:
        self._parts.pop(Path(error.filename).name)
        self.refresh()

    def _open_part(self, path: Path) -> None:
        try:
            part = read_part(path)
        except FileNotFoundError:
            return
        except CorruptPartError as error:
            self._drop(error)
            return
        except OSError as error:
            raise InputError(f"Cannot read {path}: {error.strerror}. Check its permissions.") from error
        if part.reference != self.identity.fingerprint:
            raise InputError(
                f"{path} was computed with another reference than the rest of the store. Remove it from the folder."
            )
        self._parts[path.name] = part

    def _drop(self, error: CorruptPartError) -> None:
        path, reason = error.path, error.reason
        self.corrupt[path.name] = reason
        self._parts.pop(path.name, None)
        self._index = None
        renamed = self._is_writable and quarantine(path)
        done = f"It was renamed to {path.name}{CORRUPT_SUFFIX}" if renamed else "It is ignored"
        warnings.warn(
            f"{path} is corrupt: {reason}. {done}, and its sequences count as missing. "
            "Run `trl-dpo-ext precompute` to fill the store.",
            stacklevel=3,
        )


def _raise_absent(folder: Path) -> NoReturn:
    raise InputError(
        f"{folder} is not a reference store: it has no {MANIFEST}. Pass the folder that --ref_store names."
    )
