"""Names of models and data as a card may show them: a hub id with its link, or a name without this machine's paths."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, IterableDataset
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

HUB = "https://huggingface.co"
_FILE_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".gz", ".zst", ".zip", ".gguf")
_FILE_BUILDERS = ("json", "csv", "parquet", "arrow", "text", "generator", "pandas", "sql", "webdataset")
_SNAPSHOT = re.compile(r"(?:models|datasets)--(?:([^/\\]+?)--)?([^/\\]+)[/\\]snapshots[/\\]")
_PATH = re.compile(r"(?<![\w.:/\\~-])(?:[A-Za-z]:|~|\.\.?)?(?:[/\\][^\s/\\,;:'\"()\[\]{}]+)+[/\\]?")


@dataclass(frozen=True)
class Named:
    """A model or a dataset by the name that a card shows."""

    name: str
    """A hub id, or the last part of a path."""
    kind: Literal["model", "dataset"]
    on_hub: bool
    details: str = ""
    """Such as a revision or a split; may be empty."""
    revision: str | None = None

    def markdown(self) -> str:
        """The name, as a link if it is a hub id."""
        shown = f"[{self.name}]({self.url})" if self.on_hub else f"`{self.name}`"
        return f"{shown} ({self.details})" if self.details else shown

    @property
    def url(self) -> str:
        """Where the hub shows it, at its revision."""
        folder = "datasets/" if self.kind == "dataset" else ""
        return f"{HUB}/{folder}{self.name}" + (f"/tree/{self.revision}" if self.revision else "")


def named(name: Any, kind: Literal["model", "dataset"], details: str = "", revision: str | None = None) -> Named | None:
    """Tell hub ids from files and folders; None without a name.

    A folder of the hub's cache counts as the id that it was downloaded from.
    """
    text = str(name or "").strip()
    if not text:
        return None
    cached = _SNAPSHOT.search(text + "/")
    if cached:
        text = "/".join(part for part in cached.groups() if part)
    elif not is_hub_id(text):
        return Named(last_part(text), kind, on_hub=False, details=details)
    return Named(text, kind, on_hub=True, details=details, revision=revision)


def is_hub_id(name: str) -> bool:
    """Whether the hub takes a name as the id of a model or a dataset, and this machine has no file of that name."""
    if name.lower().endswith(_FILE_SUFFIXES) or name in _FILE_BUILDERS or Path(name).expanduser().exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def last_part(path: str) -> str:
    """The last part of a path or a URL, without the folders in front and without a query."""
    return re.split(r"[/\\]", path.split("?")[0].rstrip("/\\"))[-1] or path.strip("/\\") or "a local folder"


def without_paths(text: str) -> str:
    """Replace each absolute path in a text by its last part; hub ids and URLs stay."""
    return _PATH.sub(lambda found: last_part(found[0]), text.replace("file://", ""))


def dataset_of(dataset: Any) -> Named | None:
    """The name of a dataset that was handed to the trainer, as far as the object tells.

    Data from the hub is cached in a folder `<namespace>___<name>`; a folder of files gives its name; one file, rows in
    memory and streams give none.
    """
    if isinstance(dataset, Dataset):
        for file in dataset.cache_files:
            for part in Path(str(file["filename"])).parts:
                namespace, found, name = part.partition("___")
                if found and is_hub_id(f"{namespace}/{name}"):
                    return Named(f"{namespace}/{name}", "dataset", on_hub=True)
    info = getattr(dataset, "info", None)
    name = getattr(info, "dataset_name", None)
    return None if not name or name in _FILE_BUILDERS else Named(last_part(str(name)), "dataset", on_hub=False)


def rows_of(dataset: Any) -> str:
    """The number of pairs of a dataset, in words."""
    if isinstance(dataset, IterableDataset):
        return "streamed"
    return f"{len(dataset):,} pairs" if hasattr(dataset, "__len__") else "pairs of unknown number"
