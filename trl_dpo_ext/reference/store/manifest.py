"""The folder of a store: read and create its manifest, and reject folders that are something else."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from ...errors import InputError
from ..identity.identity import Identity
from .atomic import create_exclusive, write_temporary

MANIFEST, PARTS, CARD = "manifest.json", "parts", "README.md"
KIND, FORMAT = "trl_dpo_ext reference log-probs", 1
_LIBRARIES = ("trl-dpo-ext", "torch", "transformers", "trl", "peft", "bitsandbytes", "pyarrow")
_CARD = """---
configs:
- config_name: default
  data_files: parts/*.parquet
tags:
- trl-dpo-ext
---

# Reference log-probs

One row per sequence: `key` (hash of the token ids of prompt and completion), `prompt_tokens`, `completion_tokens`, and
`token_logps`, the log-prob that the reference model gives each token of the completion. `manifest.json` says which
model that is. Copy or upload the folder as it is: `trl-dpo-ext store FOLDER --verify` checks it, `--ref_store FOLDER`
uses it.
"""


@dataclass(frozen=True)
class Manifest:
    """Identity of the reference that a store holds, and when the store was created."""

    identity: Identity
    created: str


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that compute and store log-probs."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def read_manifest(folder: Path) -> Manifest | None:
    """Read the manifest of a folder; None if the folder has no manifest.

    Raises:
        InputError: the manifest is corrupt, was not written by this package, or has a newer format.
    """
    path = folder / MANIFEST
    for delay in (0.0, 0.05, 0.5):  # without hard links, another process may just be writing it
        time.sleep(delay)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            break
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise InputError(
                f"Cannot read the reference store {folder}: {error.strerror}. Check its permissions."
            ) from error
        except ValueError:
            content = None
    if content is None:
        raise InputError(
            f"{path} is corrupt. Restore it from a copy, or delete it: parts of the same reference are recognized "
            "without it."
        )
    return _parsed(folder, content)


def _parsed(folder: Path, content: Any) -> Manifest:
    if not isinstance(content, Mapping) or content.get("kind") != KIND:
        raise InputError(f"{folder / MANIFEST} was not written by trl-dpo-ext. Choose another --ref_store directory.")
    if not isinstance(content.get("format"), int) or content["format"] > FORMAT:
        raise InputError(
            f"The reference store {folder} has format {content.get('format')}, but this version of trl-dpo-ext reads "
            f"formats up to {FORMAT}. Update trl-dpo-ext."
        )
    try:
        return Manifest(Identity.from_json(content["identity"], content["recorded"]), str(content["created"]))
    except (KeyError, TypeError, AttributeError) as error:
        what = f"has no field {error}" if isinstance(error, KeyError) else "is corrupt"
        raise InputError(f"{folder / MANIFEST} {what}. Restore it from a copy, or delete it.") from error


def check_folder(folder: Path) -> None:
    """Reject a path that neither is a store nor can become one.

    Raises:
        InputError: the path is a file, or a folder with other files.
    """
    for place in (folder, *folder.parents):
        if place.exists() or place.is_symlink():
            if not place.is_dir():
                raise InputError(
                    f"Cannot use {folder} as --ref_store: {place} is not a directory. Choose another folder."
                )
            break
    if not folder.is_dir() or (folder / MANIFEST).exists():
        return
    try:
        names = {name for name in os.listdir(folder) if not name.startswith(".")}
    except OSError as error:
        raise InputError(
            f"Cannot read the reference store {folder}: {error.strerror}. Check its permissions."
        ) from error
    if MANIFEST in names:  # another process has created the store meanwhile
        return
    if names - ({PARTS, CARD} if PARTS in names else set()):
        raise InputError(
            f"{folder} is not a reference store and contains other files ({_some(names)}). Choose another --ref_store "
            "directory."
        )


def _some(names: set[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def create_store(folder: Path, identity: Identity) -> Manifest:
    """Create an empty store, or read the one that another process has created meanwhile.

    Raises:
        InputError: the folder is not writable.
    """
    content = {
        "kind": KIND,
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "identity": identity.keyed,
        "recorded": {**identity.recorded, "versions": {**library_versions(), **identity.versions}},
    }
    try:
        (folder / PARTS).mkdir(parents=True, exist_ok=True)
        create_exclusive(folder / MANIFEST, (json.dumps(content, indent=2) + "\n").encode())
        create_exclusive(folder / CARD, _CARD.encode())
    except OSError as error:
        raise InputError(
            f"Cannot create the reference store {folder}: {error.strerror}. Check the "
            "permissions, or set another --ref_store."
        ) from error
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(f"The reference store {folder} was removed while it was being created.")
    return manifest


def write_error(folder: Path) -> str | None:
    """Try to write to the store and return the error, None if new parts can be added."""
    try:
        (folder / PARTS).mkdir(exist_ok=True)
        write_temporary(folder / PARTS, b"").unlink()
    except OSError as error:
        return error.strerror or str(error)
    return None
