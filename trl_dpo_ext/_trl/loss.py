"""The loss: how TRL's `compute_loss` is called without adding a loss of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from trl.trainer.utils import get_config_model_id

from ..core.token_kl import Projection
from .batch import COMPLETION_MASK, REFERENCE_COLUMNS, labels_of
from .models import ModelSeams
from .patching import temporarily


class Recorder:
    """A callable that stands in a model's place where TRL calls it, and keeps the first scored output.

    Args:
        model: what is called.
        labels: what the model is given in place of TRL's labels; None leaves them.

    Seam: TRL's loss only ever *calls* the model, with `fused_lm_head=True` and `labels` where it wants log-probs; the
    output then carries `log_probs` of shape (rows, tokens - 1), zero outside the completion.
    """

    def __init__(self, model: Callable[..., Any], labels: torch.Tensor | None = None) -> None:
        self.model, self.labels = model, labels
        self.output: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        scored = kwargs.get("fused_lm_head")
        if scored and self.labels is not None:
            kwargs["labels"] = self.labels
        output = self.model(*args, **kwargs)
        if self.output is None and scored:
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


class LossSeams(ModelSeams):
    """How a trainer computes its loss."""

    def loss(
        self,
        compute_loss: Callable[..., Any],
        call: Callable[..., Any],
        inputs: Mapping[str, Any],
        ref_logps: tuple[torch.Tensor, torch.Tensor],
        *,
        own_scores: bool,
        capture: AbstractContextManager[list[Projection]],
        uncounted: torch.Tensor | None = None,
        ragged: bool = False,
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
            uncounted: (rows,) bool, rows whose tokens TRL is not to count in its metrics; None if all count.
            ragged: whether processes have different numbers of pairs: what TRL logs of pairs is then of this process.
            **keywords: `return_outputs` and `num_items_in_batch`, as TRL takes them.

        Seam: `precompute_ref_logps` and `f_divergence_type` are read at each loss: with the former, reference log-probs
        are taken from the batch's `REFERENCE_COLUMNS` and no reference forward is run; scores of the latter go into
        losses alone, not into metrics, and TRL knows fewer divergences than this package. Metrics of tokens are sums
        over `COMPLETION_MASK`, gathered over processes.
        """
        recorder = Recorder(call)
        batch = {**inputs, **dict(zip(REFERENCE_COLUMNS, ref_logps, strict=True))}
        if uncounted is not None:
            recorder.labels = labels_of(inputs)
            batch[COMPLETION_MASK] = batch[COMPLETION_MASK].masked_fill(uncounted.unsqueeze(1), 0)
        scores = nullcontext() if own_scores else self.with_reverse_kl()
        gathering = self._pairs_ungathered() if ragged else nullcontext()
        with self.reference_from_batch(), scores, gathering, capture as projections:
            result = compute_loss(recorder, batch, **keywords)
        loss, outputs = result if keywords.get("return_outputs") else (result, None)
        return HostLoss(loss, outputs, recorder.output, projections[0] if projections else None)

    def _pairs_ungathered(self) -> AbstractContextManager[None]:
        """Gather numbers over processes, and leave tensors of pairs as they are.

        Seam: what TRL logs per pair is gathered by `accelerator.gather`, which needs as many on every process; sums and
        counts are gathered one by one.
        """
        accelerator = self.trainer.accelerator
        gather = accelerator.gather
        return temporarily(accelerator, gather=lambda values: values if values.dim() else gather(values))

    def reference_from_batch(self) -> AbstractContextManager[None]:
        """Let TRL's loss take the reference log-probs from the batch; see `loss`."""
        return temporarily(self.trainer, precompute_ref_logps=True)

    def with_reverse_kl(self) -> AbstractContextManager[None]:
        """Let TRL's loss compute no scores of an f-divergence; see `loss`."""
        return temporarily(self.trainer, f_divergence_type="reverse_kl")
