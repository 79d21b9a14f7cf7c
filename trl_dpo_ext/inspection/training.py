"""Tokenize a run's datasets as TRL does, before a model is loaded where that is possible, and say what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from datasets import Dataset

from .. import _trl
from ..data.findings import NOTE, Finding
from ..data.streams import StreamReport
from ..data.tokenized import tokenized
from .pair_table import pair_table
from .rules import find
from .token_kinds import TokenKinds

_PROMPTS = 1000
"""How many prompts are tokenized alone, at most."""


class DatasetPreparation:
    """Prepares the datasets of one run, and warns of what was found in them.

    Args:
        streams: counts streamed datasets while they are read.
        eos_ids: further tokens that end a sequence, such as those of the model's generation configuration.
    """

    def __init__(self, streams: StreamReport, eos_ids: Iterable[int] = ()) -> None:
        self.streams, self.eos_ids = streams, tuple(eos_ids)
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
        if _trl.image_columns(getattr(datasets["train_dataset"], "column_names", None) or ()):
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
        for known, under, result in self._early:
            if known is dataset and under is args:
                return result
        return self._prepared(prepare, dataset, processing_class, args, name)

    def forget(self) -> None:
        """Let go of the datasets that were tokenized early."""
        self._early = []

    def _prepared(self, prepare: Callable[..., Any], dataset: Any, processing_class: Any, args: Any, name: str) -> Any:
        return tokenized(prepare, dataset, processing_class, args, name, self.streams, self._found)

    def _found(self, dataset: Dataset, prepared: Dataset, processing_class: Any, args: Any) -> list[Finding]:
        if not _trl.is_tokenized(prepared) or not len(prepared):
            return []
        loaded = np.arange(len(dataset))
        kinds = TokenKinds(processing_class, self.eos_ids)
        table = pair_table(prepared, kinds, processing_class, args, loaded, _trl.kept_rows(prepared), _PROMPTS)
        return [finding for finding in find(table) if finding.level != NOTE]
