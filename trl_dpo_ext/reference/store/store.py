"""The reference's log-probs, kept: a folder of Parquet parts, per token, found by what was scored.

    store = Store.open("refs", identity)
    todo = store.missing(keys)
    with store.writer() as writer:          # refuses a folder it could not write to, before any work
        for key in todo:
            writer.add(key, prompt_tokens, token_logps)
    logps = store.load(keys)                # this run's, in memory
    logps[key]                              # (completion_tokens,) float32

Several processes and machines may add at once without a lock: every part has a name of its own and appears whole.
Opening reads keys and lengths only; what a damaged part held counts as missing (see `parts`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ..identity.identity import Identity
from .atomic import remove_stale_temporaries
from .keys import KeyIndex, pack_keys
from .manifest import PARTS, Manifest, check_folder, create, read_manifest, writable
from .parts import SUFFIX, CorruptPartError, Part, quarantine, read_logps, read_part
from .table import LogpTable, MissingSequenceError, load_table
from .verify import Report, verify
from .writer import PartWriter, StoreWriteError

__all__ = ["LogpTable", "MissingSequenceError", "PartWriter", "Report", "Store", "StoreWriteError"]


@dataclass(frozen=True)
class PartIndex:
    """What a set of parts holds, in the order of the parts' names; of a sequence held twice, the first counts."""

    parts: tuple[Part, ...]

    @cached_property
    def index(self) -> KeyIndex:
        """Finds a sequence among those of all parts, one part after the other."""
        return KeyIndex.build(np.concatenate([np.empty((0, 2), np.uint64), *(part.words for part in self.parts)]))

    @cached_property
    def starts(self) -> np.ndarray:
        """Where each part begins in that order: shape `(parts + 1,)`."""
        return np.cumsum([0, *(part.sequences for part in self.parts)])


class Store:
    """Per-token reference log-probs by content; made with `Store.open` or `Store.read_only`.

    Attributes:
        folder (`Path`): Where it lies.
        identity (`Identity`): The reference that all of it was computed with.
        created (`str`): Date and time in UTC.
        damaged (`dict[str, str]`): Parts found damaged by this object, and why; what they held counts as missing.
    """

    def __init__(self, folder: Path, manifest: Manifest, may_write: bool) -> None:
        self.folder = folder
        self.identity = manifest.identity
        self.created = manifest.created
        self.damaged: dict[str, str] = {}
        self._may_write = may_write
        self._parts: dict[str, Part] = {}
        self._holdings: PartIndex | None = None
        self.refresh()

    @classmethod
    def open(cls, folder: str | Path, identity: Identity, *, create: bool = True) -> Store:
        """The store of this reference in that folder, made when there is none.

        A folder without write permission is opened too, since everything a run needs may be there; `writer` refuses it.

        Raises:
            InputError: When the store is another reference's (with the fields that differ), the path is something
                else, or it cannot be created.
        """
        folder = Path(folder)
        check_folder(folder)
        manifest = read_manifest(folder)
        if manifest is None:
            manifest = _created(folder, identity, create)
        differences = identity.differences(manifest.identity)
        if differences:
            raise InputError(_another_reference(folder, differences))
        may_write = writable(folder) is None
        if may_write:
            remove_stale_temporaries(folder / PARTS)
            remove_stale_temporaries(folder)
        return cls(folder, manifest, may_write)

    @classmethod
    def read_only(cls, folder: str | Path) -> Store:
        """Whatever reference the store is of, without writing, renaming or removing anything.

        Raises:
            InputError: When there is no store.
        """
        folder = Path(folder)
        check_folder(folder)
        manifest = read_manifest(folder)
        if manifest is None:
            raise InputError(f"There is no store at {folder}.")
        return cls(folder, manifest, may_write=False)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts in use, oldest first."""
        return self._held.parts

    @property
    def _held(self) -> PartIndex:
        if self._holdings is None:
            self._holdings = PartIndex(tuple(self._parts[name] for name in sorted(self._parts)))
        return self._holdings

    def __len__(self) -> int:
        """Sequences held, each counted once."""
        return len(self._held.index)

    def __contains__(self, key: bytes) -> bool:
        return not self.missing([key])

    def missing(self, keys: Iterable[bytes], *, check_values: bool = False) -> list[bytes]:
        """Those keys that the store does not hold, each once, in the order given.

        Args:
            keys (`Iterable[bytes]`): From `sequence_key`.
            check_values (`bool`): Also read the log-probs of every part that holds one of them and check them now;
                otherwise a part whose log-probs were altered is found when `load` reads it.
        """
        unique = list(dict.fromkeys(keys))
        words = pack_keys(unique)
        found = self._held.index.find(words)
        if check_values:
            numbers = np.unique(np.searchsorted(self._held.starts, found[found >= 0], side="right") - 1)
            for part in [self.parts[number] for number in numbers]:
                self._try_reading(part)
            found = self._held.index.find(words)
        return [unique[at] for at in np.flatnonzero(found < 0)]

    def _try_reading(self, part: Part) -> None:
        try:
            read_logps(part)
        except FileNotFoundError as gone:
            self._refresh_after(gone)
        except CorruptPartError as damage:
            self._drop(damage)

    def load(self, keys: Iterable[bytes] | None = None) -> LogpTable:
        """The log-probs of these sequences (of all, without `keys`) in memory: 4 bytes a token, 32 a sequence.

        Raises:
            MissingSequenceError: When one is not held, or its part turns out damaged.
        """
        wanted = None if keys is None else list(dict.fromkeys(keys))
        while True:  # ends: every turn but the last drops a part
            try:
                return load_table(self.folder, self.parts, self._held.index, wanted)
            except CorruptPartError as damage:
                self._drop(damage)
            except FileNotFoundError as gone:
                self._refresh_after(gone)

    def values(self, keys: Iterable[bytes]) -> list[np.ndarray]:
        """Log-probs of some sequences, float32 of shape `(completion_tokens,)` each, read from the disk.

        Reads whole parts; a run that asks again and again takes `load`.

        Raises:
            MissingSequenceError: When one is not held.
        """
        keys = list(keys)
        loaded = self.load(keys)
        return [loaded[key] for key in keys]

    def verify(self) -> Report:
        """Read every part in full and say what is wrong with it; changes nothing."""
        return verify(self.parts, self.damaged)

    def writer(self, **settings: Any) -> PartWriter:
        """For adding sequences, as a context manager; `settings` are those of `PartWriter`.

        Raises:
            InputError: At once, when the folder cannot be written to or has too little room for what is announced.
        """
        reason = writable(self.folder) if self._may_write else "it is open for reading only"
        if reason:
            raise InputError(f"The store at {self.folder} lacks sequences and cannot be added to: {reason}.")
        return PartWriter(self, **settings)

    def add_part(self, part: Part, instead_of: Iterable[Part] = ()) -> None:
        """Count a part that was just written, in the place of others that it was merged from."""
        for merged in instead_of:
            self._parts.pop(merged.path.name, None)
        self._parts[part.path.name] = part
        self._holdings = None

    def refresh(self) -> int:
        """See the parts that others have written or removed since; returns how many more sequences are held."""
        before = len(self._held.index)
        names = {path.name for path in (self.folder / PARTS).glob(f"*{SUFFIX}") if not path.name.startswith(".")}
        for name in self._parts.keys() - names:
            del self._parts[name]
        for name in sorted(names - self._parts.keys() - self.damaged.keys()):
            self._open_part(self.folder / PARTS / name)
        self._holdings = None
        return len(self._held.index) - before

    def _refresh_after(self, gone: FileNotFoundError) -> None:
        self._parts.pop(Path(gone.filename).name)
        self.refresh()

    def _open_part(self, path: Path) -> None:
        try:
            part = read_part(path)
        except FileNotFoundError:
            return
        except CorruptPartError as damage:
            self._drop(damage)
            return
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.") from error
        if part.reference != self.identity.fingerprint:
            raise InputError(f"{path} was computed with another reference than the store's. Take it out of the folder.")
        self._parts[path.name] = part

    def _drop(self, damage: CorruptPartError) -> None:
        path, reason = damage.path, damage.reason
        self.damaged[path.name] = reason
        self._parts.pop(path.name, None)
        self._holdings = None
        aside = self._may_write and quarantine(path)
        done = f"It was renamed to {path.name}.damaged" if aside else "It is ignored"
        warnings.warn(f"{path} is damaged: {reason}. {done}; what it held counts as missing.", stacklevel=3)


def _created(folder: Path, identity: Identity, allowed: bool) -> Manifest:
    if not allowed:
        raise InputError(f"There is no store at {folder}.")
    return create(folder, identity)


def _another_reference(folder: Path, differences: list[str]) -> str:
    return (
        f"The store at {folder} was made with another reference: {'; '.join(differences)}. "
        "Pass --ref_store another folder, or the settings that the store was made with."
    )
