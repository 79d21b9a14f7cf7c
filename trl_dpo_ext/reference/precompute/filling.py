"""What a store is filled from: a dataset that is read in portions, of sequences or of rows with images."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from datasets import Dataset

from ... import _trl
from ..identity.processor import processor_settings
from ..store.keys import KeyIndex
from ..store.store import Store
from .image_keys import ImageKeys
from .image_reading import read_keys
from .image_rows import ImageRows
from .wanted import Collator, Sequences, content, portions

Missing = TypeVar("Missing", Sequences, ImageRows)


@dataclasses.dataclass
class Portion(Generic[Missing]):
    """Some of the data.

    Attributes:
        keys: (sequences, 2) uint64; what it needs, each once.
        missing: what the store lacks of it.
    """

    keys: np.ndarray
    missing: Missing


class Source(Protocol[Missing]):
    """Data that a store is filled from."""

    kind: type[Missing]
    """What portions hold; its fields are arrays."""

    def content(self) -> Hashable:
        """What processes with the same data have in common; None if that cannot be told without reading it all."""
        ...

    def next(self, store: Store) -> Portion[Missing]:
        """Read the next portion, and find what the store lacks of it; an empty one after the last."""
        ...


class TextSource:
    """Tokenized data.

    Args:
        dataset: as `collator` takes it.
        columns: what the collator reads; None for all.
        collator: without the stored log-probs.
    """

    kind = Sequences

    def __init__(self, dataset: Any, columns: list[str] | None, collator: Collator) -> None:
        self._dataset, self._collator = dataset, collator
        self._unread = portions(dataset, columns, collator)

    def content(self) -> Hashable:
        """See `Source.content`."""
        return content(self._dataset, self._collator)

    def next(self, store: Store) -> Portion[Sequences]:
        """See `Source.next`."""
        read = next(self._unread, None) or Sequences.of(())
        store.refresh()
        return Portion(read.keys, read.copied(store.lacks(read.keys, check_values=True)))


class ImageSource:
    """Data with images, which is one portion.

    Args:
        dataset: not tokenized.
        collator: TRL's for images.
        name: of the dataset, for messages.
        disable_tqdm: whether to show no progress bar.
        known: the keys of all rows, if they were read before.
    """

    kind = ImageRows

    def __init__(
        self, dataset: Dataset, collator: Any, name: str, disable_tqdm: bool = False, known: ImageKeys | None = None
    ) -> None:
        self._dataset, self._collator, self._name, self._disable_tqdm = dataset, collator, name, disable_tqdm
        self._known = known

    def content(self) -> Hashable:
        """See `Source.content`."""
        settings = processor_settings(self._collator.processor)
        return _trl.hashed((_trl.fingerprint(self._dataset), self._collator.max_length, settings))

    def next(self, store: Store) -> Portion[ImageRows]:
        """See `Source.next`."""
        known = self._known or read_keys(self._dataset, self._collator, self._name, disable_tqdm=self._disable_tqdm)
        self._known = ImageKeys.zeros(0)
        flat = known.keys.reshape(-1, 2)
        store.refresh()
        lacks = store.lacks(flat, check_values=True).reshape(-1, 2)
        return Portion(KeyIndex.build(flat).packed, ImageRows.of(known, lacks))
