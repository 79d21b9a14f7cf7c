"""The reference in a trainer: placing it, running it, freeing it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from trl.trainer import dpo_trainer

from .adapters import FROZEN
from .batch import COMPLETION_MASK, REFERENCE_COLUMNS, labels_of
from .compiled import uncompiled, without_compilation
from .constructor import placed_reference
from .frozen_copy import as_quiet_reference
from .loss import Recorder, scored_tokens
from .models import ModelSeams, is_peft_model
from .patching import evaluation_mode, temporarily
from .renamed import renamed_checkpointing


def free_memory() -> None:
    """Return the memory of models that are no longer referenced to the device.

    Seam: `add_fused_lm_head` stores a bound method on the model, a reference cycle that only a collection frees.
    """
    clear_device_cache(garbage_collection=True)


class ReferenceSeams(ModelSeams):
    """How a trainer places, runs and frees its reference."""

    def placed(self, reference: Any, replicated: bool) -> Any:
        """Place a loaded reference as TRL's constructor would, or `replicated`: unsharded on each device."""
        trainer = self.trainer
        with placed_reference(reference if replicated else None):
            if trainer.is_deepspeed_enabled:
                return dpo_trainer.prepare_deepspeed(reference, trainer.accelerator)
            if trainer.is_fsdp_enabled:
                return dpo_trainer.prepare_fsdp(reference, trainer.accelerator)
        return reference.to(trainer.accelerator.device)

    def precompute_images(self) -> None:
        """Run the reference pass that TRL's constructor has left out; see `images_precomputed_later`.

        Seam: `_precompute_ref_logps(dataset, name, batch_size)` is called for the training data as "train", and for the
        evaluation data as "eval", or by the names of a dictionary. `precompute_ref_logps` says whether batches hold
        reference log-probs.
        """
        trainer = self.trainer
        trainer.precompute_ref_logps = True
        trainer.train_dataset = trainer._precompute_ref_logps(trainer.train_dataset, "train", 0)
        evaluated = trainer.eval_dataset
        if isinstance(evaluated, dict):
            parts = evaluated.items()
            trainer.eval_dataset = {name: trainer._precompute_ref_logps(part, name, 0) for name, part in parts}
        elif evaluated is not None:
            trainer.eval_dataset = trainer._precompute_ref_logps(evaluated, "eval", 0)

    def no_precompute(self) -> AbstractContextManager[None]:
        """Keep TRL's `evaluate` from running its own reference pass, and from refusing data for which it cannot.

        Seam: both depend on `precompute_ref_logps`, read when `evaluate` is given a dataset.
        """
        return temporarily(self.trainer, precompute_ref_logps=False)

    def run_reference(
        self, inputs: Mapping[str, Any], forward: Callable[[Any], Callable[..., Any]]
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Summed reference log-probs of both sides, each (pairs,), and the reference's recorded output.

        `forward` gives what is called in the model's place.

        Seam: `compute_ref_log_probs(model, inputs)` calls the model it is given, and switches adapters where that model
        is the policy itself.
        """
        reference = self.trainer.ref_model
        recorder = Recorder(forward(self.trainer.model if reference is None else reference))
        chosen, rejected = self._ref_log_probs(recorder, inputs)
        return chosen, rejected, recorder.output

    def _quiet_policy(self) -> AbstractContextManager[None]:
        """The state in which TRL may run the reference: see `as_quiet_reference`, where the policy is the reference."""
        policy = self.unwrapped(self.trainer.model)
        if self.trainer.ref_model is not None or not is_peft_model(policy):
            return contextlib.nullcontext()
        return as_quiet_reference(policy)

    def quiet_token_logps(
        self, model: Any, inputs: Mapping[str, Any], forward: Callable[[Any], Callable[..., Any]]
    ) -> torch.Tensor:
        """Token log-probs of the policy without dropout and noise, (rows, tokens), without gradient.

        Args:
            model: the policy as distributed training has wrapped it.
            inputs: what the collator built.
            forward: gives what is called in the model's place.
        """
        given = {name: value for name, value in inputs.items() if name not in (COMPLETION_MASK, *REFERENCE_COLUMNS)}
        with torch.no_grad(), evaluation_mode(self.unwrapped(model)), self.trainer.accelerator.autocast():
            output = forward(model)(**given, labels=labels_of(inputs), use_cache=False, fused_lm_head=True)
        return scored_tokens(output, inputs[COMPLETION_MASK].size(1) - 1)

    def token_logps(self, model: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Token log-probs of a model with a fused head, (rows, tokens), without gradient.

        Seam: as `run_reference`; a model that is not the policy's own reference is run unchanged.
        """
        recorder = Recorder(model)
        self._ref_log_probs(recorder, inputs)
        return scored_tokens(recorder.output, inputs[COMPLETION_MASK].size(1) - 1)

    def _ref_log_probs(self, model: Any, inputs: Mapping[str, Any]) -> Any:
        with self._quiet_policy(), renamed_checkpointing():
            return self.trainer.compute_ref_log_probs(model, inputs)

    def release_reference(self) -> None:
        """Drop the trainer's reference model, and free its memory unless somebody else holds it.

        Seam: the trainer holds it as `ref_model`, and the accelerator that prepared it in `_models`.
        """
        accelerator, reference = self.trainer.accelerator, self.trainer.ref_model
        self.trainer.ref_model = None
        if reference is not None:
            accelerator._models = [model for model in accelerator._models if model is not reference]
            del reference
            free_memory()

    def as_reference(self, forward: Callable[[], Any]) -> Any:
        """Call `forward` in the state in which TRL runs the reference: no gradient, adapter off, under autocast.

        Seam: `compute_ref_log_probs(model, inputs)` calls the model it is given once, in that state, and takes
        `log_probs` of its output.
        """
        returned: list[Any] = []
        nothing = torch.zeros(2, 2, dtype=torch.long, device=self.trainer.accelerator.device)

        def stand_in(**_: Any) -> Any:
            returned.append(forward())
            return SimpleNamespace(log_probs=nothing[:, 1:].float())

        self._ref_log_probs(stand_in, {"input_ids": nothing, COMPLETION_MASK: nothing})
        return returned[0]

    @contextlib.contextmanager
    def policy_for_pass(self) -> Iterator[tuple[Any, Any]]:
        """Yield the policy as its own reference, to call, and the causal model in it, in evaluation mode.

        Seam: before training the policy is unsharded on its device, unless DeepSpeed is to place it, and under FSDP it
        is not wrapped; `prepare_deepspeed` and `prepare_fsdp`, as found in the trainer's module, do that for models
        that only run.
        """
        trainer = self.trainer
        if trainer.is_deepspeed_enabled and trainer.deepspeed is None:
            model = dpo_trainer.prepare_deepspeed(trainer.model, trainer.accelerator)
            with self.model_for_pass(model) as given:
                yield given
            return
        model = trainer.model_wrapped
        if trainer.is_fsdp_enabled and model is trainer.model and not self.has_trained:
            model = dpo_trainer.prepare_fsdp(self._reference_of_policy(), trainer.accelerator)
        with self._evaluated(model) as given:
            yield given

    @contextlib.contextmanager
    def model_for_pass(self, model: Any) -> Iterator[tuple[Any, Any]]:
        """Yield a model that was made for the pass, and the causal model in it; its DeepSpeed engine is destroyed."""
        try:
            with self._evaluated(model) as given:
                yield given
        finally:
            # Otherwise a second DeepSpeed engine on the same model takes part in every forward of training.
            destroy: Any = getattr(model, "destroy", None)
            if destroy is not None:
                destroy()

    @contextlib.contextmanager
    def reference_model_for_pass(self) -> Iterator[tuple[Any, Any]]:
        """Yield the trainer's reference model and the causal model in it, in evaluation mode."""
        with self._evaluated(self.trainer.ref_model) as given:
            yield given

    @contextlib.contextmanager
    def _evaluated(self, model: Any) -> Iterator[tuple[Any, Any]]:
        model = without_compilation(model)  # a pass adds hooks for each batch
        causal = self.causal_model(model)
        with uncompiled(causal), evaluation_mode(causal):
            yield model, causal

    def _reference_of_policy(self) -> Any:
        """A model apart that equals the policy as its reference, for FSDP to shard; the two share their weights.

        TRL switches the adapters of the policy, so here the trained one is removed for good.
        """
        policy = self.unwrapped(self.trainer.model)
        # FSDP puts parts of its own in the places of these, and leaves the tensors as they are. Quantized ones are more
        # than a tensor, and copied.
        plain = (p for p in policy.parameters() if type(p) is torch.nn.Parameter)
        shared = {id(p): torch.nn.Parameter(p.data, requires_grad=p.requires_grad) for p in plain}
        model = copy.deepcopy(policy, shared)
        if not self.is_adapted:
            return model
        adapter = self.reference_adapter()
        if adapter is None:
            return model.get_base_model() if model.active_peft_config.is_prompt_learning else model.unload()
        model.set_adapter(adapter)
        for other in set(model.peft_config) - {adapter}:
            model.delete_adapter(other)
        return model.requires_grad_(False)  # FSDP1 flattens a layer's weights only if all of them train, or none

    def reference_adapter(self) -> str | None:
        """The frozen adapter that is the reference, if the policy is an adapter that is trained further.

        Seam: TRL keeps a copy of that adapter under the name "ref".
        """
        if self.trainer.ref_model is not None or not self.is_adapted:
            return None
        return FROZEN if FROZEN in self.unwrapped(self.trainer.model).peft_config else None
