"""A store checked in full, and shown: the command `trl-dpo-ext store`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .keys import unpack_keys
from .manifest import PARTS
from .parts import DAMAGED, CorruptPartError, Part, read_logps

if TYPE_CHECKING:
    from .store import Store


@dataclass(frozen=True)
class Report:
    """What reading a whole store found.

    Attributes:
        sequences, tokens (`int`): Read, those that are held twice counted twice.
        damaged (`dict[str, str]`): Names of parts that are not what was written, and why.
        conflicting (`tuple[bytes, ...]`): Keys that are held twice with different log-probs.
        apart (`float`): The largest difference of two such log-probs.
    """

    sequences: int
    tokens: int
    damaged: dict[str, str]
    conflicting: tuple[bytes, ...]
    apart: float

    @property
    def problems(self) -> list[str]:
        """In words; empty when all is well."""
        found = [f"{name} is damaged: {reason}" for name, reason in self.damaged.items()]
        if self.conflicting:
            found.append(
                f"{len(self.conflicting)} sequences are held twice with different log-probs (up to {self.apart:.2g} a "
                f"token), {self.conflicting[0].hex()} the first: their reference was not computed with equal numerics"
            )
        return found


def verify(parts: Sequence[Part], damaged: dict[str, str]) -> Report:
    """Read every part in full: checksums, lengths, finite values, and equal values where a key is held twice.

    Args:
        parts (`Sequence[Part]`): As opened.
        damaged (`dict[str, str]`): What opening them has found already.
    """
    damaged = dict(damaged)
    twice = _held_twice(parts)
    seen: dict[bytes, np.ndarray] = {}
    apart: dict[bytes, float] = {}
    sequences = tokens = 0
    for part in parts:
        try:
            logps = read_logps(part)
        except (CorruptPartError, OSError) as error:
            damaged[part.path.name] = str(error)
            continue
        if not np.isfinite(logps).all():
            damaged[part.path.name] = "it holds log-probs that are not finite"
        sequences, tokens = sequences + part.sequences, tokens + part.tokens
        for key, values in _rows(part, logps, twice):
            first = seen.setdefault(key, values)
            if not np.array_equal(first, values):
                apart[key] = _distance(first, values)
    return Report(sequences, tokens, damaged, tuple(apart), max(apart.values(), default=0.0))


def _held_twice(parts: Sequence[Part]) -> set[bytes]:
    words = np.concatenate([np.empty((0, 2), np.uint64), *(part.words for part in parts)])
    unique, counts = np.unique(words, axis=0, return_counts=True)
    return set(unpack_keys(unique[counts > 1]))


def _rows(part: Part, logps: np.ndarray, keys: set[bytes]) -> Iterable[tuple[bytes, np.ndarray]]:
    ends = np.cumsum(part.completion_tokens, dtype=np.int64)
    for row, key in enumerate(unpack_keys(part.words)) if keys else ():
        if key in keys:
            yield key, logps[ends[row] - part.completion_tokens[row] : ends[row]].copy()


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first - second).max()) if len(first) == len(second) else float("inf")


def show(folder: str, *, check: bool) -> tuple[str, bool]:
    """What the command prints, and whether all is well as far as it looked.

    Raises:
        InputError: When there is no store.
    """
    from .store import Store

    with warnings.catch_warnings(record=True):  # said in the text
        warnings.simplefilter("always")
        store = Store.read_only(folder)
    lines = [f"{store.folder}: reference log-probs, begun {store.created}", *_reference(store), *_counts(store)]
    lines += [f"set aside        {path.name}" for path in sorted((store.folder / PARTS).glob(f"*{DAMAGED}"))]
    if not check:
        lines += [f"damaged          {name}: {reason}" for name, reason in store.damaged.items()]
        return "\n".join(lines), True
    problems = store.verify().problems
    lines += problems or [f"verified         {len(store.parts)} parts are as they were written"]
    return "\n".join(lines), not problems


def _reference(store: Store) -> list[str]:
    known = store.identity.keyed
    config = known.pop("config")
    shown = {**known, "config": f"{config.get('model_type', 'unknown')}, all fields in manifest.json"}
    recorded = store.identity.recorded
    shown |= {name: recorded[name] for name in ("source", "revision", "attention") if recorded[name]}
    shown["versions"] = " ".join(f"{name} {version}" for name, version in recorded["versions"].items())
    return [f"{name.replace('_', ' '):17}{value}" for name, value in shown.items()]


def _counts(store: Store) -> list[str]:
    parts = store.parts
    held = sum(part.sequences for part in parts)
    twice = f" ({held - len(store):,} more are held twice)" if held > len(store) else ""
    size = sum(_size(part.path) for part in parts)
    dates = sorted(part.created for part in parts)
    return [
        f"{'sequences':17}{len(store):,}{twice}",
        f"{'tokens':17}{sum(part.tokens for part in parts):,}",
        f"{'parts':17}{len(parts):,}, {size / 1e6:,.1f} MB",
        *([f"{'written':17}{dates[0]} to {dates[-1]}"] if dates else []),
    ]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
