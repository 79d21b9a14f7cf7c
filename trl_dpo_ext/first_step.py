"""What must hold once, on the first batch of a run, before anything is learned from it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from typing import Any

import torch

from . import _trl
from .checks import trainable
from .core import transforms
from .errors import InputError
from .forward.outputs import ForwardOutputs, PairBatch
from .forward.pair_forward import PairForward
from .reference import consistency_check
from .reference.checkpointed import FirstPair
from .reference.identity.weights import adapters_start_apart
from .reference.source import ReferenceSource

Gather = Callable[[torch.Tensor], torch.Tensor]


class FirstStepChecks:
    """The checks of a run's first batch. Each runs once.

    Args:
        host: the trainer.
        pair_forward: how models are called; compared with the plain forward.
        reference: compared with the policy, if it is meant to be the policy's start; its drift is measured.
        columns: dataset columns that the models are not given.
        gather: concatenates a tensor over processes.
    """

    def __init__(
        self,
        host: _trl.Host,
        pair_forward: PairForward,
        reference: ReferenceSource,
        columns: Collection[str],
        gather: Gather,
    ) -> None:
        self.host, self.pair_forward, self.reference = host, pair_forward, reference
        self.columns, self.gather = columns, gather
        self._begun = self._compared = self._reached = False
        self._quiet_logps: torch.Tensor | None = None
        self.start_difference: float | None = None
        """Of policy and reference before the first step, in nats per token; None if they need not agree."""
        trainable.check_trains(host.unwrapped(host.trainer.model), host.trainer.optimizer)

    def before(self, model: Any, batch: PairBatch) -> None:
        """Check what does not need the loss: the optimizer, the forward, and the reference's drift.

        Raises:
            InputError: nothing trains, or the forward that the options ask for differs from the plain one.
        """
        if self.host.is_training and not self._begun:
            self._begun = True
            engine = self.host.casts_parameters()
            self._warn_of_noise()
            trainable.check_begins(
                self.host.unwrapped(self.host.trainer.model), None if engine else self.host.trainer.optimizer
            )
            self.reference.training_begins()
            self._compare_with_checkpoint(model)
            if self._are_one_model() and self._policy_is_noisy():
                self._quiet_logps = self._quiet(model, batch)
        if self.pair_forward.to_verify:
            self.pair_forward.to_verify = False
            self._verify_forward(model, batch)
        monitor = self.reference.drift_monitor
        if monitor is not None and not monitor.done:
            monitor.measure(self.host, model, self.reference.uncalibrated_logps, self.columns, self.gather)

    def after(self, model: Any, outputs: ForwardOutputs, batch: PairBatch) -> None:
        """Compare policy and reference before the first step, if they are meant to be one model.

        Raises:
            InputError: they differ by more than rounding explains.
        """
        if self._compared or not self.host.is_training:
            return
        self._compared = True
        if not self.host.has_trained and not self.reference.settings.args.ref_calibrate:
            self.reference.first_pair = FirstPair.of(batch, outputs.reference)
        if not self._are_one_model():
            return
        tokens, quiet = self._quiet_logps, self._quiet_logps is not None
        self._quiet_logps = None
        self.start_difference = self._difference(outputs.tokens() if tokens is None else tokens, outputs)
        allowed = consistency_check.tolerance(*self.host.precision(self._causal_policy))
        if not self.start_difference <= allowed and not quiet:  # noise that no option tells of
            noisy, self.start_difference = self.start_difference, self._difference(self._quiet(model, batch), outputs)
            if self.start_difference <= allowed:
                warnings.warn(consistency_check.noise_warning(f"{noisy:.3g} nats per token"), stacklevel=4)
        if not self.start_difference <= allowed:
            cause = consistency_check.likely_cause(self.host, self.reference.is_stored)
            consistency_check.check(self.start_difference, allowed, self.reference.describe(), cause)

    def _compare_with_checkpoint(self, model: Any) -> None:
        """Compare the reference with the one that the checkpoint was trained against, on that run's first pair.

        Raises:
            InputError: they differ by more than rounding explains.
        """
        checkpoint, pair = self.reference.resumes, self.reference.first_pair
        self.reference.resumes = None
        if checkpoint is None or pair is None or not self.reference.settings.args.verify_reference:
            return
        batch = pair.batch(self.host.trainer.accelerator.device)
        found = self.reference.logps_of_pair(model, batch)
        if found is None:
            return
        before = torch.tensor(pair.logps, device=found.device)
        measured = self.gather(consistency_check.difference(found, before, batch.mask).unsqueeze(0)).max().item()
        precisions = {self.host.precision(self.host.causal_model(m)) for m in self.host.models().values()}
        allowed = max(consistency_check.tolerance(*precision) for precision in precisions)
        if not measured <= allowed:
            raise InputError(
                f"{checkpoint} was trained against another reference than this run's ({self.reference.describe()}): on "
                f"that run's first pair, they differ by {measured:.3g} nats per token (root mean square; rounding "
                f"explains up to {allowed:.3g}). Create the trainer with the model and ref_model that the run started "
                "from, and pass the checkpoint to resume_from_checkpoint alone. Set --verify_reference false to go on "
                "against this reference nevertheless."
            )

    def _difference(self, tokens: torch.Tensor, outputs: ForwardOutputs) -> float:
        """How far token log-probs of the policy, (rows, tokens), are from the reference, in nats per token."""
        if outputs.reference.output is None:
            logps = transforms.sum_logps(tokens, outputs.mask, self.reference.settings.args.ld_alpha)
            measured = consistency_check.difference(logps, torch.cat(outputs.reference.sums), outputs.mask)
        else:
            measured = consistency_check.difference(tokens, outputs.ref_tokens(), outputs.mask)
        # Of all processes, so that all stop, or none. NaN is passed on.
        return self.gather(measured.unsqueeze(0)).max().item()

    def _quiet(self, model: Any, batch: PairBatch) -> torch.Tensor:
        return self.host.quiet_token_logps(
            model, batch.inputs, lambda called: self.pair_forward.wrap(called, self.host.causal_model)
        )

    def after_backward(self) -> None:
        """Check once that the loss reaches weights that train; engines keep gradients elsewhere.

        Raises:
            InputError: no weight has a gradient.
        """
        if self._reached or self.host.casts_parameters():
            return
        self._reached = True
        trainable.check_reached(self.host.unwrapped(self.host.trainer.model))

    @property
    def _causal_policy(self) -> Any:
        return self.host.causal_model(self.host.trainer.model)

    def _are_one_model(self) -> bool:
        """Whether the reference is meant to be the policy as it is now: its start, before the first step."""
        if self.host.has_trained or not self.reference.settings.args.verify_reference:
            return False
        if self.host.reference_adapter() is None and adapters_start_apart(self.host.reference_module()):
            return False
        return self.reference.is_initial_policy

    def _policy_is_noisy(self) -> bool:
        return consistency_check.policy_is_noisy(self.reference.settings.args, self._causal_policy.config)

    def _warn_of_noise(self) -> None:
        args = self.reference.settings.args
        left = consistency_check.noise_of(self._causal_policy.config) if args.disable_dropout else {}
        if left:
            settings = ", ".join(f"{name}={value}" for name, value in left.items())
            warnings.warn(consistency_check.noise_warning(f"{settings} in the model's configuration"), stacklevel=4)

    def _verify_forward(self, model: Any, batch: PairBatch) -> None:
        host = self.host
        inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
        inputs["labels"] = _trl.labels_of(batch.inputs)
        models = {"policy": model, "reference": host.trainer.ref_model}
        calls = {name: (m, host.causal_model(m)) for name, m in models.items() if m is not None}
        lowest = max((host.precision(causal)[0] for _, causal in calls.values()), key=lambda d: torch.finfo(d).eps)
        self.pair_forward.verify_first_batch(calls, inputs, torch.finfo(lowest).bits < 32, self.gather)
