"""Measure quantization drift of the reference before training, log it, and apply the optional calibration."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ... import _trl
from ..._trl.unsharded import unsharded_loading
from ...core.mixture import LossMixture
from ...errors import InputError
from ...forward.list_rows import as_pair
from ...forward.outputs import PairBatch, RefLogps
from ..config import absolute_reward_problems
from ..model.loading import load_reference, source_of
from ..model.quantization import is_quantized
from ..model.resolve import reference_device, reference_settings
from ..model.spec import ReferenceSpec
from . import measure

logger = logging.getLogger(__name__)


@dataclass
class DriftMonitor:
    """How far a run's reference is from what it stands for: measured once, before training, and kept in checkpoints."""

    pairs: int
    """Number of training pairs to measure on."""
    calibrate: bool
    """Whether `corrected` removes the measured shift."""
    beta: float
    """Largest beta of the losses; it scales the reported errors."""
    correction_rank: int | None = None
    """Rank of the terms that correct the reference; None for none."""
    absolute: list[str] = field(default_factory=list)
    """What to say if the reference's remaining bias is not zero: the losses cannot be used with it."""
    start: Callable[[], Any] | None = None
    """Loads the model that the reference stands for; None if that is the policy before training."""
    measured: measure.Drift | None = None
    done: bool = False
    """Whether nothing is left to measure: it was measured, or training has begun."""

    def measure(
        self,
        host: _trl.Host,
        policy: Any,
        logps: Callable[[Any, PairBatch], RefLogps],
        columns: Any,
        gather: measure.Gather,
    ) -> None:
        """Compare the reference with what it stands for on the first training pairs; log and save the result.

        Args:
            host: the trainer, about to compute its first loss.
            policy: the policy as the engine has wrapped it.
            logps: gives a batch's reference log-probs, uncalibrated, as the loss reads them.
            columns: dataset columns that the models are not given.
            gather: concatenates a tensor over processes.
        """
        self.done = True
        if host.has_trained:  # a trained policy is not what the reference stands for
            return
        accelerator, args = host.trainer.accelerator, host.trainer.args
        start = policy if self.start is None else _trl.with_head(self.start())

        def errors(rows: list[Any]) -> torch.Tensor:
            batch = PairBatch.take(host.batch_of(rows), columns)
            reference = _trl.scored_tokens(logps(policy, batch).output, batch.mask.size(1))
            return measure.answer_errors(reference, host.token_logps(start, batch.inputs), batch.mask)

        with _trl.evaluation_mode(policy):
            found = measure.measure(
                [as_pair(row) for row in measure.first_rows(host.trainer.train_dataset, self.pairs)],
                errors,
                gather,
                batch_size=args.per_device_train_batch_size,
                rank=accelerator.process_index,
                processes=accelerator.num_processes,
            )
        if self.start is not None:
            del start, errors
            _trl.free_memory()
        self._report(host, measure.summarize(found, self.beta, self.calibrate, self.correction_rank))

    def _report(self, host: _trl.Host, measured: measure.Drift) -> None:
        self.measured = measured
        if self.absolute and not self.calibrate and not measured.is_unbiased:
            raise InputError(
                f"{self.absolute[0]} The correction leaves a bias of {measured.sequence_mean:+.2f} nats per answer, "
                f"measured within ± {1.96 * (measured.bias_error or 0.0):.2f}. "
                "Raise ref_correction_rank, or set ref_calibrate."
            )
        for name, value in measured.metrics.items():
            host.add_metric(name, value)
        if not host.is_main_process:
            return
        logger.info(measured.describe())
        measured.save(host.trainer.args.output_dir)
        if measured.noise > measure.NOISE_WARNING_THRESHOLD:
            warnings.warn(
                f"The reference's error spreads the margin by {measured.noise:.2f} (beta times nats), as large as "
                "the margins that the losses see. Use int8 or bfloat16 (ref_dtype), leave layers unquantized "
                "(ref_skip_modules), or store an unquantized reference (precompute_ref_log_probs). "
                "ref_drift_num_pairs=0 turns the measurement off.",
                stacklevel=2,
            )

    def corrected(self, found: RefLogps, mask: torch.Tensor, ld_alpha: float | None) -> RefLogps:
        """Subtract the measured shift from reference log-probs, if the run is calibrated.

        Args:
            found: the log-probs, summed with `ld_alpha`.
            mask: (rows, tokens) bool, true on completion tokens.
            ld_alpha: as in `transforms.sum_logps`.
        """
        if not self.calibrate or self.measured is None:
            return found
        tokens = None if found.output is None else _trl.scored_tokens(found.output, mask.size(1))
        logps, tokens = self.measured.corrected(torch.cat(found.sums), tokens, mask, ld_alpha)
        if found.output is not None:
            found.output.log_probs = tokens
        chosen, rejected = logps.chunk(2)
        return RefLogps(chosen, rejected, found.output, found.projection)

    def save(self, folder: str | Path) -> None:
        """Write what was measured into a checkpoint."""
        if self.measured is not None:
            self.measured.save(folder)

    def resume(self, checkpoint: str | Path) -> None:
        """Take over what a checkpoint's run has measured: the policy is not the start any more.

        Raises:
            InputError: the run is calibrated, and the checkpoint's was not.
        """
        self.measured, self.done = measure.Drift.load(checkpoint), True
        if self.calibrate and (self.measured is None or self.measured.shift_per_token is None):
            raise InputError(
                f"{Path(checkpoint) / measure.FILE} holds no calibration: the checkpoint's run was made without "
                "ref_calibrate, and a trained policy cannot be used to calibrate. Resume without ref_calibrate."
            )


def monitor_drift(args: Any, mixture: LossMixture, policy: Any, reference: Any) -> DriftMonitor | None:
    """The monitor that a run's reference needs; None for a reference that is exact, or of unknown origin.

    Args:
        args: the run's configuration.
        mixture: its losses.
        policy: the policy, a model or its name.
        reference: the user's `ref_model`, the `ReferenceSpec` of one to load, or None.
    """
    if reference is None or not args.ref_drift_num_pairs:
        return None
    described = isinstance(reference, ReferenceSpec)
    quantized = reference.quantized if described else is_quantized(reference)
    inexact = quantized or (args.ref_dtype and not args.changes_checkpoint)
    source = reference.source if described else source_of(reference)
    if not inexact or source is None:
        return None
    start = None
    revision = (args.model_init_kwargs or {}).get("revision")
    if not source.is_start_of(policy, revision):
        if not args.changes_checkpoint or not args.ref_quantization:
            return None  # the user's own model or checkpoint, whose unquantized form is not known
        start = _loader(args, policy)
    rank = args.ref_correction_rank if described else None  # what a given model was fitted on is not known
    absolute = []
    if rank and not args.ref_calibrate:
        absolute = absolute_reward_problems(mixture, f"ref_quantization={args.ref_quantization!r}")
    beta = measure.max_beta(mixture.terms, args.beta)
    return DriftMonitor(args.ref_drift_num_pairs, args.ref_calibrate, beta, rank or None, absolute, start)


def _loader(args: Any, policy: Any) -> Callable[[], Any]:
    def load() -> Any:
        with unsharded_loading():
            return load_reference(device=reference_device(args), **reference_settings(args, policy))

    return load
