"""The command `trl-dpo-ext store`: describe a store of reference log-probs, and verify it."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..reference.store.manifest import PARTS
from ..reference.store.parts import CORRUPT_SUFFIX
from ..reference.store.store import Store


def run(argv: Sequence[str], prog: str) -> int:
    """Print a store's description and return the exit status: 1 if verifying found a problem."""
    parser = argparse.ArgumentParser(prog, description="Show what a store of reference log-probs holds.")
    parser.add_argument("folder", help="the store's folder, as passed to --ref_store")
    parser.add_argument("--verify", action="store_true", help="read every part; exit with status 1 if one is corrupt")
    parsed = parser.parse_args(argv)
    text, is_sound = show(parsed.folder, check=parsed.verify)
    print(text)
    return 0 if is_sound else 1


def show(folder: str, *, check: bool) -> tuple[str, bool]:
    """Describe a store, and return whether `check` found no problem.

    Raises:
        InputError: the folder is not a store.
    """
    with warnings.catch_warnings(record=True):  # corrupt parts are listed in the text
        warnings.simplefilter("always")
        store = Store.read_only(folder)
    lines = [f"{store.folder}: reference log-probs, created {store.created}", *_reference(store), *_counts(store)]
    lines += [_field("quarantined", path.name) for path in sorted((store.folder / PARTS).glob(f"*{CORRUPT_SUFFIX}"))]
    if not check:
        lines += [_field("corrupt", f"{name}: {reason}") for name, reason in store.corrupt.items()]
        return "\n".join(lines), True
    problems = store.verify().problems
    lines += problems or [_field("verified", f"{len(store.parts)} parts, no problems")]
    return "\n".join(lines), not problems


def _reference(store: Store) -> list[str]:
    keyed, recorded = store.identity.keyed, store.identity.recorded
    model_type = keyed.pop("config").get("model_type", "unknown")
    processor = keyed.pop("processor", None)
    shown = {**keyed, "config": f"{model_type}, all fields in manifest.json"}
    shown |= {} if processor is None else {"processor": f"{_described(processor)}, all settings in manifest.json"}
    shown |= {name: recorded[name] for name in ("source", "revision", "attention") if recorded[name]}
    shown["versions"] = " ".join(f"{name} {version}" for name, version in recorded["versions"].items())
    return [_field(name.replace("_", " "), value) for name, value in shown.items()]


def _described(processor: Mapping[str, Any]) -> str:
    """The class of a processor, and the size that it gives images."""
    size = (processor.get("image_processor") or {}).get("size")
    sizes = [f"{name} {value}" for name, value in size.items()] if isinstance(size, Mapping) else [str(size)]
    return " ".join([processor.get("class", "unknown"), *(sizes if size else [])])


def _counts(store: Store) -> list[str]:
    parts = store.parts
    rows = sum(part.sequences for part in parts)
    duplicates = f" ({rows - len(store):,} more are stored twice)" if rows > len(store) else ""
    size = sum(_size(part.path) for part in parts)
    dates = sorted(part.created for part in parts)
    return [
        _field("sequences", f"{len(store):,}{duplicates}"),
        _field("tokens", f"{sum(part.tokens for part in parts):,}"),
        _field("parts", f"{len(parts):,}, {size / 1e6:,.1f} MB"),
        *([_field("written", f"{dates[0]} to {dates[-1]}")] if dates else []),
    ]


def _field(name: str, value: object) -> str:
    return f"{name:17}{value}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
