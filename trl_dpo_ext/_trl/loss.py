"""The loss: how TRL's `compute_loss` is called without adding a loss of its own, and what it logs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from trl.trainer.utils import get_config_model_id

from ..core.token_kl import Projection
from .batch import REFERENCE_COLUMNS
from .models import ModelSeams
from .patching import temporarily


class Recorder:
    """A callable that stands in a model's place where TRL calls it, and keeps the first scored output.

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
    """Stored log-probs, (rows, tokens), in the form of a model's output."""
    return SimpleNamespace(log_probs=log_probs)


def default_output_dir(model: Any) -> str:
    """The output folder that TRL uses when no configuration is given."""
    name = model if isinstance(model, str) else get_config_model_id(model.config)
    return f"{name.split('/')[-1]}-DPO"


@dataclass(frozen=True, slots=True)
class HostLoss:
    """What TRL's `compute_loss` gave for one batch."""

    loss: Any
    """The terms that TRL computed itself (`trl:` losses, MoE balancing), a scalar; usually zero."""
    outputs: Any
    """TRL's second result, with `return_outputs`; else None."""
    scored: Any
    """The policy's output with per-token fields."""
    projection: Projection | None
    """What the policy's logits are made of, if wanted."""


PAIR_METRICS = ("rewards/", "logps/", "loss/")
"""Seam: how TRL's names of metrics begin that are means over the pairs of a batch; and ours."""


class LossSeams(ModelSeams):
    """How a trainer computes and logs its loss."""

    @property
    def is_training(self) -> bool:
        """Whether a loss is being trained on rather than evaluated.

        Seam: TRL tells the two apart by the policy's `training` flag.
        """
        return self.trainer.model.training

    def loss(
        self,
        compute_loss: Callable[..., Any],
        call: Callable[..., Any],
        inputs: Mapping[str, Any],
        ref_logps: tuple[torch.Tensor, torch.Tensor],
        *,
        own_scores: bool,
        capture: AbstractContextManager[list[Projection]],
        **keywords: Any,
    ) -> HostLoss:
        """Run TRL's loss on a batch with given reference log-probs, and record the policy's output.

        Args:
            compute_loss: TRL's own `compute_loss`.
            call: the policy, or what is called in its place.
            inputs: what the collator built, without columns that TRL does not know.
            ref_logps: summed reference log-probs of both sides, each (pairs,).
            own_scores: whether TRL computes losses from scores of its own f-divergence.
            capture: from `capture_projection`.
            **keywords: `return_outputs` and `num_items_in_batch`, as TRL takes them.

        Seam: `precompute_ref_logps` and `f_divergence_type` are read at each loss: with the former, reference log-probs
        are taken from the batch's `REFERENCE_COLUMNS` and no reference forward is run; scores of the latter go into
        losses alone, not into metrics, and TRL knows fewer divergences than this package.
        """
        recorder = Recorder(call)
        batch = {**inputs, **dict(zip(REFERENCE_COLUMNS, ref_logps, strict=True))}
        scores = nullcontext() if own_scores else self.with_reverse_kl()
        with self.reference_from_batch(), scores, capture as projections:
            result = compute_loss(recorder, batch, **keywords)
        loss, outputs = result if keywords.get("return_outputs") else (result, None)
        return HostLoss(loss, outputs, recorder.output, projections[0] if projections else None)

    def reference_from_batch(self) -> AbstractContextManager[None]:
        """Let TRL's loss take the reference log-probs from the batch; see `loss`."""
        return temporarily(self.trainer, precompute_ref_logps=True)

    def with_reverse_kl(self) -> AbstractContextManager[None]:
        """Let TRL's loss compute no scores of an f-divergence; see `loss`."""
        return temporarily(self.trainer, f_divergence_type="reverse_kl")

    def add_metric(self, name: str, value: float) -> None:
        """Log a value, averaged over the batches between two log lines.

        Seam: `_metrics[mode][name]` is a list that `log` averages, prefixes in evaluation, and clears.
        """
        self.trainer._metrics[self._mode][name].append(value)

    def replace_metric(self, name: str, value: float) -> None:
        """Replace what TRL has just logged for this batch."""
        self.trainer._metrics[self._mode][name][-1] = value

    def weight_metrics_by_pairs(self, pairs: int) -> None:
        """Weight the evaluation batch just done by its number of pairs: TRL averages batches, whatever their size.

        Seam: each batch adds one value to each list of `_metrics["eval"]`, and the lists are averaged.
        """
        for name, values in self.trainer._metrics["eval"].items():
            if name.startswith(PAIR_METRICS):
                values += [values[-1]] * (pairs - 1)

    def trim_gathered(self, cut: Callable[[torch.Tensor], torch.Tensor]) -> AbstractContextManager[None]:
        """Pass what TRL gathers over processes through `cut`.

        Seam: what TRL logs per pair is gathered by `accelerator.gather`.
        """
        accelerator = self.trainer.accelerator
        gather = accelerator.gather
        return temporarily(accelerator, gather=lambda values: cut(gather(values)))

    @property
    def _mode(self) -> str:
        return "train" if self.is_training else "eval"
