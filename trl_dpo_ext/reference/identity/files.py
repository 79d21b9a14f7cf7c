"""Hashes of a checkpoint's weight files, cached so that a second start does not read gigabytes."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .hashing import combined, files_hash, hashing_threads

CACHE_VARIABLE = "TRL_DPO_EXT_CACHE"
_CACHE_FILE = "weight_hashes.json"
_OTHER_WEIGHTS = (
    "subfolder", "variant", "gguf_file", "key_mapping", "state_dict", "ignore_mismatched_sizes", "adapter_kwargs",
    "adapter_name", "from_tf", "from_flax",
)  # fmt: skip
_SETTLED_NS = 2_000_000_000  # a file altered within this time may be altered again without a new time stamp


def cache_folder() -> Path:
    """Return the cache folder: `$TRL_DPO_EXT_CACHE`, or a folder in Hugging Face's cache."""
    from huggingface_hub import constants

    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else Path(constants.HF_HOME) / "trl_dpo_ext"


def loads_files_as_they_are(load: Mapping[str, Any]) -> bool:
    """Whether `from_pretrained` with these keywords gives a model the weights of the files that `weight_files` lists.

    Keywords that choose other files, rename weights, or leave some at random values make it another model.
    """
    return not any(load.get(name) for name in _OTHER_WEIGHTS) and load.get("use_safetensors") is not False


def weight_files(source: str, revision: str | None = None) -> list[Path] | None:
    """List the files that `from_pretrained(source)` loads weights from, sorted by name, without network access.

    Args:
        source: a folder, or the name of a Hub model in the local cache.
        revision: branch, tag or commit.

    Returns:
        The files, or None if `source` has no local weight files of a known name.
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
    """Return the commit of files in the Hub's local cache (the name of their folder there); None for other files."""
    folder = files[0].parent
    return folder.name if folder.parent.name == "snapshots" else None


def weight_files_hash(paths: Sequence[Path]) -> str:
    """Hash the content of files; their folder, names and dates do not matter.

    Raises:
        OSError: a file cannot be read.
    """
    real = [Path(os.path.realpath(path)) for path in paths]
    before = {path: _state(path) for path in real}
    cached = _read_cache()
    known = {path: hash_ for path in real if (hash_ := _lookup(cached, path, before[path]))}
    fresh = sorted({*real} - known.keys())
    if fresh:
        with hashing_threads() as pool:
            known.update(zip(fresh, files_hash(pool, fresh), strict=True))
        _update_cache({path: (before[path], known[path]) for path in fresh if _state(path) == before[path]})
    return combined("weight files", len(real), digests=(bytes.fromhex(known[path]) for path in real)).hex()


def _state(path: Path) -> tuple[int, int, int]:
    """Size and times of a file. Copies and archives keep or set the first time; nothing but the system the second."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _lookup(cached: Mapping[str, object], path: Path, state: tuple[int, int, int]) -> str | None:
    entry = cached.get(str(path))
    if isinstance(entry, list) and len(entry) == 4 and entry[:3] == list(state) and isinstance(entry[3], str):
        with contextlib.suppress(ValueError):
            return entry[3] if len(bytes.fromhex(entry[3])) == 32 else None
    return None


def _read_cache() -> dict[str, object]:
    try:
        cached = json.loads((cache_folder() / _CACHE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return cached if isinstance(cached, dict) else {}


def _update_cache(fresh: Mapping[Path, tuple[tuple[int, int, int], str]]) -> None:
    """Add hashes to the cache file. Two processes at once may lose each other's entries; those are hashed again."""
    settled = time.time_ns() - _SETTLED_NS
    entries = {str(path): [*state, hash_] for path, (state, hash_) in fresh.items() if state[1] < settled}
    if entries:
        with contextlib.suppress(OSError):  # the cache is a convenience
            cache_folder().mkdir(parents=True, exist_ok=True)
            content = json.dumps({**_read_cache(), **entries}, indent=1)
            temporary = cache_folder() / f".{_CACHE_FILE}.{os.getpid()}-{secrets.token_hex(4)}"
            temporary.write_text(content, encoding="utf-8")
            temporary.replace(cache_folder() / _CACHE_FILE)  # readers never see half a file
