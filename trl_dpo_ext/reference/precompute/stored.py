"""The stored log-probs of one run: which sequences it needs, the pass that computes the missing ones, the collator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from datasets import Dataset, IterableDataset

from ... import _trl
from ...forward.compatibility import branch_problems
from ...forward.run_rows import row_logps
from ...forward.tree_rows import build_tree_rows
from ..store.store import Store
from .batching import Batch
from .collator import ReferenceCollator
from .runner import Communicator, PrecomputeStats, ReferencePass, default_max_tokens, split_by_length
from .sequences import TokenSequence, batch_sequences

_ROWS_AT_ONCE = 256
_SEQUENCES_PER_PASS = 100_000

Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]
Running = Callable[[], AbstractContextManager[tuple[Any, Any]]]
"""Gives the reference for a pass: what to call, and the causal model in it. Called only when something is missing."""


class StoredLogps:
    """What a run reads from a store, and how it fills it.

    Args:
        host: the trainer.
        store: of the run's reference.
        max_tokens: token positions per batch of the pass; None for the default.
    """

    def __init__(self, host: _trl.Host, store: Store, max_tokens: int | None = None) -> None:
        self.host, self.store, self.max_tokens = host, store, max_tokens
        self.stats = PrecomputeStats()
        self._keys: dict[bytes, None] | None = {}
        self._collator: ReferenceCollator | None = None

    def collator(self, collator: Collator) -> ReferenceCollator:
        """Wrap a collator so that its batches hold the stored log-probs."""
        self._collator = ReferenceCollator(collator, self.store.load(self._keys), _trl.REFERENCE_COLUMNS)
        return self._collator

    def fill(self, dataset: Any, name: str, collator: Collator, running: Running, streams: bool = False) -> None:
        """Compute what the store lacks of `dataset`, with all processes of the trainer.

        Args:
            dataset: tokenized, as `collator` takes it.
            name: of the dataset, for the progress bar.
            collator: without the stored log-probs.
            running: gives the reference, if anything is missing.
            streams: whether to read a streamed dataset to its end, too; otherwise batches are looked up one by one.
        """
        if isinstance(dataset, IterableDataset) and not streams:
            self._keys = None  # load all: which sequences the stream holds is only known batch by batch
            self._reload()
            return
        portions = _portions(dataset, self.host.collated_columns(), collator)
        # Processes whose data differ in length still take each step together.
        while any(_trl.gather_object((wanted := next(portions, None)) is not None)):
            self._fill(wanted or {}, name, running)
            _trl.free_memory()  # of a reference that was loaded for this pass
            if self._keys is not None:
                self._keys.update(dict.fromkeys(wanted or {}))
        self._reload()

    def _reload(self) -> None:
        if self._collator is not None:
            self.store.refresh()
            self._collator.logps = self.store.load(self._keys)

    def _fill(self, wanted: dict[bytes, TokenSequence], name: str, running: Running) -> None:
        accelerator, args = self.host.trainer.accelerator, self.host.trainer.args
        communicator = Communicator(accelerator.process_index, accelerator.num_processes, _trl.gather_object)
        self.store.refresh()
        if not any(communicator.gather(len(self.store.missing(wanted, check_values=True)))):
            self.stats.found += len(wanted)
            return
        with running() as (model, causal):
            config = causal.config.get_text_config()
            run = ReferencePass(
                self.store,
                _scorer(self.host, model, causal),
                hidden_size=config.hidden_size,
                max_tokens=self.max_tokens or default_max_tokens(accelerator.device, config, causal.dtype),
                share=not branch_problems(causal),
                synchronous_forward=self.host.is_sharded,
                communicator=communicator,
                label=name,
                disable_tqdm=args.disable_tqdm,
            )
            self.stats.add(run.run(wanted))
            self.max_tokens = run.max_tokens  # lower, if a batch did not fit in memory


def _scorer(host: _trl.Host, model: Any, causal: Any) -> Callable[[Batch], list[Any]]:
    pad = host.pad_token_id

    def run(batch: Batch) -> list[Any]:
        rows = build_tree_rows(
            [row.sequences[0].prompt.tolist() for row in batch.rows],
            [[sequence.completion.tolist() for sequence in row.sequences] for row in batch.rows],
            pad,
        )
        logps = host.as_reference(lambda: row_logps(model, causal, rows))
        lengths = [len(sequence.completion) for row in batch.rows for sequence in row.sequences]
        return split_by_length(logps.float().cpu().numpy(), lengths)

    return run


def _portions(
    dataset: Any, columns: list[str] | None, collator: Callable[..., Any]
) -> Iterator[dict[bytes, TokenSequence]]:
    """The sequences of a dataset by key, in portions that fit in memory."""
    wanted: dict[bytes, TokenSequence] = {}
    for examples in _examples(dataset, columns):
        for sequence in batch_sequences(collator(examples)):
            if sequence is not None:
                wanted.setdefault(sequence.key, sequence)
        if len(wanted) >= _SEQUENCES_PER_PASS:
            yield wanted
            wanted = {}
    if wanted:
        yield wanted


def _examples(dataset: Any, columns: list[str] | None) -> Iterator[list[dict[str, Any]]]:
    """A few hundred rows at a time, with what the collator reads of them."""
    if isinstance(dataset, Dataset):
        dataset = dataset.with_format(None)
        if columns is not None:
            dataset = dataset.select_columns([name for name in columns if name in dataset.column_names])
    for batch in dataset.iter(batch_size=_ROWS_AT_ONCE):
        yield [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
