"""The stored reference of a trainer: which store it is, how it is filled, and the collator that reads it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from datasets import config as datasets_config

from ... import _trl
from ...errors import InputError
from ...forward.masks import branch_problems
from ...forward.run_rows import score
from ...forward.tree_rows import branch_rows
from ..identity.identify import identify
from ..identity.identity import Identity
from ..model.loading import source_of
from ..model.resolve import is_replicated
from ..model.spec import ReferenceSpec
from ..store.store import Store
from .batching import Batch
from .collator import ReferenceCollator
from .runner import Communicator, PrecomputeStats, ReferencePass, default_max_tokens, split_by_length
from .sequences import TokenSequence, batch_sequences

_ROWS_AT_ONCE = 256
_SEQUENCES_PER_PASS = 100_000


class StoredReference:
    """What a trainer has stored of its reference.

    Args:
        folder: of the store; None for the default, which has one per identity.
        identity: of the reference.
        max_tokens: token positions per batch of the pass; None for the default.
        load: gives the reference where something is missing; None where the trainer has it.
    """

    def __init__(
        self,
        folder: str | None,
        identity: Identity,
        max_tokens: int | None = None,
        load: Callable[[], Any] | None = None,
    ) -> None:
        self.store = Store.open(folder or default_folder(identity), identity)
        self.max_tokens = max_tokens
        self.load = load
        self.report = PrecomputeStats()
        self.released = False
        self._keys: dict[bytes, None] | None = {}
        self._collator: ReferenceCollator | None = None

    def collator(self, collator: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> ReferenceCollator:
        """A collator that adds the stored log-probs to what `collator` builds."""
        self._collator = ReferenceCollator(collator, self.store.load(self._keys), _trl.REFERENCE_COLUMNS)
        return self._collator

    def fill(self, trainer: Any, dataset: Any, name: str, collator: Callable[..., Any], streams: bool = False) -> None:
        """Compute what the store lacks of `dataset`, with all processes of the trainer.

        Args:
            trainer: its reference is run, if anything is missing.
            dataset: tokenized, as `collator` takes it.
            name: of the dataset, for the progress bar.
            collator: without the stored log-probs.
            streams: whether to read a streamed dataset to its end, too; otherwise it is looked up as it comes.
        """
        if isinstance(dataset, IterableDataset) and not streams:
            self._keys = None  # all there are: which of them the stream holds shows as it comes
            return
        portions = _portions(dataset, _trl.collated_columns(trainer), collator)
        # Processes whose data differ in length still take each step together.
        while any(_trl.gather_object((wanted := next(portions, None)) is not None)):
            self._fill(trainer, wanted or {}, name)
            if self._keys is not None:
                self._keys.update(dict.fromkeys(wanted or {}))
        if self._collator is not None:
            self._collator.logps = self.store.load(self._keys)

    def release(self, trainer: Any) -> None:
        """Free a reference model that cannot be loaded again; from now on, a missing sequence is an error."""
        self.released = trainer.ref_model is not None and self.load is None
        _trl.release_reference(trainer)

    def _fill(self, trainer: Any, wanted: dict[bytes, TokenSequence], name: str) -> None:
        processes = Communicator(
            trainer.accelerator.process_index, trainer.accelerator.num_processes, _trl.gather_object
        )
        self.store.refresh()
        if not any(processes.gather(len(self.store.missing(wanted, check_values=True)))):
            self.report.found += len(wanted)
            return
        if self.released:
            raise InputError(_RELEASED)
        with _trl.reference_for_pass(trainer, self.load) as (model, causal):
            config = causal.config.get_text_config()
            run = ReferencePass(
                self.store,
                _scorer(trainer, model, causal),
                hidden_size=config.hidden_size,
                max_tokens=self.max_tokens or default_max_tokens(trainer.accelerator.device, config, causal.dtype),
                share=not branch_problems(causal),
                synchronous_forward=_trl.is_sharded(trainer),
                communicator=processes,
                label=name,
                disable_tqdm=trainer.args.disable_tqdm,
            )
            self.report.add(run.run(wanted))


_RELEASED = (
    "Reference log-probs are missing in the store, and the reference model that would compute them was released after "
    "the reference pass. Pass this dataset as eval_dataset when creating the trainer, or create a new trainer with the "
    "same ref_model."
)


def _scorer(trainer: Any, model: Any, causal: Any) -> Callable[[Batch], list[Any]]:
    pad = trainer.processing_class.pad_token_id or 0

    def run(batch: Batch) -> list[Any]:
        rows = branch_rows(
            [row.sequences[0].prompt.tolist() for row in batch.rows],
            [[sequence.completion.tolist() for sequence in row.sequences] for row in batch.rows],
            pad,
        )
        logps = _trl.as_reference(trainer, lambda: score(model, causal, rows))
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


def has_reference_columns(dataset: Any) -> bool:
    """Whether the user's dataset brings reference log-probs of its own."""
    return set(_trl.REFERENCE_COLUMNS) <= set(dataset.column_names or ())


def open_store(trainer: Any, source: str | None, planned: ReferenceSpec | None) -> StoredReference:
    """The store of a trainer's reference; every process calls this.

    Args:
        trainer: made so far that its models are there, and not trained.
        source: name or folder that the policy was loaded from; None where it was given as an instance.
        planned: the reference, where it is described and not loaded.
    """
    args = trainer.args

    def load() -> Any:
        assert planned is not None
        return _trl.placed(trainer, _trl.with_head(planned.load()), is_replicated(args, planned))

    identity = None
    if planned is not None:
        mine = planned.identity(_trl.autocast_dtype(trainer)) if trainer.accelerator.is_main_process else None
        identity = _trl.gather_object(mine)[0]
    if planned is not None and identity is None:
        trainer.ref_model = load()  # its files are still to come
    if identity is None:
        return StoredReference(args.ref_store, reference_identity(trainer, source), args.precompute_ref_max_tokens)
    identity = identity if is_replicated(args, planned) else _cast(trainer, identity)
    return StoredReference(args.ref_store, identity, args.precompute_ref_max_tokens, load)


def _cast(trainer: Any, identity: Identity) -> Identity:
    """The identity of a reference whose parameters the trainer's engine keeps in the dtype of the forward."""
    if not _trl.casts_parameters(trainer):
        return identity
    return dataclasses.replace(identity, dtype=identity.compute_dtype)


def reference_identity(trainer: Any, source: str | None) -> Identity:
    """Which reference the trainer has: a model of its own, the policy's start, or the adapter that it started from."""
    module = _trl.reference_module(trainer)
    causal = _trl.causal_model(trainer, module)
    revision = (trainer.args.model_init_kwargs or {}).get("revision")
    if trainer.ref_model is not None:
        made_of = source_of(causal)
        source, revision = (made_of.name, made_of.revision) if made_of else (None, None)
    elif getattr(causal, "_hf_peft_config_loaded", False):
        source = None  # what lies in memory is not what the files hold
    compute_dtype = _trl.compute_dtype(trainer, causal)
    # One process reads the weights for all, but where each holds a part of them.
    mine = None
    if trainer.accelerator.is_main_process or (source is None and _trl.is_sharded(trainer)):
        mine = identify(
            module,
            source=source,
            revision=revision,
            adapter=_trl.reference_adapter(trainer),
            compute_dtype=compute_dtype,
        )
    identity = _trl.gather_object(mine)[0]
    whole = trainer.ref_model is not None and is_replicated(trainer.args, trainer.ref_model)
    return identity if whole else _cast(trainer, identity)


def default_folder(identity: Identity) -> Path:
    """A folder of its own for each reference, under the datasets cache."""
    cache = Path(os.fspath(datasets_config.HF_DATASETS_CACHE))
    return cache / "trl_dpo_ext" / "reference" / identity.fingerprint
