"""Trainer mixin with fixes for distributed training: input casting and checkpointing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import Trainer

from .. import _trl
from ..core.columns import Column
from ..core.mixture import LossMixture
from . import checkpoints, launch, precision, resumption


class DistributedTrainerMixin(Trainer):
    """Overrides of transformers' `Trainer`, to inherit from in front of a trainer that is made for one process."""

    host: _trl.Host
    mixture: LossMixture
    extra_columns: Mapping[str, Column]
    reference: Any
    """The run's `ReferenceSource`, which keeps a part of checkpoints."""
    started_from: str | None = None
    """The name of the model or adapter that training started from, if it is known."""
    compared_columns: Sequence[str] = ()
    """Columns of tokenized data in which a resumed run is compared with its checkpoint's, beside those of pairs."""
    given_models: Mapping[str, Mapping[str, Any]] = {}
    """The start and the reference of the run as far as they were passed as instances, described."""

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator, and keep FSDP2 from rounding log-probs.

        Seam: transformers' constructor calls this once, after TRL has changed `args` and before any model is prepared.
        """
        precision.keep_checkpointing(self.args)
        with launch.plugin_in_use(self.args):
            super().create_accelerator_and_postprocess()
        precision.keep_precision(self.accelerator)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Move a batch to the device, without casting log-probs and columns that losses read.

        Seam: transformers passes every batch through this, in training and in evaluation; under DeepSpeed it casts
        floating-point tensors, and it raises for a batch without any value.
        """
        uncast, rest = precision.split_uncast(inputs, self.extra_columns, self.args.device)
        return {**super()._prepare_inputs(rest), **uncast}

    def train(self, resume_from_checkpoint: str | bool | None = None, *positional: Any, **keywords: Any) -> Any:
        """Train as transformers' `Trainer.train` does, restoring the losses' running state on resume.

        Args:
            resume_from_checkpoint: a checkpoint; True for the newest complete one; "auto" for that one if there is any.
            *positional, **keywords: passed on to transformers.
        """
        checkpoint = checkpoints.checkpoint_to_resume(resume_from_checkpoint, str(self.args.output_dir))
        if checkpoint:
            resumption.check_run(self._described_run(), Path(checkpoint))
            self.load_extra_state(Path(checkpoint))
            self.reference.load_state(Path(checkpoint))
            resumption.check_weights(self.host.unwrapped(self.model), Path(checkpoint), self.host.casts_parameters())
        return super().train(checkpoint, *positional, **keywords)

    def save_extra_state(self, checkpoint: Path) -> None:
        """Write our part of a checkpoint, before transformers' last file marks it as complete."""
        checkpoints.save_loss_state(self.mixture, checkpoint)
        self.write_run(checkpoint)

    def write_run(self, folder: Path) -> None:
        """Write what this run is into a folder: what resuming compares, the models it has read, and its record."""
        resumption.save_run({**self._described_run(), **self.recorded()}, folder)

    def recorded(self) -> dict[str, Any]:
        """What else is told of the run."""
        return {}

    def _described_run(self) -> dict[str, Any]:
        what = (self.mixture.describe(), self.args, self.train_dataset)
        described = resumption.describe_run(*what, self.compared_columns)
        models = {"start": self.started_from, "reference": getattr(self.args, "ref_model_name_or_path", None)}
        output = Path(str(self.args.output_dir))
        return {
            **described,
            **resumption.reached_from(output, models),
            resumption.GIVEN: resumption.given_reached_from(output, self.given_models),
        }

    def load_extra_state(self, checkpoint: Path) -> None:
        """Read what `save_extra_state` wrote."""
        checkpoints.load_loss_state(self.mixture, checkpoint)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model as transformers does, and unsharded where FSDP writes shards into checkpoints.

        Seam: with `_internal_call` the call is for a checkpoint, and is the first that writes into its folder; without
        it, transformers saves nothing under FSDP unless the state dict type is FULL_STATE_DICT. `_save(folder,
        state_dict)` writes weights that are given.
        """
        folder = str(output_dir or self.args.output_dir)
        frozen = _internal_call and not self.reference.moves  # what has moved is saved in a file
        saved = _trl.saved_on_top(self.host.unwrapped(self.model), frozen)
        with checkpoints.names_without_wrappers(self.model), saved:
            if self.args.should_save:
                Path(folder).mkdir(parents=True, exist_ok=True)
                (self.save_extra_state if _internal_call else self.write_run)(Path(folder))
            if _internal_call:
                self.reference.save_state(Path(folder), self.args.should_save)
            weights = None if _internal_call else checkpoints.gathered_weights(self.accelerator, self.model)
            if weights is not None:
                self._save(folder, state_dict=weights)
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save optimizer and scheduler, and the model under FSDP, where peft selects an adapter by module names.

        Seam: under FSDP this is where transformers saves the model, with accelerate's `save_fsdp_model`.
        """
        with checkpoints.names_without_wrappers(self.model):
            super()._save_optimizer_and_scheduler(output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        """Save the random number generators, and wait until all processes have written their part of the checkpoint.

        Seam: every process calls this last, right before the main process writes `trainer_state.json`, unless
        `save_only_model` is set.
        """
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the model's weights on resume, an adapter's under FSDP1 too.

        Seam: on resume transformers loads weights through this on every process, under FSDP with the wrapped model.
        """
        model = self.model if model is None else model
        loaded = _trl.loaded_from_top(self.host.unwrapped(model), resume_from_checkpoint)
        names = _trl.loading_saved_names(model, resume_from_checkpoint)
        with checkpoints.names_without_wrappers(model), loaded, names:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        checkpoints.load_wrapped_adapter(model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        """Load the best model at the end of training, an adapter's weights by the names of the unwrapped modules.

        Seam: transformers calls this at the end of training, with `load_best_model_at_end`.
        """
        names = _trl.loading_saved_names(self.model, self.state.best_model_checkpoint or "")
        with checkpoints.names_without_wrappers(self.model), names:
            super()._load_best_model()
