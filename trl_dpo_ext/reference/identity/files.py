"""The hash of a checkpoint's weight files, remembered, so that a second start does not read gigabytes."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..store.atomic import atomic_write
from .hashing import combined, files_hash, hashing_threads

CACHE_VARIABLE = "TRL_DPO_EXT_CACHE"
_REMEMBERED = "weight_hashes.json"
_STILL_NS = 2_000_000_000  # a file altered within this time may be altered again without a new time stamp


def cache_folder() -> Path:
    """Where things are remembered between runs: `$TRL_DPO_EXT_CACHE`, or a folder in Hugging Face's cache."""
    from huggingface_hub import constants

    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else Path(constants.HF_HOME) / "trl_dpo_ext"


def weight_files(source: str, revision: str | None = None) -> list[Path] | None:
    """The files that `from_pretrained(source)` takes weights from, in the order of their names; never asks a server.

    Args:
        source (`str`): A folder, or the name of a model on the hub that is in the local cache.
        revision (`str`): Branch, tag or commit.

    Returns:
        `list[Path]`, or None where `source` has no weight files that are known here.
    """
    from transformers import utils

    for single, index in (
        (utils.SAFE_WEIGHTS_NAME, utils.SAFE_WEIGHTS_INDEX_NAME),
        (utils.WEIGHTS_NAME, utils.WEIGHTS_INDEX_NAME),
    ):
        if (found := _local_file(source, single, revision)) is not None:
            return [found]
        if (found := _local_file(source, index, revision)) is not None:
            shards = sorted(set(json.loads(found.read_text(encoding="utf-8"))["weight_map"].values()))
            return [found.parent / shard for shard in shards]
    return None


def _local_file(source: str, name: str, revision: str | None) -> Path | None:
    from transformers.utils import cached_file

    try:
        found = cached_file(
            source,
            name,
            revision=revision,
            local_files_only=True,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):  # no such folder, no such name
        return None
    return Path(found) if found else None


def commit_of(files: Sequence[Path]) -> str | None:
    """The commit that files in the hub's local cache belong to, which is the name of their folder there."""
    folder = files[0].parent
    return folder.name if folder.parent.name == "snapshots" else None


def weight_files_hash(paths: Sequence[Path]) -> str:
    """One hash of the content of these files; where they lie, their names and dates do not matter.

    Raises:
        OSError: When one cannot be read.
    """
    real = [Path(os.path.realpath(path)) for path in paths]
    before = {path: _state(path) for path in real}
    remembered = _read_remembered()
    known = {path: hash_ for path in real if (hash_ := _recall(remembered, path, before[path]))}
    fresh = sorted({*real} - known.keys())
    if fresh:
        with hashing_threads() as pool:
            known.update(zip(fresh, files_hash(pool, fresh), strict=True))
        _remember({path: (before[path], known[path]) for path in fresh if _state(path) == before[path]})
    return combined("weight files", len(real), digests=(bytes.fromhex(known[path]) for path in real)).hex()


def _state(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _recall(remembered: Mapping[str, object], path: Path, state: tuple[int, int]) -> str | None:
    entry = remembered.get(str(path))
    if isinstance(entry, list) and len(entry) == 3 and entry[:2] == list(state) and isinstance(entry[2], str):
        with contextlib.suppress(ValueError):
            return entry[2] if len(bytes.fromhex(entry[2])) == 32 else None
    return None


def _read_remembered() -> dict[str, object]:
    try:
        remembered = json.loads((cache_folder() / _REMEMBERED).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return remembered if isinstance(remembered, dict) else {}


def _remember(fresh: Mapping[Path, tuple[tuple[int, int], str]]) -> None:
    """Two processes at once may forget each other's: the file is whole all the same, and hashing again is only slow."""
    settled = time.time_ns() - _STILL_NS
    entries = {str(path): [*state, hash_] for path, (state, hash_) in fresh.items() if state[1] < settled}
    if entries:
        with contextlib.suppress(OSError):  # the cache is a convenience
            cache_folder().mkdir(parents=True, exist_ok=True)
            atomic_write(cache_folder() / _REMEMBERED, json.dumps({**_read_remembered(), **entries}, indent=1).encode())
