"""The stored log-probs of one run: which sequences it needs, the pass that computes the missing ones, the collator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from ... import _trl
from ...errors import InputError
from ...forward.compatibility import packing_problems
from ...forward.run_rows import sequence_logps
from ..store.keys import KeyIndex, pack_keys
from ..store.shared_memory import Allocate, SharedMemory
from ..store.store import Store
from ..store.table import LogpTable, MissingSequenceError, described
from .batching import Batch
from .collator import ReferenceCollator
from .filling import ImageSource, Missing, Source, TextSource
from .image_keys import ImageKeys
from .image_pass import image_pass
from .image_rows import ImageRows
from .pass_run import Fetch, PrecomputeStats
from .processes import Communicator, Node
from .runner import ReferencePass, default_max_tokens, fetched_later
from .sequences import batch_sequences
from .settings import PassSettings
from .wanted import Collator, Sequences

Running = Callable[[], AbstractContextManager[tuple[Any, Any]]]
"""Gives the reference for a pass: what to call, and the causal model in it. Called only when something is missing."""


class StoredLogps:
    """What a run reads from a store, and how it fills it.

    One process of each node reads data and store. The others map what it found, unless their data differ from its own.

    Args:
        host: the trainer.
        store: of the run's reference.
        max_tokens: token positions per batch of the pass; None for the default.
        settings: of the pass.
        known: datasets with images whose keys were read before.
    """

    def __init__(
        self,
        host: _trl.Host,
        store: Store,
        max_tokens: int | None = None,
        settings: PassSettings = PassSettings(),  # noqa: B008 (frozen)
        known: Sequence[tuple[Dataset, ImageKeys]] = (),
    ) -> None:
        self._known = known
        self.host, self.store, self.max_tokens, self.settings = host, store, max_tokens, settings
        self._nonfinite: list[bytes] | None = [] if settings.leaves_out_nonfinite else None
        """Keys of sequences that were left out; None where they are an error."""
        self.stats = PrecomputeStats()
        self._keys: list[np.ndarray] | None = []
        """Packed keys that this process has found and that no table holds yet; None for all of the store."""
        self._collator: ReferenceCollator | None = None

    @cached_property
    def communicator(self) -> Communicator:
        """All processes of the run."""
        accelerator = self.host.trainer.accelerator
        return Communicator(accelerator.process_index, accelerator.num_processes, _trl.gather_object)

    @cached_property
    def node(self) -> Node:
        """The processes of this machine; every process asks for it at the same time."""
        return Node.find(self.communicator, self.host.trainer.accelerator.local_process_index, self.store.folder)

    def collator(self, collator: Collator, plain: Any = None) -> ReferenceCollator:
        """Wrap a collator so that its batches hold the stored log-probs.

        Args:
            collator: that builds batches.
            plain: TRL's own inside of it, which tells what rows with images are fed.
        """
        images = plain if self.host.has_images else None
        self._collator = ReferenceCollator(collator, self._load(), _trl.REFERENCE_COLUMNS, images)
        return self._collator

    def sums(self, batch: dict[str, Any]) -> list[float] | None:
        """The stored log-probs of a collated batch, summed for each row; None if any sequence was not loaded."""
        sequences = [sequence for sequence in batch_sequences(batch) if sequence is not None]
        if self._collator is None or len(sequences) < len(batch["input_ids"]):
            return None
        try:
            found = self._collator.logps.values([sequence.key for sequence in sequences])
        except MissingSequenceError:
            return None
        return [float(values.sum()) for values in found]

    def fill(self, dataset: Any, name: str, collator: Collator, running: Running, streams: bool = False) -> None:
        """Compute what the store lacks of `dataset`, with all processes of the trainer.

        Args:
            dataset: tokenized, as `collator` takes it.
            name: of the dataset, for the progress bar.
            collator: without the stored log-probs.
            running: gives the reference, if anything is missing.
            streams: whether to read a streamed dataset to its end, too; otherwise batches are looked up one by one.
        """
        if isinstance(dataset, IterableDataset) and self.host.has_images:
            raise InputError(_trl.STREAMED_IMAGES)
        if isinstance(dataset, IterableDataset) and not streams:
            self._keys = None  # load all: which sequences the stream holds is only known batch by batch
        elif self.host.has_images:
            known = next((keys for other, keys in self._known if other is dataset), None)
            rows: Any = dataset
            images = ImageSource(rows, collator, name, self.host.trainer.args.disable_tqdm, known)
            self._fill_from(images, name, lambda lacking: self._compute_images(rows, collator, lacking, name, running))
        else:
            source = TextSource(dataset, self.host.collated_columns(), collator)
            self._fill_from(source, name, lambda missing: self._compute(missing, name, running))
        if self._collator is not None:
            self._collator.logps = self._load()

    def _fill_from(self, source: Source[Missing], name: str, compute: Callable[[Missing], None]) -> None:
        """Compute what the store lacks of some data."""
        reader = self.node.alike(source.content() if len(self.node.ranks) > 1 else None)
        # Processes whose data differ in length still take each step together.
        while self._fill_portion(reader, source, name, compute):
            _trl.free_memory()  # of a reference that was loaded for this pass

    def _fill_portion(
        self, reader: Node, source: Source[Missing], name: str, compute: Callable[[Missing], None]
    ) -> bool:
        """Compute what is missing of the next portion; False if no process has one."""
        shared = reader.once(lambda allocate: self._find(source, allocate), f"reading the {name} dataset")
        arrays = dict(shared.arrays)
        wanted, missing = arrays.pop("counts").tolist(), source.kind(**arrays)
        everyone = self.communicator.gather((wanted, len(missing)))
        self.stats.found += wanted - len(missing)
        if any(missing for _, missing in everyone):
            compute(missing)
            self._check_complete(reader, missing.packed, wanted)
        return any(wanted for wanted, _ in everyone)

    def _find(self, source: Source[Missing], allocate: Allocate) -> None:
        """Read the next portion of the data, and leave what the store lacks of it."""
        portion = source.next(self.store)
        if self._keys is not None:
            self._keys.append(portion.keys)
        given = {"counts": np.array(len(portion.keys)), **vars(portion.missing)}
        arrays = allocate({name: (array.shape, array.dtype) for name, array in given.items()})
        for name, array in given.items():
            arrays[name][...] = array

    def _compute(self, missing: Sequences, name: str, running: Running) -> None:
        device = self.host.trainer.accelerator.device
        with running() as (model, causal):
            config = causal.config.get_text_config()
            run = ReferencePass(
                self.store,
                _starter(self.host, model, causal),
                max_tokens=self.max_tokens or default_max_tokens(device, config, causal.dtype, missing.longest),
                share=not packing_problems(causal),
                synchronous_forward=self.host.is_sharded,
                communicator=self.communicator,
                title=self.settings.title.format(name),
                disable_tqdm=self.host.trainer.args.disable_tqdm,
                nonfinite=self._nonfinite,
            )
            self.stats.add(run.run(missing.by_key()))
            self.max_tokens = run.max_tokens  # lower, if a batch did not fit in memory

    def _compute_images(
        self, dataset: Dataset, collator: Collator, missing: ImageRows, name: str, running: Running
    ) -> None:
        with running() as (model, causal):
            run = image_pass(
                self.host,
                model,
                causal,
                self.max_tokens,
                store=self.store,
                dataset=dataset,
                collator=collator,
                communicator=self.communicator,
                title=self.settings.title.format(name),
                nonfinite=self._nonfinite,
            )
            self.stats.add(run.run(missing))
            self.max_tokens = run.max_tokens

    def _check_complete(self, reader: Node, missing: np.ndarray, wanted: int) -> None:
        """Check that the pass has left nothing out of (sequences, 2) packed keys.

        Raises:
            InputError: another node writes to another folder.
        """
        left = 0
        if reader.is_first:
            self.store.refresh()
            left = int((self.store.lacks(missing) & ~self._left_out(missing)).sum())
        else:
            self.store.forget()  # the parts that this process has written
        error = None
        if left:
            error = InputError(
                f"{left} of {wanted} sequences are still missing from {self.store.folder} after the reference pass. "
                "With several nodes, --ref_store must be on a shared filesystem."
            )
        self.communicator.raise_together(error, "checking the store after the reference pass")

    def _left_out(self, packed: np.ndarray) -> np.ndarray:
        """Which keys are of sequences without finite log-probs, (keys,) bool."""
        return KeyIndex.build(pack_keys(self._nonfinite or [])).find(packed) >= 0

    def _load(self) -> LogpTable:
        """Read what the processes of this node need into memory that they share."""
        keys = None if self._keys is None else np.concatenate([np.empty((0, 2), np.uint64), *self._keys])
        keys = None if keys is None else keys[~self._left_out(keys)]
        sent = None if self.node.is_first or keys is None or not len(keys) else _sent(keys)
        addresses = self.communicator.gather(sent and sent.address)

        def read(allocate: Allocate) -> None:
            theirs = [SharedMemory.attach(addresses[rank]).wait() for rank in self.node.ranks if addresses[rank]]
            if keys is None:
                self.store.load_arrays(None, allocate)
                return
            known = [] if self._collator is None else [self._collator.logps.index.packed]
            several = [keys, *known, *(arrays["keys"] for arrays in theirs if arrays)]
            self.store.load_arrays(KeyIndex.build(np.concatenate(several)).packed, allocate)

        shared = self.node.once(read, f"reading the reference store {self.store.folder}")
        self.store.forget()
        if self._keys is not None:
            self._keys = []
        return LogpTable.of(shared.arrays, described(self.store.folder), shared.memory)


def _sent(keys: np.ndarray) -> SharedMemory:
    """Keys in memory for the first process of the node."""
    memory = SharedMemory.create()
    if memory is None:
        raise InputError("The system has refused more shared memory (memfd_create). Raise its limit.")
    memory.allocate({"keys": (keys.shape, keys.dtype)})["keys"][:] = keys
    memory.publish()
    return memory


def _starter(host: _trl.Host, model: Any, causal: Any) -> Callable[[Batch], Fetch]:
    def start(batch: Batch) -> Fetch:
        completions = [sequence.completion for sequence in batch.sequences]
        starts = [len(sequence.prompt) - 1 for sequence in batch.sequences]
        logps = host.as_reference(lambda: sequence_logps(model, causal, batch.packed(), completions, starts))
        return fetched_later(logps, [len(completion) for completion in completions])

    return start
