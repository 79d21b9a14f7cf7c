"""The part of the trainer that meets the engines: transformers' steps, and what several processes get wrong in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import Trainer

from .. import _trl
from ..core.hyperparameters import Hyper
from ..core.mixture import LossMixture
from . import checkpoints, launch
from .eval_padding import EvalPadding


class DistributedTrainerMixin(Trainer):
    """Overrides of transformers' `Trainer`, to stand before the class of a trainer that is made for one process."""

    host: _trl.Host
    mixture: LossMixture
    extra_columns: Mapping[str, Hyper]

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator; FSDP2 is kept from rounding log-probs."""
        launch.keep_checkpointing(self.args)
        super().create_accelerator_and_postprocess()
        launch.keep_precision(self.accelerator)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        uncast, rest = launch.split_uncast(inputs, self.extra_columns, self.args.device)
        return {**super()._prepare_inputs(rest), **uncast}

    def prediction_step(self, model: Any, inputs: dict[str, Any], *positional: Any, **keywords: Any) -> Any:
        """One step of an evaluation, in which every pair counts once, however many processes and batches there are."""
        padding = EvalPadding.of(self.accelerator, len(inputs["input_ids"]) // 2)
        with self.host.trim_gathered(padding.trim):
            result = super().prediction_step(model, inputs, *positional, **keywords)
        self.host.weight_metrics_by_pairs(padding.global_real)
        return result

    def train(self, resume_from_checkpoint: str | bool | None = None, *positional: Any, **keywords: Any) -> Any:
        """Train as transformers' `Trainer.train` does, restoring the losses' running state on resume.

        Args:
            resume_from_checkpoint: a checkpoint; True for the newest complete one; "auto" for that, or a fresh start.
            *positional, **keywords: as transformers takes them.
        """
        checkpoint = checkpoints.checkpoint_to_resume(resume_from_checkpoint, str(self.args.output_dir))
        if checkpoint:
            self.load_extra_state(Path(checkpoint))
        return super().train(checkpoint, *positional, **keywords)

    def save_extra_state(self, checkpoint: Path) -> None:
        """Write what a checkpoint holds beside transformers' files, before the last of them marks it as complete."""
        checkpoints.save_loss_state(self.mixture, checkpoint)

    def load_extra_state(self, checkpoint: Path) -> None:
        """Read what `save_extra_state` has written."""
        checkpoints.load_loss_state(self.mixture, checkpoint)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model as transformers does, and whole where FSDP keeps shards in checkpoints."""
        folder = str(output_dir or self.args.output_dir)
        with checkpoints.names_without_wrappers(self.model):
            if _internal_call and self.args.should_save:
                Path(folder).mkdir(parents=True, exist_ok=True)
                self.save_extra_state(Path(folder))
            weights = None if _internal_call else checkpoints.gathered_weights(self.accelerator, self.model)
            if weights is not None:
                self._save(folder, state_dict=weights)
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        with checkpoints.names_without_wrappers(self.model):
            super()._save_optimizer_and_scheduler(output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # What follows marks the checkpoint as complete, and other processes may still be writing their part.
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        model = self.model if model is None else model
        with checkpoints.names_without_wrappers(model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        checkpoints.load_wrapped_adapter(model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        with checkpoints.names_without_wrappers(self.model):
            super()._load_best_model()
