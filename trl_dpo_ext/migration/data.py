"""Datasets of other tools: one dataset by its name, several as a mixture, shares and counts as slices of a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .draft import Draft


@dataclass
class Source:
    """One dataset of a run.

    Attributes:
        path: Hub id, folder, or file.
        split: the split that is trained on; None for `train`.
        name: of its configuration.
        columns: the columns that are kept.
        share: of its rows, up to 1; or their number, from 2 on; None for all.
        folder: inside a dataset of the Hub, that is read alone.
        reader: for a file, what `datasets` reads its kind with.
    """

    path: str
    split: str | None = None
    name: str | None = None
    columns: Sequence[str] | None = None
    share: float | int | None = None
    folder: str | None = None
    reader: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all rows are read."""
        return self.share is None or float(self.share) == 1.0

    @property
    def slice(self) -> str:
        """The split, with how much of it is read."""
        split = self.split or "train"
        if self.is_whole:
            return split
        assert self.share is not None
        return f"{split}[:{round(100 * self.share)}%]" if self.share < 1 else f"{split}[:{int(self.share)}]"

    def described(self) -> dict[str, Any]:
        """An entry of `datasets:`."""
        place: dict[str, Any] = {"path": self.reader, "data_files": self.path} if self.reader else {"path": self.path}
        place["data_dir"] = self.folder
        entry = {**place, "name": self.name, "split": self.slice, "columns": self.columns}
        return {key: list(value) if key == "columns" else value for key, value in entry.items() if value}


def put_sources(draft: Draft, sources: Sequence[Source], test_split: str | None = None) -> None:
    """Set the training data.

    Args:
        draft: what to set it in.
        sources: at least one.
        test_split: the split for evaluation, if the other configuration names one.
    """
    if len(sources) == 1 and sources[0].is_whole and not sources[0].columns and not sources[0].folder:
        (one,) = sources
        draft.put("dataset_name", one.path)
        if one.name and one.name != "default":
            draft.put("dataset_config", one.name)
        if one.split and one.split != "train":
            draft.put("dataset_train_split", one.split)
        if test_split and test_split != "test":
            draft.put("dataset_test_split", test_split)
    else:
        draft.put("datasets", [source.described() for source in sources])
        if test_split and "test_split_size" not in draft.keys:
            draft.differs(
                f"Evaluation used the split {test_split!r}. A mixture here holds out rows of itself: set "
                "test_split_size, or train on one dataset with dataset_test_split."
            )
    if not all(source.is_whole for source in sources):
        draft.differs("Slices take the first rows of a split, where other tools may draw them.")


def hold_out(draft: Draft, key: str, value: Any) -> None:
    """Carry over how many rows, or which share of them, are held out: a rule."""
    if value:
        draft.put("test_split_size", value)
