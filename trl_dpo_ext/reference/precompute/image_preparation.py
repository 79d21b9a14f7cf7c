"""Prepare batches of rows with images in worker processes, while the model runs."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from ... import _trl
from ...errors import InputError
from .image_batching import ImageBatch
from .image_keys import keys_of
from .image_rows import ImageRows
from .wanted import Collator


class ChangedRowError(InputError):
    """A row is not the one any more whose keys were read."""


@dataclass(frozen=True)
class Workers:
    """How worker processes prepare batches; the defaults are no workers."""

    count: int = 0
    prefetch: int | None = None
    """Batches that each prepares ahead; None for PyTorch's default."""
    pin_memory: bool = False


class Preparation(torch.utils.data.Dataset[Any]):
    """Collates rows of a dataset, by their places: what is indexed by several rows is their batch.

    Args:
        dataset: as `collator` takes it.
        columns: what the collator reads; None for all.
        collator: that training uses.
        images_once: whether the images of both sides are to stand in a batch once, where they are the same.
        expected: the keys of the rows, which a row must still have when it is collated; None for no check.
    """

    def __init__(
        self,
        dataset: Any,
        columns: list[str] | None,
        collator: Collator,
        images_once: bool,
        expected: ImageRows | None = None,
    ) -> None:
        if isinstance(dataset, Dataset) and columns is not None:
            dataset = dataset.select_columns([name for name in columns if name in dataset.column_names])
        self._dataset, self._collator, self._images_once, self._expected = dataset, collator, images_once, expected

    def __getitem__(self, rows: Sequence[int]) -> dict[str, Any] | InputError:
        """Collate rows; an error is returned, for a worker would hide it in its traceback."""
        try:
            return self._collated(rows)
        except ChangedRowError as error:
            return error
        except Exception as error:
            return self._described(rows, error)

    def collated(self, rows: Sequence[int]) -> dict[str, Any]:
        """Collate rows.

        Raises:
            InputError: the collator fails.
        """
        return _raised(self[rows])

    def _collated(self, rows: Sequence[int]) -> dict[str, Any]:
        examples = [dict(self._dataset[row]) for row in rows]
        self._check_unchanged(rows, examples)
        batch = self._collator(examples)
        return _trl.with_images_once(batch) if self._images_once else dict(batch)

    def _check_unchanged(self, rows: Sequence[int], examples: list[dict[str, Any]]) -> None:
        """Check that rows are still those that were read to find what is missing: their keys get the results."""
        if self._expected is None or not _trl.collates_images(self._collator):
            return
        found = keys_of(examples, self._collator).keys
        expected = self._expected.keys[np.searchsorted(self._expected.rows, rows)]
        changed = [row for row, same in zip(rows, (found == expected).all(axis=(1, 2)), strict=True) if not same]
        if changed:
            raise ChangedRowError(
                f"Row {changed[0]} of the dataset has changed since its images were read. Start again, and leave image "
                "files as they are while a run reads them. Change images at random by dataset.map, before the run."
            )

    def _described(self, rows: Sequence[int], error: Exception) -> InputError:
        """The error, with the first row that fails alone."""
        for row in rows if len(rows) > 1 else ():
            try:
                self._collated([row])
            except Exception as of_row:
                rows, error = [row], of_row
                break
        which = f"Row {rows[0]} of the dataset" if len(rows) == 1 else f"Rows {', '.join(map(str, rows))} together"
        problems = error.problems if isinstance(error, InputError) else [f"{type(error).__name__}: {error}"]
        return InputError(f"{which} cannot be prepared for the model; correct or remove it. ({'; '.join(problems)})")


def prepared(
    preparation: Preparation, batches: Iterable[ImageBatch], workers: Workers, most: int
) -> Iterator[ImageBatch]:
    """Yield batches with what the collator made of them, in their order.

    Args:
        preparation: of the dataset.
        batches: that are taken up as workers become free, so that they may depend on what memory has allowed so far.
        workers: that prepare batches; without them this process does.
        most: number of batches at most, which more workers would not serve.

    Raises:
        InputError: the collator fails.
    """
    taken: deque[ImageBatch] = deque()

    def places() -> Iterator[list[int]]:
        for batch in batches:
            taken.append(batch)
            yield batch.part.rows.tolist()

    count = min(workers.count, most)
    loader = DataLoader(
        preparation,
        batch_size=None,
        sampler=places(),
        num_workers=count,
        prefetch_factor=workers.prefetch if count else None,
        pin_memory=workers.pin_memory,
        collate_fn=_unchanged,
        generator=torch.Generator(),  # the global one is left as it is: training draws from it
    )
    for batch in loader:
        yield replace(taken.popleft(), collated=_raised(batch))


@contextlib.contextmanager
def explaining_workers() -> Iterator[None]:
    """Say what to do where a worker ends inside: PyTorch interrupts whatever this process is doing.

    Raises:
        InputError: a worker has ended.
    """
    try:
        yield
    except (RuntimeError, EOFError, ConnectionError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise InputError(
            "A process that prepares images has ended, probably for lack of memory. Lower --dataloader_num_workers or "
            f"--precompute_ref_max_tokens, or give the machine more shared memory. ({error or type(error).__name__})"
        ) from error


def _raised(batch: Mapping[str, Any] | InputError) -> dict[str, Any]:
    if isinstance(batch, InputError):
        raise batch
    return dict(batch)


def _unchanged(batch: Any) -> Any:
    return batch
