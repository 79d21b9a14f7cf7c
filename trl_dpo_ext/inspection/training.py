"""Tokenize a run's datasets as TRL does, before a model is loaded where that is possible, and say what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from .. import _trl
from ..data.findings import NOTE, Finding
from ..data.lists.pair_rows import LIST_ROW, is_of_lists
from ..data.lists.tokenizing import ListPreparation
from ..data.prepare import KEPT_WHOLE, Kept
from ..data.streams import StreamReport
from ..data.tokenized import tokenized
from ..forward.list_rows import LIST_IDS
from .list_table import list_table
from .pair_table import alone_lengths, pair_table
from .rules import find
from .token_kinds import TokenKinds

_PROMPTS = 1000
"""How many prompts are tokenized alone, at most: of rows that are kept, and of those that are dropped."""


class DatasetPreparation:
    """Prepares the datasets of one run, and warns of what was found in them.

    Args:
        streams: counts streamed datasets while they are read.
        eos_ids: further tokens that end a sequence, such as those of the model's generation configuration.
        kept: what was kept of `train_dataset`, `eval_dataset`, or each part of the latter.
    """

    def __init__(
        self, streams: StreamReport, eos_ids: Iterable[int] = (), kept: Mapping[str, Kept] | None = None
    ) -> None:
        self.streams, self.eos_ids, self._kept = streams, tuple(eos_ids), dict(kept or {})
        self._early: list[tuple[Any, Any, Any]] = []

    def prepare_early(self, datasets: Mapping[str, Any], processing_class: Any, args: Any) -> None:
        """Tokenize datasets before there is a trainer; TRL's constructor is given the results when it asks for them.

        Streams and datasets with images are left to the constructor.

        Args:
            datasets: `train_dataset` and `eval_dataset`, in a layout that TRL takes.
            processing_class: the tokenizer or processor.
            args: the run's configuration.

        Raises:
            InputError: no row of a dataset is left.
        """
        prepare = _trl.preparation(processing_class)
        evaluated = datasets["eval_dataset"]
        parts = evaluated.items() if isinstance(evaluated, dict) else [("eval", evaluated)]
        train = datasets["train_dataset"]
        if _trl.is_transformed(train) or _trl.image_columns(getattr(train, "column_names", None) or ()):
            return
        for name, dataset in [("train", datasets["train_dataset"]), *parts]:
            if isinstance(dataset, Dataset):
                self._early.append((dataset, args, self._prepared(prepare, dataset, processing_class, args, name)))

    def prepared(self, prepare: Callable[..., Any], dataset: Any, processing_class: Any, args: Any, name: str) -> Any:
        """Return a tokenized dataset, which may have been tokenized before.

        Args:
            prepare: TRL's `_prepare_dataset`.
            dataset, processing_class, args, name: its arguments.
        """
        if isinstance(dataset, Dataset) and LIST_IDS in dataset.column_names:
            return dataset
        for known, under, result in self._early:
            if known is dataset and under is args:
                return result
        return self._prepared(prepare, dataset, processing_class, args, name)

    def forget(self) -> None:
        """Let go of the datasets that were tokenized early."""
        self._early, self._kept = [], {}

    def _prepared(self, prepare: Callable[..., Any], dataset: Any, processing_class: Any, args: Any, name: str) -> Any:
        if is_of_lists(dataset):
            return self._prepared_lists(prepare, dataset, processing_class, args, name)
        numbers = self._numbers(name)

        def find_in(dataset: Dataset, prepared: Dataset) -> list[Finding]:
            return self._found(dataset, prepared, processing_class, args, numbers)

        return tokenized(prepare, dataset, processing_class, args, name, self.streams, find_in, numbers)

    def _prepared_lists(
        self, prepare: Callable[..., Any], dataset: Any, processing_class: Any, args: Any, name: str
    ) -> Any:
        """Lists, tokenized as pairs."""
        preparation = ListPreparation(prepare)

        def find_in(pairs: Dataset, _: Dataset) -> list[Finding]:
            assert preparation.found is not None
            kinds = TokenKinds(processing_class, self.eos_ids)
            return _told(find(list_table(preparation.found, pairs, kinds, processing_class, args, _PROMPTS)))

        numbers = dataset[LIST_ROW][:]
        settings = (dataset, processing_class, args, name, self.streams, find_in, numbers)
        return tokenized(preparation, *settings, lambda: preparation.lost(args))

    def _numbers(self, name: str) -> Sequence[int]:
        """The numbers of the rows of a dataset, by the name that TRL gives it."""
        labels = ["train_dataset"] if name == "train" else [f"eval_dataset[{name!r}]", "eval_dataset"]
        return next((self._kept[label].numbers for label in labels if label in self._kept), KEPT_WHOLE.numbers)

    def _found(
        self, dataset: Dataset, prepared: Dataset, processing_class: Any, args: Any, numbers: Sequence[int]
    ) -> list[Finding]:
        if not _trl.is_tokenized(prepared) or not len(prepared):
            return []
        loaded, kinds = np.asarray(numbers[: len(dataset)]), TokenKinds(processing_class, self.eos_ids)
        places = _trl.kept_rows(prepared)
        table = pair_table(prepared, kinds, processing_class, args, loaded, loaded[places], _PROMPTS)
        gone = np.setdiff1d(np.arange(len(dataset)), places)
        if "prompt" in dataset.column_names and len(gone) <= _PROMPTS:
            table.dropped_prompts = alone_lengths(dataset, gone, processing_class)
        return _told(find(table))


def _told(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level != NOTE]
