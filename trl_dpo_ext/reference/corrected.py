"""Correct a run's quantized reference before its first step, with the same terms on every process."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import nn

from .. import _trl
from .._trl.unsharded import unsharded_loading
from ..errors import InputError
from ..forward.list_rows import as_pair
from .correction import sequences as data
from .correction.fit import check, empty_term, rank_problems
from .correction.layers import Correction, attach, correction_of, quantized_layers, record, terms
from .correction.weights import correct, has_layers
from .identity.identity import Identity
from .identity.weights import adapters_alter_base
from .model.loading import load_reference
from .model.quantization import is_quantized
from .model.resolve import reference_settings
from .model.spec import ReferenceSpec

logger = logging.getLogger(__name__)


@dataclass
class RunCorrection:
    """The correction of a run's reference."""

    rank: int
    pairs: int
    """Number of training pairs that it is fitted on."""
    skipped: int
    """Number of training pairs before them, on which the reference's drift is measured."""
    start: Callable[[], Any]
    """Loads the unquantized model on the CPU."""
    is_policy: bool
    """Whether that model is the policy before training."""
    policy_trains: bool = False
    """Whether the policy may have changed."""
    fitted: Correction | None = None
    _sequences: list[Sequence[int]] = field(default_factory=list)
    _factors: torch.Tensor | None = None

    def described(self, host: _trl.Host) -> Correction:
        """What the terms are, or will be, fitted on."""
        if self.fitted is None:
            self._sequences = rows = data.within_memory(self._of_pairs(host))
            self.fitted = Correction(self.rank, len(rows), sum(map(len, rows)), data.digest(rows))
        return self.fitted

    def _of_pairs(self, host: _trl.Host) -> list[list[int]]:
        """Both answers of each pair, the best and the worst of a list, with their prompts, as they are truncated."""
        dataset = host.trainer.train_dataset
        rows = [as_pair(row) for row in islice(iter(dataset), self.skipped, self.skipped + self.pairs)]
        if len(rows) < self.pairs:
            raise InputError(pairs_problem(self.pairs, self.skipped, self.skipped + len(rows)))
        batch = host.batch_of(rows)
        ids = [row[kept.bool()].tolist() for row, kept in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
        return [ids[at] for pair in range(len(rows)) for at in (pair, pair + len(rows))]

    def apply(self, host: _trl.Host, reference: Any) -> None:
        """Fit the terms of a reference and attach them; the first process does so for all.

        Args:
            host: the trainer, whose training data is tokenized.
            reference: the quantized model, on its device.
        """
        if correction_of(reference) is not None:
            return
        found = self.described(host)
        check(reference, self.rank, found.tokens, "ref_correction_rank", "Set a larger ref_correction_pairs")
        began = time.perf_counter()
        if self._factors is not None:
            self._empty(reference)
        elif self._policy(host, reference) is not None and _is_split(host):
            self._fit(host, reference)  # every process takes part in gathering the weights
        elif host.is_main_process:
            self._fit(host, reference)
        else:
            self._empty(reference)
        self._factors = share(reference, self._factors)
        record(reference, found)
        if host.is_main_process:
            logger.info(
                "Reference corrected at rank %d, fitted on %d tokens of %d training pairs in %.1f s.",
                found.rank, found.tokens, found.sequences // 2, time.perf_counter() - began,
            )  # fmt: skip

    def _policy(self, host: _trl.Host, reference: Any) -> Any:
        """The policy, if its weights are those that the reference was quantized from."""
        policy = host.unwrapped(host.trainer.model)
        if not self.is_policy or self.policy_trains or host.has_trained or adapters_alter_base(policy):
            return None
        policy = _trl.without_adapter(policy)
        whole = not any(p.is_meta or hasattr(p, "_local_tensor") for p in policy.parameters())
        return policy if whole and not is_quantized(policy) and has_layers(policy, reference) else None

    def _fit(self, host: _trl.Host, reference: Any) -> None:
        start = self._policy(host, reference)
        start = self.start() if start is None else start
        with host.trainer.accelerator.autocast():
            correct(reference, start, self.rank, self._sequences)
        del start
        _trl.free_memory()

    def _empty(self, reference: Any) -> None:
        for layer in quantized_layers(reference).values():
            attach(layer, empty_term(layer, self.rank))


def share(reference: nn.Module, factors: torch.Tensor | None = None) -> torch.Tensor:
    """Give every process the terms of the first one, and return them, flat.

    Args:
        reference: the model, with terms.
        factors: what an earlier call returned, to give back to a model that was loaded again.
    """
    parts = [buffer for term in terms(reference) for buffer in term.buffers()]
    flat = [part.contiguous().view(torch.uint8).flatten() for part in parts]
    shared: Any = broadcast(torch.cat(flat)) if factors is None else factors.to(parts[0].device)
    for part, values in zip(parts, shared.split([each.numel() for each in flat]), strict=True):
        part.copy_(values.clone().view(part.dtype).view_as(part))
    return shared.cpu()


def _is_split(host: _trl.Host) -> bool:
    """Whether ZeRO-3 has spread the policy's weights over processes."""
    return any(hasattr(p, "ds_id") for p in host.unwrapped(host.trainer.model).parameters())


def with_correction(identity: Identity, correction: Correction | None) -> Identity:
    """The identity of a corrected reference, given that of the quantized one."""
    if correction is None:
        return identity
    return dataclasses.replace(identity, quantization=f"{identity.quantization} {correction.fingerprint}")


def run_correction(args: Any, policy: Any, spec: ReferenceSpec | None) -> RunCorrection | None:
    """The correction that a configuration asks for; None for none.

    Args:
        args: the configuration.
        policy: the policy, a model or its name.
        spec: the reference to load.
    """
    if not args.ref_correction_rank or spec is None:
        return None

    def start() -> Any:
        with unsharded_loading():
            return load_reference(**{**reference_settings(args, policy), "device": "cpu"})

    revision = (args.model_init_kwargs or {}).get("revision")
    is_policy = spec.source.is_start_of(policy, revision) and not hasattr(policy, "peft_config")
    return RunCorrection(
        args.ref_correction_rank, args.ref_correction_pairs, args.ref_drift_num_pairs, start, is_policy
    )


def correction_problems(
    args: Any, spec: ReferenceSpec | None, train: Any, pairs: int | None, quantization: Any
) -> list[str]:
    """Return why a reference cannot be corrected, before a model is loaded.

    Args:
        args: the configuration.
        spec: the reference to load.
        train: the training data; None without.
        pairs: number of its pairs or lists; None where that is not known, as of a stream.
        quantization: of the policy; None without.
    """
    if not args.ref_correction_rank or spec is None:
        return []
    problems = []
    if pairs is not None and pairs < args.ref_correction_pairs + args.ref_drift_num_pairs:
        problems.append(pairs_problem(args.ref_correction_pairs, args.ref_drift_num_pairs, pairs))
    if train is not None and _trl.image_columns(_trl.column_names(train)):
        problems.append("ref_correction_rank cannot be used with images: it is fitted on text. Remove it.")
    if (quantization or (args.model_init_kwargs or {}).get("quantization_config")) and not args.changes_checkpoint:
        problems.append(
            "ref_correction_rank has nothing to be fitted to: the policy is quantized itself, and the reference is its "
            "start. Remove ref_correction_rank, or the policy's quantization."
        )
    if not problems:
        problems += rank_problems(args.ref_correction_rank, spec.quantized_shapes(), "ref_correction_rank")
    return problems


def pairs_problem(pairs: int, measured: int, found: int) -> str:
    """Say that a training set has too few pairs to fit and to measure on."""
    return (
        f"ref_correction_pairs={pairs} and ref_drift_num_pairs={measured} need {pairs + measured} training pairs, as "
        f"drift is measured on pairs that the correction was not fitted on; train_dataset has {found}. Lower one of "
        "them."
    )
