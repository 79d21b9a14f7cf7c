"""The loss: how TRL's code is called without adding its own, and what it logs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from trl.trainer.utils import get_config_model_id


class Recorder:
    """Stands in a model's place where TRL calls it, and keeps the first scored output.

    Seam: TRL's loss only ever *calls* the model, with `fused_lm_head=True` where it wants log-probs; the output then
    carries `log_probs` of shape (rows, tokens - 1), zero outside the completion.
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model
        self.output: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.model(*args, **kwargs)
        if self.output is None and kwargs.get("fused_lm_head"):
            self.output = output
        return output


def scored_tokens(output: Any, tokens: int, name: str = "log_probs") -> torch.Tensor:
    """A per-token field of a recorded output, (rows, tokens); prompt-learning PEFT puts virtual tokens in front."""
    return getattr(output, name)[:, -tokens:]


def scored_output(log_probs: torch.Tensor) -> Any:
    """Stored log-probs, (rows, tokens), in the place of a model's output."""
    return SimpleNamespace(log_probs=log_probs)


@contextlib.contextmanager
def without_losses(args: Any, names: Sequence[str], weights: Sequence[float]) -> Iterator[None]:
    """Inside, TRL's constructor sees only the losses it is to compute itself, usually none.

    Seam: an empty `loss_types` is legal and adds no loss; the constructor copies the names and is done with `args`.
    TRL's constructor warns of `padding_free`, which it has dropped and we have not, so it does not see that either.
    """
    saved = args.loss_type, args.loss_weights, args.padding_free
    args.loss_type, args.loss_weights, args.padding_free = list(names), list(weights) or None, False
    try:
        yield
    finally:
        args.loss_type, args.loss_weights, args.padding_free = saved


@contextlib.contextmanager
def reference_from_batch(trainer: Any) -> Iterator[None]:
    """Inside, TRL's loss takes the reference log-probs from the batch and runs no reference forward.

    Seam: `precompute_ref_logps` is read at each loss, and then `REFERENCE_COLUMNS` are taken from the batch.
    """
    saved = trainer.precompute_ref_logps
    trainer.precompute_ref_logps = True
    try:
        yield
    finally:
        trainer.precompute_ref_logps = saved


@contextlib.contextmanager
def with_reverse_kl(trainer: Any) -> Iterator[None]:
    """Inside, TRL's loss works out no scores of an f-divergence, of which it knows fewer than we do.

    Seam: `f_divergence_type` is read at each loss, and scores go into losses alone, not into metrics.
    """
    saved = trainer.f_divergence_type
    trainer.f_divergence_type = "reverse_kl"
    try:
        yield
    finally:
        trainer.f_divergence_type = saved


def add_metric(trainer: Any, name: str, value: float) -> None:
    """Log a value, averaged over the batches between two log lines.

    Seam: `_metrics[mode][name]` is a list that `log` averages, prefixes in evaluation, and clears.
    """
    trainer._metrics[_mode(trainer)][name].append(value)


def replace_metric(trainer: Any, name: str, value: float) -> None:
    """Put another value in the place of what TRL has just logged for this batch."""
    trainer._metrics[_mode(trainer)][name][-1] = value


PAIR_METRICS = ("rewards/", "logps/", "loss/")
"""Seam: how TRL's names of metrics begin that are means over the pairs of a batch; and ours."""


def weight_metrics_by_pairs(trainer: Any, pairs: int) -> None:
    """Let the evaluation batch just done count by its number of pairs: TRL averages batches, whatever their size.

    Seam: each batch adds one value to each list of `_metrics["eval"]`, and the lists are averaged.
    """
    for name, values in trainer._metrics["eval"].items():
        if name.startswith(PAIR_METRICS):
            values += [values[-1]] * (pairs - 1)


@contextlib.contextmanager
def trim_gathered(trainer: Any, cut: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Inside, what TRL gathers over processes goes through `cut`.

    Seam: what TRL logs per pair is gathered by `accelerator.gather`.
    """
    gather = trainer.accelerator.gather
    trainer.accelerator.gather = lambda values: cut(gather(values))
    try:
        yield
    finally:
        del trainer.accelerator.gather


def _mode(trainer: Any) -> str:
    return "train" if is_training(trainer) else "eval"


def is_training(trainer: Any) -> bool:
    """Whether a loss is being trained on rather than evaluated.

    Seam: TRL tells the two apart by the policy's `training` flag.
    """
    return trainer.model.training


def default_output_dir(model: Any) -> str:
    """The output folder TRL uses where no configuration is given."""
    name = model if isinstance(model, str) else get_config_model_id(model.config)
    return f"{name.split('/')[-1]}-DPO"
