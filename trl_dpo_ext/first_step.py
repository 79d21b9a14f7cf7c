"""What must hold once, on the first batch of a run, before anything is learned from it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch

from . import _trl
from .core import transforms
from .forward.outputs import ForwardOutputs, PairBatch
from .forward.pair_forward import PairForward
from .reference import consistency_check
from .reference.identity.weights import adapters_alter_base, adapters_start_apart
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
        self._begun = self._compared = False

    def before(self, model: Any, batch: PairBatch) -> None:
        """Check what does not need the loss: the forward, and the reference's drift.

        Raises:
            InputError: the forward that the options ask for differs from the plain one.
        """
        if self.host.is_training and not self._begun:
            self._begun = True
            self.reference.training_begins()
        if self.pair_forward.to_verify:
            self.pair_forward.to_verify = False
            self._verify_forward(model, batch)
        monitor = self.reference.drift_monitor
        if monitor is not None and not monitor.done:
            monitor.measure(self.host, model, self.reference.uncalibrated_logps, self.columns, self.gather)

    def after(self, outputs: ForwardOutputs) -> None:
        """Compare policy and reference before the first step, if they are meant to be one model.

        Raises:
            InputError: they differ by more than rounding explains.
        """
        if self._compared or not self.host.is_training:
            return
        self._compared = True
        if self.host.has_trained or not self._are_one_model():
            return
        args, causal = self.reference.settings.args, self.host.causal_model(self.host.trainer.model)
        if outputs.reference.output is None:
            logps = transforms.sum_logps(outputs.tokens(), outputs.mask, args.ld_alpha)
            measured = consistency_check.difference(logps, torch.cat(outputs.reference.sums), outputs.mask)
        else:
            measured = consistency_check.difference(outputs.tokens(), outputs.ref_tokens(), outputs.mask)
        worst = self.gather(measured.unsqueeze(0)).max().item()  # so that all processes stop, or none
        allowed = consistency_check.tolerance(*self.host.precision(causal))
        consistency_check.check(worst, allowed, self.reference.describe())

    def _are_one_model(self) -> bool:
        args, reference = self.reference.settings.args, self.reference
        if not (reference.is_stored and args.verify_reference):
            return False
        module = self.host.reference_module()
        apart = not reference.is_initial_policy or adapters_alter_base(module)
        apart |= self.host.reference_adapter() is None and adapters_start_apart(module)
        causal = self.host.causal_model(self.host.trainer.model)
        return consistency_check.skip_reason(args, causal.config, apart) is None

    def _verify_forward(self, model: Any, batch: PairBatch) -> None:
        host = self.host
        inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
        inputs["labels"] = _trl.labels_of(batch.inputs)
        models = {"policy": model, "reference": host.trainer.ref_model}
        calls = {name: (m, host.causal_model(m)) for name, m in models.items() if m is not None}
        lowest = max((host.precision(causal)[0] for _, causal in calls.values()), key=lambda d: torch.finfo(d).eps)
        self.pair_forward.verify_first_batch(calls, inputs, torch.finfo(lowest).bits < 32, self.gather)
