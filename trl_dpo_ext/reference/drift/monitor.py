"""The measurement of a run's reference: when it is taken, on what, where it is kept, and what is done with it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ... import _trl
from ...core.mixture import LossMixture
from ...errors import InputError
from ..model.loading import is_quantized, load_reference, source_of, unsharded_loading
from ..model.resolve import reference_device, reference_settings
from ..model.spec import ReferenceSpec
from ..precompute.collator import REF_TOKEN_LOGPS
from . import measure

Reference = Callable[[Mapping[str, Any], torch.Tensor, Any], tuple[Any, Any]]


@dataclass
class DriftMonitor:
    """The measurement of one run: taken when the reference is first read, kept with the checkpoints."""

    pairs: int
    calibrate: bool
    beta: float
    start: Callable[[], Any] | None = None
    """Loads what the reference stands for; None where that is the policy before training."""
    drift: measure.Drift | None = None
    over: bool = False
    """Nothing is left to measure: it was, or it cannot be any more."""

    def measure(self, trainer: Any, model: Any, reference: Reference, gather: measure.Gather) -> None:
        """Compare the reference with what it stands for on the first training pairs; print, log and write the result.

        Args:
            trainer: about to compute its first loss.
            model: the policy as the engine has wrapped it.
            reference: gives a batch's reference log-probs, as the trainer's own loss reads them.
            gather: concatenates a tensor over processes.
        """
        self.over = True
        if trainer.state.global_step:  # a policy that has been trained is no measure
            return
        start = model if self.start is None else _trl.with_head(self.start())
        with _evaluating(model):
            errors = measure.measure(
                measure.first_rows(trainer.train_dataset, self.pairs),
                lambda rows: _errors(trainer, start, reference, rows),
                gather,
                batch_size=trainer.args.per_device_train_batch_size,
                rank=trainer.accelerator.process_index,
                processes=trainer.accelerator.num_processes,
            )
        self.drift = measure.summarize(errors, self.beta, self.calibrate)
        for name, value in self.drift.metrics.items():
            _trl.add_metric(trainer, name, value)
        if trainer.accelerator.is_main_process:  # of all machines, not one on each
            print(self.drift.describe(), flush=True)
            self.drift.save(trainer.args.output_dir)
            self._warn(self.drift)

    def _warn(self, measured: measure.Drift) -> None:
        if measured.noise > measure.NOISE_WARNING_THRESHOLD:
            warnings.warn(
                f"The reference's error spreads the margin by {measured.noise:.2f} (beta times nats), as much as the "
                "losses are made of. Use int8 or bfloat16 (ref_dtype), leave layers unquantized (ref_skip_modules), or "
                "store an unquantized reference (precompute_ref_log_probs); ref_drift_num_pairs=0 measures nothing.",
                stacklevel=2,
            )

    def corrected(
        self, ref_logps: tuple[torch.Tensor, torch.Tensor], ref_output: Any, mask: torch.Tensor, ld_alpha: float | None
    ) -> tuple[tuple[torch.Tensor, torch.Tensor], Any]:
        """Reference log-probs without the measured shift, where the run is calibrated.

        Args:
            ref_logps: of both sides, each (pairs,), reduced with `ld_alpha`.
            ref_output: with `log_probs`, (rows, tokens), which are changed too; None where nobody reads them.
            mask: (rows, tokens) bool, true on completion tokens.
            ld_alpha: as in `transforms.sum_logps`.
        """
        if not self.calibrate or self.drift is None:
            return ref_logps, ref_output
        tokens = None if ref_output is None else _trl.scored_tokens(ref_output, mask.size(1))
        logps, tokens = self.drift.corrected(torch.cat(ref_logps), tokens, mask, ld_alpha)
        if ref_output is not None:
            ref_output.log_probs = tokens
        chosen, rejected = logps.chunk(2)
        return (chosen, rejected), ref_output

    def resume(self, checkpoint: str | Path) -> None:
        """Go on with what a checkpoint's run has measured: its policy is not the start any more.

        Raises:
            InputError: the run is calibrated, and the checkpoint's was not.
        """
        self.drift, self.over = measure.Drift.load(checkpoint), True
        if self.calibrate and (self.drift is None or self.drift.shift_per_token is None):
            raise InputError(
                f"{Path(checkpoint) / measure.FILE} holds no calibration: the checkpoint's run was made without "
                "ref_calibrate, and a trained policy is nothing to calibrate on. Resume without ref_calibrate."
            )


def watch_drift(args: Any, mixture: LossMixture, policy: Any, reference: Any) -> DriftMonitor | None:
    """The measurement that a run's reference asks for; None where there is none to take.

    Args:
        args: the run's configuration.
        mixture: its losses.
        policy: the policy, a model or its name.
        reference: the model that TRL is given as reference, the plan of one that is not loaded, or None.
    """
    if reference is None or not args.ref_drift_num_pairs:
        return None
    planned = isinstance(reference, ReferenceSpec)
    quantized = reference.quantized if planned else is_quantized(reference)
    inexact = quantized or (args.ref_dtype and not args.changes_checkpoint)
    source = reference.source if planned else source_of(reference)
    if not inexact or source is None:
        return None
    start = None
    revision = (args.model_init_kwargs or {}).get("revision")
    if not source.is_start_of(policy, revision):
        if not args.changes_checkpoint or not args.ref_quantization:
            return None  # a model or checkpoint of the user's own, of which we know no unquantized form
        start = _loader(args, policy)
    beta = measure.max_beta(mixture.terms, args.beta)
    return DriftMonitor(args.ref_drift_num_pairs, args.ref_calibrate, beta, start)


def _loader(args: Any, policy: Any) -> Callable[[], Any]:
    def load() -> Any:
        with unsharded_loading():
            return load_reference(device=reference_device(args), **reference_settings(args, policy))

    return load


def _errors(trainer: Any, start: Any, reference: Reference, rows: list[Any]) -> torch.Tensor:
    inputs = trainer._prepare_inputs(trainer.data_collator(rows))
    inputs = {name: value for name, value in inputs.items() if name not in trainer.extra_columns}
    stored = inputs.pop(REF_TOKEN_LOGPS, None)
    mask = inputs[_trl.COMPLETION_MASK][..., 1:].bool()
    _, output = reference(inputs, mask, stored)
    if output is None:
        raise InputError(
            f"The dataset brings reference log-probs of its own ({', '.join(_trl.REFERENCE_COLUMNS)}), and the "
            "flags describe a reference to compute them with. Remove those columns, or those flags."
        )
    return measure.answer_errors(
        _trl.scored_tokens(output, mask.size(1)), _trl.token_logps(trainer, start, inputs), mask
    )


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
