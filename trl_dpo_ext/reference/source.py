"""Where reference log-probs come from: one class for each kind of reference, one object for each run.

`ReferenceSource` answers every question about a run's reference: what TRL's constructor may load, what the reference
log-probs of a batch are, what the store is keyed by, what the run summary says. A new kind is one class.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import IterableDataset
from datasets import config as datasets_config

from .. import _trl
from ..core import transforms
from ..core.pairs import Need
from ..forward.outputs import PairBatch, RefLogps
from ..forward.pair_forward import PairForward
from .checkpointed import CheckpointedReference
from .columns import has_reference_columns, refuse_sums, sums_of
from .consistency_check import check_given
from .drift.monitor import DriftMonitor
from .identity.identity import Identity
from .identity.processor import processor_settings
from .identity.unchanged import base_sample
from .model.memory import describe_weights
from .precompute.image_keys import ImageKeys
from .precompute.stored import StoredLogps
from .producer import Producer
from .store.another_reference import check_processor
from .store.store import Store

Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]


@dataclass(frozen=True)
class ReferenceSettings:
    """What every kind of reference needs to know of its run."""

    args: Any
    """The configuration."""
    needs: Need
    """What the losses read."""
    pair_forward: PairForward
    """How models are called."""
    policy_by_name: bool
    """Whether TRL loads the policy."""
    has_images: bool = False
    """Whether the rows have images, which the collator processes."""
    known_images: Sequence[tuple[Any, ImageKeys]] = ()
    """Datasets with images whose keys are read before there is a trainer."""


class ReferenceSource(CheckpointedReference, abc.ABC):
    """The reference of one run.

    Args:
        settings: of the run.
        drift_monitor: measures how far an inexact reference is from what it stands for; None for exact ones.
    """

    host: _trl.Host
    """The trainer, from `constructing` on."""
    is_initial_policy: bool = True
    """Whether the reference is meant to equal the policy before training."""
    is_stored: bool = False
    """Whether log-probs come from a store or dataset columns instead of a live model."""
    is_live: bool = False
    """Whether a model runs beside the policy, or as a part of it, and can score any answer."""
    switches_adapters: bool = False
    """Whether the reference is the policy with its adapter off, or with a frozen copy of it."""

    def __init__(self, settings: ReferenceSettings, drift_monitor: DriftMonitor | None = None) -> None:
        self.settings, self.drift_monitor = settings, drift_monitor

    @contextlib.contextmanager
    def constructing(self, host: _trl.Host) -> Iterator[Any]:
        """Yield the `ref_model` for TRL's constructor, under the patches that the constructor has to run with."""
        self.host = host
        with contextlib.ExitStack() as patches:
            patches.enter_context(_trl.start_kept(self.switches_adapters, base_sample))
            patches.enter_context(_trl.renamed_in_peft())
            yield self._enter(patches)

    @abc.abstractmethod
    def _enter(self, patches: contextlib.ExitStack) -> Any:
        """Enter the patches of this kind; return the `ref_model` for TRL's constructor."""

    def fill(self, dataset: Any, name: str) -> None:
        """Take the place of TRL's `_precompute_ref_logps`, which TRL calls for each dataset at construction."""

    def attach(self, collator: Collator) -> Collator:
        """Finish after TRL's constructor: wrap the collator, free models that are not needed any more."""
        return collator

    def read_streams(self, datasets: dict[str, Any]) -> None:
        """Precompute the log-probs of streamed datasets, which `fill` leaves out."""

    def training_begins(self) -> None:
        """Free what is only needed before training."""

    def logps(self, model: Any, batch: PairBatch) -> RefLogps:
        """The reference log-probs of a batch, calibrated if the run is.

        Args:
            model: the policy as distributed training has wrapped it.
            batch: the batch.
        """
        found = self.uncalibrated_logps(model, batch)
        if self.drift_monitor is None:
            return found
        return self.drift_monitor.corrected(found, batch.mask, self.settings.args.ld_alpha)

    @abc.abstractmethod
    def uncalibrated_logps(self, model: Any, batch: PairBatch) -> RefLogps:
        """The reference log-probs of a batch as they were computed."""

    def logps_of_pair(self, model: Any, batch: PairBatch) -> torch.Tensor | None:
        """The reference log-probs of a pair from another run, summed, (2,); None where they cannot be told."""

    @abc.abstractmethod
    def describe(self) -> str:
        """What the reference is, in a few words, for the run summary."""


class NoReference(ReferenceSource):
    """No loss reads a reference: none is loaded, and its log-probs count as zero."""

    is_initial_policy = False

    def _enter(self, patches: contextlib.ExitStack) -> Any:
        patches.enter_context(_trl.no_reference_model(self.settings.policy_by_name))

    def uncalibrated_logps(self, model: Any, batch: PairBatch) -> RefLogps:
        """Zeros, each (pairs,)."""
        ids = batch.inputs["input_ids"]
        zeros = torch.zeros(ids.size(0) // 2, device=ids.device)
        return RefLogps(zeros, zeros)

    def load_state(self, checkpoint: Path) -> None:
        """Read nothing; whether the checkpoint's reference had moved does not matter."""

    def describe(self) -> str:
        """See `ReferenceSource.describe`."""
        return "none"


class ProducedReference(ReferenceSource):
    """A reference whose log-probs a producer computes, for each batch or for a store."""

    def __init__(self, producer: Producer, settings: ReferenceSettings, drift: DriftMonitor | None = None) -> None:
        super().__init__(settings, drift)
        self.producer, self.is_initial_policy = producer, producer.is_initial_policy
        self.switches_adapters = producer.switches_adapters

    def _enter(self, patches: contextlib.ExitStack) -> Any:
        self.producer.host = self.host
        model = self._load(patches)
        patches.enter_context(_trl.placed_reference(model if self.producer.is_replicated else None))
        return model

    @abc.abstractmethod
    def _load(self, patches: contextlib.ExitStack) -> Any:
        """Enter the patches that loading needs; return the `ref_model` for TRL's constructor."""


class LiveReference(ProducedReference):
    """A reference that runs beside the policy: a model, or the policy itself with its adapter switched."""

    is_live = True

    def _load(self, patches: contextlib.ExitStack) -> Any:
        if Need.REF_ENTROPY in self.settings.needs:
            patches.enter_context(_trl.reference_entropy())
        return self.producer.load()

    def attach(self, collator: Collator) -> Collator:
        """Check that training leaves the reference as it is, correct its error, and turn off its dropout."""
        self.producer.check_fixed()
        self.producer.correct()
        if self.host.trainer.ref_model is not None:
            self.host.trainer.ref_model.eval()
        return collator

    def training_begins(self) -> None:
        """Check once more what the user may have changed since the trainer was created."""
        self.producer.check_fixed()

    def uncalibrated_logps(self, model: Any, batch: PairBatch) -> RefLogps:
        """Run the reference on a batch, without gradient."""
        forward, host = self.settings.pair_forward, self.host
        reference = host.trainer.ref_model
        capture = host.capture_projection(
            model if reference is None else reference, batch.mask, Need.TOKEN_KL in self.settings.needs, forward.active
        )
        with capture as projections:
            chosen, rejected, output = host.run_reference(
                batch.inputs, lambda called: forward.wrap(called, host.causal_model)
            )
        return RefLogps(chosen, rejected, output, projections[0] if projections else None)

    def logps_of_pair(self, model: Any, batch: PairBatch) -> torch.Tensor | None:
        """See `ReferenceSource.logps_of_pair`."""
        found = self.uncalibrated_logps(model, batch)
        return (_trl.scored_tokens(found.output, batch.mask.size(1)).float() * batch.mask).sum(dim=1)

    def describe(self) -> str:
        """See `ReferenceSource.describe`."""
        if self.host.trainer.ref_model is not None:
            return describe_weights(self.host.reference_module())
        if self.host.reference_adapter() is not None:
            return "a frozen copy of the adapter that training started from"
        return "the policy with its adapter off"


class StoredReference(ProducedReference):
    """Log-probs per token from a store, which a producer fills with what is missing.

    A dataset that has reference columns is not stored: its columns are read.
    """

    is_stored = True
    stored: StoredLogps
    """The open store, from the first `fill` on."""

    _collator: Collator | None = None
    _streams: bool = False

    def _load(self, patches: contextlib.ExitStack) -> Any:
        # The reference is loaded when something is missing in the store, not before.
        patches.enter_context(_trl.no_reference_model(self.settings.policy_by_name))
        patches.enter_context(_trl.no_model_hash())
        if self.settings.has_images:
            patches.enter_context(_trl.images_precomputed_later(self.settings.args))
        return self.producer.load_unless_on_demand()

    def fill(self, dataset: Any, name: str) -> None:
        """Compute what the store lacks of a dataset."""
        refuse_sums(self.settings.needs, dataset, name)
        if has_reference_columns(dataset) and not self.settings.has_images:
            return
        if hasattr(self, "stored"):
            self._check_processor()
        else:
            args = self.settings.args
            identity = self._identity()
            store = Store.open(args.ref_store or default_folder(identity), identity, read_index=False)
            settings = self._pass_settings
            known = self.settings.known_images
            self.stored = StoredLogps(self.host, store, args.precompute_ref_max_tokens, settings, known)
        self._streams |= isinstance(dataset, IterableDataset)
        self.stored.fill(dataset, name, self._plain_collator, self.producer.running)

    def _check_processor(self) -> None:
        """Check that the processor is still the one that the store was opened with."""
        if hasattr(self, "stored") and self.host.has_images:
            check_processor(self.stored.store.folder, processor_settings(self.host.trainer.processing_class))

    def _identity(self) -> Identity:
        """The identity of the reference, with the processor where rows have images."""
        identity = self.producer.identity()
        if not self.host.has_images:
            return identity
        settings = processor_settings(self.host.trainer.processing_class)
        return dataclasses.replace(identity, processor=settings)

    def read_streams(self, datasets: dict[str, Any]) -> None:
        """Fill the store with the streamed datasets among `datasets`, reading them to their end."""
        for name, dataset in datasets.items():
            if isinstance(dataset, IterableDataset):
                self.stored.fill(dataset, name, self._plain_collator, self.producer.running, streams=True)

    def attach(self, collator: Collator) -> Collator:
        """Let batches carry stored log-probs, and free a reference model that is not needed any more."""
        self._collator = self.host.trainer.data_collator  # without what adds columns to its batches
        if self.settings.has_images:
            self.host.precompute_images()
        reading = self.stored.collator(collator, self._collator)
        if not self._streams:
            if self._is_given_again():
                folder, forward = self.stored.store.folder, self.settings.pair_forward
                check_given(self.host, self.producer.running, reading, forward, folder)
            self.producer.release()
        return reading

    def _is_given_again(self) -> bool:
        """Whether a reference is in memory whose log-probs a store held before; the same on every process."""
        trainer = self.host.trainer
        if trainer.ref_model is None or not self.settings.args.verify_reference:
            return False
        return not self._pass_settings.leaves_out_nonfinite and any(_trl.gather_object(self.stored.stats.found))

    @property
    def _pass_settings(self) -> Any:
        return self.host.trainer.pass_settings  # type: ignore[attr-defined]  # of our trainer

    def training_begins(self) -> None:
        """Free a reference model that was kept for streamed datasets, or that its caller held until now."""
        self._check_processor()
        self.producer.training_begins()
        _trl.free_memory()

    def uncalibrated_logps(self, model: Any, batch: PairBatch) -> RefLogps:
        """Sum up the stored log-probs of the batch."""
        if batch.stored is None:
            return sums_of(batch)
        sums = transforms.sum_logps(batch.stored, batch.mask, self.settings.args.ld_alpha)
        chosen, rejected = sums.chunk(2)
        return RefLogps(chosen, rejected, _trl.scored_output(batch.stored))

    def logps_of_pair(self, model: Any, batch: PairBatch) -> torch.Tensor | None:
        """Look the pair up, unless it is not in the run's data any more; see `ReferenceSource.logps_of_pair`."""
        found = self.stored.sums(batch.inputs) if hasattr(self, "stored") else None
        return None if found is None else torch.tensor(found, device=batch.mask.device)

    def describe(self) -> str:
        """See `ReferenceSource.describe`."""
        return f"stored log-probs in {self.stored.store.folder} ({self.stored.stats})"

    @property
    def _plain_collator(self) -> Collator:
        """The collator without the stored log-probs; during TRL's constructor, TRL's."""
        return self._collator or self.host.trainer.data_collator


def default_folder(identity: Identity) -> Path:
    """The folder of a reference's store if none is given, under the datasets cache."""
    cache = Path(os.fspath(datasets_config.HF_DATASETS_CACHE))
    return cache / "trl_dpo_ext" / "reference" / identity.fingerprint
