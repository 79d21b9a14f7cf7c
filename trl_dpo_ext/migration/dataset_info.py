"""Datasets as LLaMA-Factory's `dataset_info.json` describes them: files, columns, and tags of messages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from .data import Source

NAME = "dataset_info.json"
_TAGS = {
    "role_tag": ("from", {"from", "role"}),
    "content_tag": ("value", {"value", "content"}),
    "user_tag": ("human", {"human", "user"}),
    "assistant_tag": ("gpt", {"gpt", "assistant", "chatgpt"}),
    "system_tag": ("system", {"system"}),
}
"""Tag -> what it is by default, and what is read here."""
_READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".arrow": "arrow", ".txt": "text"}
_ELSEWHERE = {
    "ms_hub_url": "ModelScope",
    "om_hub_url": "Modelers",
    "script_url": "a script, which would be run",
    "cloud_file_name": "cloud storage",
}


@dataclass
class Described:
    """What becomes of one dataset.

    Attributes:
        source: where it is; None if it cannot be named here.
        columns: from our names to its columns.
        reasons: what of it has no counterpart here.
        effects: what differs in effect.
    """

    source: Source | None = None
    columns: dict[str, str] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    effects: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DatasetInfo:
    """The table of one `dataset_info.json`.

    Attributes:
        entries: by name.
        folder: that its files are in.
    """

    entries: Mapping[str, Any]
    folder: Path

    @classmethod
    def read(cls, file: Path) -> DatasetInfo:
        """Read the file.

        Raises:
            InputError: it cannot be read, or holds no table.
        """
        try:
            entries = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"--dataset_info {file} could not be read: {error}. Pass a {NAME}.") from None
        if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
            raise InputError(f"--dataset_info {file} must hold a mapping of names to datasets.")
        return cls(entries, file.parent)

    @classmethod
    def find(cls, configuration: Path, dataset_dir: Any) -> DatasetInfo | None:
        """Read the file that a configuration means, if it is there: beside it, or in its `dataset_dir`.

        Args:
            configuration: the file of the configuration.
            dataset_dir: as it is given there, relative to the folder that LLaMA-Factory is started in: any above.
        """
        folder = configuration.absolute().parent
        named = dataset_dir if isinstance(dataset_dir, str) else "data"
        places = [folder, Path(named), *(above / named for above in (folder, *folder.parents))]
        file = next((place / NAME for place in places if (place / NAME).is_file()), None)
        return None if file is None else cls.read(file)

    def describe(self, name: str, rows: int | None = None) -> Described:
        """Translate the entry of a name.

        Args:
            name: of the dataset.
            rows: the most that are read of it (`max_samples`).
        """
        entry = self.entries.get(name)
        if entry is None:
            return Described(reasons=[f"{name} is not in {self.folder / NAME}"])
        found = Described(self._source(entry, rows))
        if found.source is None:
            place = next((words for key, words in _ELSEWHERE.items() if key in entry), "a place that is not known here")
            found.reasons.append(f"{name} comes from {place}: write its Hub id or file")
        if not entry.get("ranking"):
            found.reasons.append(f"{name} has no pairs: its ranking is false")
        is_chat = entry.get("formatting", "alpaca") in ("sharegpt", "openai")
        found.columns = dict(_columns(entry.get("columns", {}), is_chat))
        found.reasons += [f"{name} has {reason}" for reason in _unread(entry)]
        if "prompt" in found.columns and "," in found.columns["prompt"]:
            found.effects.append(
                f"LLaMA-Factory joins {found.columns['prompt'].replace(',', ' and ')} of {name} by "
                "one line break; here "
                "a blank line is between them."
            )
        if entry.get("num_samples"):
            found.effects.append(f"{name}: num_samples draws rows, and here the first {entry['num_samples']} are read.")
        return found

    def _source(self, entry: Mapping[str, Any], rows: int | None) -> Source | None:
        limits = [limit for limit in (rows, entry.get("num_samples")) if limit]
        share = min(limits) if limits else None
        split, name = entry.get("split"), entry.get("subset")
        if entry.get("hf_hub_url"):
            return Source(entry["hf_hub_url"], split, name, share=share, folder=entry.get("folder"))
        if entry.get("file_name") and not set(entry) & set(_ELSEWHERE):
            file = self.folder / entry["file_name"]
            return Source(str(file), split, name, share=share, reader=_READERS.get(file.suffix))
        return None


def _columns(given: Mapping[str, Any], is_chat: bool) -> Iterator[tuple[str, str]]:
    """Our names and the dataset's, where they differ."""
    if is_chat:
        prompt = given.get("messages", "conversations")
    else:
        prompt = ",".join(given[key] for key in ("prompt", "query") if given.get(key)) or "instruction"
    named = {
        "prompt": prompt,
        **{key: given[key] for key in ("chosen", "rejected", "system", "tools") if given.get(key)},
    }
    if given.get("images"):
        named["images"] = given["images"]
    yield from ((ours, theirs) for ours, theirs in named.items() if ours != theirs)


def _unread(entry: Mapping[str, Any]) -> Iterator[str]:
    """What of an entry is not read here."""
    columns = entry.get("columns", {})
    for key, reason in (
        ("history", "earlier turns in their own column"),
        ("videos", "videos"),
        ("audios", "sounds"),
        ("kto_tag", "labels of single answers, which are no pairs"),
    ):
        if columns.get(key):
            yield f"{reason} ({key}: {columns[key]}), which are not read here"
    tags = entry.get("tags", {})
    for tag, (_, known) in _TAGS.items():
        if tag in tags and tags[tag] not in known:
            names = " or ".join(sorted(known))
            yield f"messages with {tag} {tags[tag]!r}, where {names} is read here: rename it in the rows"


def differing(all_of: Sequence[Described]) -> bool:
    """Whether datasets call their columns differently, which one `dataset_columns` cannot say."""
    return any(one.columns != all_of[0].columns for one in all_of)
