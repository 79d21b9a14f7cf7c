"""`MovingReference`: a live reference that is moved toward the policy while it trains (TR-DPO)."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ... import _trl
from ...distributed.full_parameters import forget_gathered, mix_partitions, parameter_shapes, visit_parameters
from ...errors import InputError
from ..producer import Producer
from ..source import Collator, LiveReference, ReferenceSettings
from . import state
from .mixing import mix_factors
from .problems import mismatches, split_problems, variant_problems


class MovingReference(LiveReference):
    """A reference that every `ref_model_sync_steps` steps becomes `alpha * policy + (1 - alpha) * reference`.

    A model is moved by TRL's callback. Of an adapter that trains, a second and frozen copy is the reference, and
    low-rank products are mixed exactly. What has moved is saved in checkpoints, and restored on resume.

    Args:
        producer: the reference before it moves.
        settings: of the run.
        adapted: whether the policy is an adapter.

    Source: Gorbatovski et al., Learn Your Reference Model for Real Good Alignment (arXiv 2404.09656).
    """

    moves = True

    def __init__(
        self, producer: Producer, settings: ReferenceSettings, drift: Any = None, adapted: bool = False
    ) -> None:
        super().__init__(producer, settings, drift)
        self._adapted, self._has_moved = adapted, False
        self._adapter: _trl.SecondAdapter | None = None
        self.every, self.alpha = settings.args.ref_model_sync_steps, settings.args.ref_model_mixup_alpha

    def _enter(self, patches: contextlib.ExitStack) -> Any:
        if self._adapted:
            patches.enter_context(_trl.without_sync(self.settings.args))
        return super()._enter(patches)

    def attach(self, collator: Collator) -> Collator:
        """Make the second adapter, or check that the policy's weights fit into the reference; follow the steps.

        Raises:
            InputError: the reference cannot be moved toward this policy.
        """
        trainer = self.host.trainer
        if self._adapted:
            self._adapter = _trl.SecondAdapter(self.host.unwrapped(trainer.model))
            problems = variant_problems(self._adapter.variants(), self.alpha)
            problems += split_problems(self.host.is_sharded, self.alpha)
        else:
            policy = parameter_shapes(self.host.unwrapped(trainer.model))
            problems = mismatches(policy, parameter_shapes(self._module()))
        if problems:
            raise InputError(*problems)
        if self.host.zero_stage == 3 and self._adapter is None:
            trainer.remove_callback(_trl.SyncRefModelCallback)  # gathers both models whole on every process
        trainer.add_callback(_Follow(self))
        return super().attach(collator)

    def move(self) -> None:
        """Move the reference toward the policy; every process calls this. Mostly, TRL's callback has moved a model."""
        self._has_moved = True
        if self._adapter is None and self.host.zero_stage == 3:
            mix_partitions(self.host.unwrapped(self.host.trainer.model), self._module(), self.alpha)
        elif self._adapter is None:
            forget_gathered(self.host.trainer.ref_model)
        elif not self.host.is_sharded:
            self._adapter.move(self.alpha, mix_factors)
        else:  # the copy becomes the policy: `RunSpec` has refused anything else
            model, found = self.host.trainer.model, {}
            visit_parameters(model, lambda name, value: found.update({name: value.clone()}), self._adapter.names)
            copies = {copied: found[name] for name, copied in self._adapter.names.items()}
            visit_parameters(model, lambda name, _: copies[name], copies)
            forget_gathered(model)

    def save_state(self, checkpoint: Path, writes: bool) -> None:
        """Write the weights of a reference that has moved; see `ReferenceSource.save_state`."""
        super().save_state(checkpoint, writes)
        if not self._has_moved:
            return
        weights: dict[str, torch.Tensor] = {}

        def keep(name: str, value: torch.Tensor) -> None:
            if writes:
                weights[name] = value.detach().cpu().clone()

        if self._adapter is not None and not self.host.is_sharded:
            for name, parameter in self._adapter.parameters().items():
                keep(name, parameter)
        else:
            visit_parameters(self._module(), keep, self._names())
        if writes:
            step = self.host.trainer.state.global_step
            state.save(
                checkpoint, weights, step=step, ref_model_sync_steps=self.every, ref_model_mixup_alpha=self.alpha
            )

    def load_state(self, checkpoint: Path) -> None:
        """Restore what `save_state` has written.

        Raises:
            InputError: the reference had moved, and the checkpoint does not hold it.
        """
        super().load_state(checkpoint)
        if not (checkpoint / state.FILE).is_file():
            self._check_unmoved(checkpoint)
            return
        saved = state.SavedReference(checkpoint, self._names())
        if self._adapter is not None and not self.host.is_sharded:
            self._adapter.load({name: saved[name] for name in self._names()})
        else:
            visit_parameters(self._module(), lambda name, _: saved[name], self._names())
        self._has_moved = True

    def _check_unmoved(self, checkpoint: Path) -> None:
        taken = state.steps_of(checkpoint)
        if taken >= self.every:
            raise InputError(
                f"{checkpoint} has no {state.FILE}, but at step {taken} the reference had moved "
                f"(ref_model_sync_steps={self.every}): it was saved by TRL, or without sync_ref_model. Resuming would "
                "train against the initial reference. Resume without sync_ref_model, or start a new run from the "
                "checkpoint's weights."
            )
        if self._has_moved:
            raise InputError(
                f"This trainer's reference has moved, and {checkpoint} is from before its first move. Create a new "
                "trainer to resume from it."
            )

    def _module(self) -> Any:
        """What holds the reference's weights, as the engine has wrapped it.

        FSDP's wrapper is needed to gather them; those of DDP and DeepSpeed only lengthen names.
        """
        model = self.host.trainer.model if self._adapted else self.host.trainer.ref_model
        return model if self.host.trainer.is_fsdp_enabled else self.host.unwrapped(model)

    def _names(self) -> set[str]:
        if self._adapter is not None:
            return set(self._adapter.names.values())
        return set(parameter_shapes(self._module()))

    def describe(self) -> str:
        """See `ReferenceSource.describe`."""
        start = super().describe()
        if self._adapter is not None:
            start = "a second, frozen copy of the adapter"
        share = "replaced by the policy" if self.alpha == 1 else f"moved by {self.alpha:g} toward the policy"
        return f"{start}, {share} every {self.every} steps"


class _Follow(TrainerCallback):
    """Tells a reference when it is to move; comes after TRL's `SyncRefModelCallback`."""

    def __init__(self, reference: MovingReference) -> None:
        self.reference = reference

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Warn of a run that is over before its reference moves."""
        if state.max_steps < self.reference.every and state.is_world_process_zero:
            warnings.warn(
                f"The reference does not move: the run ends after {state.max_steps} steps, and "
                f"ref_model_sync_steps={self.reference.every}. Lower it, or remove sync_ref_model.",
                stacklevel=2,
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the reference after every `ref_model_sync_steps` steps."""
        if state.global_step % self.reference.every == 0:
            self.reference.move()
