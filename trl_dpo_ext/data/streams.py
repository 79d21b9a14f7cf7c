"""Count what becomes of streamed rows while they pass, and tell it once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback

from .. import _trl
from ..errors import InputError
from .findings import WARNING, Finding, told
from .truncation import Cut

COUNTED = 1000
"""How many rows of a stream are counted: what they lose is told then, or when the stream ends before."""


class StreamCounts:
    """What tokenizing and truncating make of the first rows of one stream.

    In the workers of a data loader each counts, and tells, the rows that it reads.

    Args:
        name: of the dataset.
        args: the run's configuration: `max_length`, `truncation_mode`, `ignore_findings`.
    """

    def __init__(self, name: str, args: Any) -> None:
        self.name, self.args, self.limit = name, args, args.max_length
        self.keeps_end = args.truncation_mode == "keep_end"
        self.told = False
        self._start()

    def _start(self) -> None:
        self.cut = Cut(self.limit, self.keeps_end) if self.limit is not None else None
        self.read = self.kept = 0

    @property
    def trains(self) -> bool:
        """Whether this is the training dataset."""
        return self.name == "train"

    def restart(self) -> None:
        """Count from the first row again."""
        if not self.told:
            self._start()

    def before(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Count a row before it is tokenized.

        Raises:
            InputError: none of the first rows was kept.
        """
        if self.read == COUNTED:
            self.tell()
        self.read += not self.told
        return {}

    def after(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Count a tokenized row that was kept."""
        if not self.told:
            self.kept += 1
            if self.cut is not None and set(_trl.TOKEN_IDS) <= set(row):
                self.cut.add_row(*(row[name] for name in _trl.TOKEN_IDS))
        return {}

    def tell(self) -> None:
        """Say once what the rows have lost so far.

        Raises:
            InputError: all of them were dropped.
        """
        if self.told or not self.read:
            return
        self.told = True
        dropped = self.read - self.kept
        if dropped and not self.kept:
            raise InputError(
                f"{self.name} dataset: all of the first {self.read} streamed rows are dropped: the prompt alone fills "
                f"max_length={self.limit}. Raise max_length, or set truncation_mode='keep_end'."
            )
        which = f"the first {self.read} streamed rows"
        found: list[Finding] = []
        if dropped:
            sentence = f"{dropped} of {which} are dropped: the prompt alone fills max_length={self.limit}"
            remedy = "Raise max_length, or filter these rows."
            found.append(Finding("dropped", WARNING, dropped, self.read, sentence, remedy))
        left = f"the {self.kept} that are left of {which}" if dropped else which
        found += self.cut.findings(self.kept, left) if self.cut else []
        for line in told(found, f"{self.name} dataset", self.args):
            warnings.warn(line, stacklevel=2)


class StreamReport(TrainerCallback):
    """Counts the streamed datasets of a run, and tells what is left to tell when one has been read to its end."""

    def __init__(self) -> None:
        self.counts: list[StreamCounts] = []

    def prepared(self, prepare: Callable[..., Any], dataset: Any, processing_class: Any, args: Any, name: str) -> Any:
        """Tokenize a stream as TRL's `_prepare_dataset` does, and count its rows before and after.

        Args:
            prepare: TRL's `_prepare_dataset`.
            dataset, processing_class, args, name: its arguments.
        """
        if _trl.is_tokenized(dataset):
            return prepare(dataset, processing_class, args, name)
        counts = StreamCounts(name, args)
        self.counts.append(counts)
        tokenized = prepare(dataset.map(counts.before), processing_class, args, name).map(counts.after)
        counts.restart()  # TRL has looked at the first row
        return tokenized

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Forget rows that were looked at before training."""
        for counts in self.counts:
            counts.restart()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell what was counted in the first epoch."""
        self._tell(lambda counts: counts.trains)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell what was counted of the evaluation dataset."""
        self._tell(lambda counts: not counts.trains)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell what was counted in a run that ended within its first epoch."""
        self._tell(lambda counts: counts.trains)

    def _tell(self, wanted: Callable[[StreamCounts], bool]) -> None:
        for counts in filter(wanted, self.counts):
            counts.tell()
