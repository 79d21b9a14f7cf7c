"""TRL's DPO trainer with any mixture of loss variants. TRL keeps its forward, reference, metrics and checkpoints."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather
from datasets import IterableDataset
from trl import DPOTrainer

from . import _trl
from .config import DPOExtConfig
from .core import transforms
from .core.columns import Column
from .core.mixture import LossMixture, Term
from .core.pairs import Need, Pairs
from .data.lengths import length_column
from .data.validation import ColumnCollator, check_preferences, one_layout, token_column_problems
from .distributed.eval_padding import EvalPadding
from .distributed.launch import check_launch
from .distributed.mixin import DistributedTrainerMixin
from .errors import InputError
from .forward.outputs import ForwardOutputs, build_sides, pair_weights
from .forward.pair_forward import PairForward
from .reference import consistency_check
from .reference.drift.monitor import DriftMonitor, watch_drift
from .reference.identity.weights import adapters_alter_base
from .reference.model.loading import disable_cpu_repacking
from .reference.model.memory import describe_weights
from .reference.model.resolve import is_replicated, resolve_reference
from .reference.model.spec import ReferenceSpec
from .reference.precompute.collator import REF_TOKEN_LOGPS
from .reference.precompute.stored import StoredReference, has_reference_columns, open_store
from .reference.store.manifest import check_folder


class DPOExtTrainer(DistributedTrainerMixin, DPOTrainer):
    """Drop-in for TRL's `DPOTrainer`: the same arguments, with `DPOExtConfig` in place of `DPOConfig`.

    Args:
        model: model id, folder, or model instance.
        ref_model: the reference; None takes the policy's start, or nothing where no chosen loss needs a reference.
        args: configuration; the losses are chosen there.
        data_collator: builds batches; TRL's own by default.
        train_dataset, eval_dataset: preference data as TRL takes it, or with a string `prompt` beside message lists,
            and with the extra columns that the chosen losses read.
        *positional, **keywords: everything else that TRL's trainer takes (`processing_class`, `peft_config`, ...).

    Raises:
        TypeError: `args` is a plain `DPOConfig`.
        InputError: (a ValueError) listing what is wrong with the data, before a model is loaded.

    Example:
        >>> from trl_dpo_ext import DPOExtConfig, DPOExtTrainer
        >>> args = DPOExtConfig(output_dir="out", loss_type="dpop", dpop_lambda=5.0)  # doctest: +SKIP
        >>> DPOExtTrainer("Qwen/Qwen2.5-0.5B-Instruct", args=args, train_dataset=pairs).train()  # doctest: +SKIP
    """

    args: DPOExtConfig

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: DPOExtConfig | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *positional: Any,
        **keywords: Any,
    ) -> None:
        if args is None:
            args = DPOExtConfig(_trl.default_output_dir(model))
        elif not isinstance(args, DPOExtConfig):
            raise TypeError(f"args must be a DPOExtConfig, got {type(args).__name__}; it takes the same arguments.")
        check_launch(os.environ, args)
        if args.precompute_ref_log_probs and args.ref_store:
            check_folder(Path(args.ref_store))
        self.mixture = args.loss_mixture()
        self.forward = PairForward(args.share_prompt, args.padding_free, args.verify_share_prompt)
        self.extra_columns = _extra_columns(args, self.mixture)
        train_dataset, eval_dataset = self._checked(train_dataset=train_dataset, eval_dataset=eval_dataset)
        _warn_of_likely_mistakes(args, self.mixture, ref_model)

        self.drift_watch: DriftMonitor | None = None
        self._planned_reference: ReferenceSpec | None = None
        if self.mixture.needs_reference:
            planned = resolve_reference(args, model, ref_model, keywords)
            if planned is not None and args.precompute_ref_log_probs and planned.by_name:
                self._planned_reference = planned  # loaded when something is missing in the store
            elif planned is not None:
                ref_model = planned.load()
            self.drift_watch = watch_drift(args, self.mixture, model, self._planned_reference or ref_model)
        whole = ref_model if is_replicated(args, ref_model) else None
        self._policy_source = model if isinstance(model, str) else None
        self._own_reference = ref_model is not None or self._planned_reference is not None
        self._start_checked = False
        self._stored: StoredReference | None = None
        self._plain_collator: Any = None
        reference: Any = contextlib.nullcontext()
        if args.precompute_ref_log_probs:
            # The reference is loaded when something is missing in the store, not before.
            load = _trl.no_reference_model(policy_by_name=isinstance(model, str))
            reference = contextlib.ExitStack()
            for seam in (load, _trl.no_model_hash()):
                reference.enter_context(seam)
        elif not self.mixture.needs_reference:
            ref_model, reference = None, _trl.no_reference_model(policy_by_name=isinstance(model, str))
        elif Need.REF_ENTROPY in self.mixture.needs:
            reference = _trl.reference_entropy()
        losses = _trl.without_losses(args, self.mixture.host_names, self.mixture.host_weights)
        with reference, _trl.placed_reference(whole), losses:
            super().__init__(
                model, ref_model, args, data_collator, train_dataset, eval_dataset, *positional, **keywords
            )
        disable_cpu_repacking(self.model)
        longest, other = args.max_length, _trl.unsupported_inputs(self)
        self.forward.check_supported(_trl.models_of(self), longest, other)
        if Need.TOKEN_KL in self.mixture.needs:
            names = ", ".join(t.variant.name for t in self.mixture.terms if Need.TOKEN_KL in t.variant.needs)
            problems = _trl.projection_problems(self)
            if problems:
                raise InputError(*[f"{names} needs both models' whole distributions, and {p}." for p in problems])
        self._check_token_columns(train_dataset=self.train_dataset, eval_dataset=self.eval_dataset)
        self._plain_collator = self.data_collator
        if self.extra_columns:
            self.data_collator = ColumnCollator(self.data_collator, self.extra_columns)
        if self._stored is not None:
            self.data_collator = self._stored.collator(self.data_collator)
            self._stored.release(self)  # it has been run on all there is to run it on

    def describe_reference(self) -> str:
        """What the reference log-probs come from, in a few words."""
        if not self.mixture.needs_reference:
            return "none"
        if self._stored is not None:
            return f"stored log-probs in {self._stored.store.folder} ({self._stored.report})"
        if self.args.precompute_ref_log_probs:
            return "the dataset's own columns"
        if self.ref_model is not None:
            return describe_weights(self.accelerator.unwrap_model(self.ref_model))
        return "the policy with its adapter off, or a frozen copy of the adapter it started from"

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mixture's loss on one batch, a scalar. TRL runs the model, adds its own terms and logs."""
        inputs = dict(inputs)
        stored = inputs.pop(REF_TOKEN_LOGPS, None)
        columns = {name: inputs.pop(name) for name in self.extra_columns if name in inputs}
        mask = inputs[_trl.COMPLETION_MASK][..., 1:].bool()
        self._check_forward(model, inputs)
        whole, selected = Need.TOKEN_KL in self.mixture.needs, self.forward.active
        if self.drift_watch is not None and not self.drift_watch.over:
            self.drift_watch.measure(self, model, self._reference, self._gather)
        with _trl.capture_projection(self, self.ref_model or model, mask, whole, selected) as ref_projections:
            ref_logps, ref_output = self._reference(inputs, mask, stored)
        if self.drift_watch is not None:
            ref_logps, ref_output = self.drift_watch.corrected(ref_logps, ref_output, mask, self.args.ld_alpha)
        recorder = _trl.Recorder(self._call(model))
        scores = contextlib.nullcontext() if self.mixture.host_names else _trl.with_reverse_kl(self)
        catching = _trl.capture_projection(self, model, mask, whole, selected)
        with _trl.reference_from_batch(self), scores, catching as projections:
            host = super().compute_loss(
                recorder,  # type: ignore[arg-type]  (TRL only calls it)
                {**inputs, **dict(zip(_trl.REFERENCE_COLUMNS, ref_logps, strict=True))},
                return_outputs=return_outputs,
                num_items_in_batch=num_items_in_batch,
            )
        host_loss, outputs = host if return_outputs else (host, None)

        batch = ForwardOutputs(
            recorder.output,
            mask,
            ref_logps,
            ref_output,
            vocabulary=_trl.vocabulary_size(self) if Need.REF_ENTROPY in self.mixture.needs else 0,
            projections=(projections[0], ref_projections[0]) if whole else None,
        )
        self._check_start(batch)
        pairs = Pairs(
            *build_sides(batch, self.mixture, self.args),
            columns=columns,
            gather=self._gather,
            rank=self.accelerator.process_index,
            training=_trl.is_training(self),
            progress=self.state.global_step / max(self.state.max_steps, 1),
        )
        real = None if pairs.training else EvalPadding.of(self.accelerator, len(pairs.margin))
        weights = pair_weights(batch, self.args, columns)
        loss, per_term = self.mixture(pairs, real.weights(weights, mask.device) if real else weights)
        self._log_terms(per_term, real.share if real else 1.0)
        self._log_rewards(pairs)
        loss = loss + host_loss
        return (loss, outputs) if return_outputs else loss

    def _reference(
        self, inputs: Mapping[str, Any], mask: torch.Tensor, stored: torch.Tensor | None
    ) -> tuple[tuple[torch.Tensor, torch.Tensor], Any]:
        """Reference log-probs of both sides, each (pairs,), and per token where there are such.

        None needed, from the store, from the dataset's own columns, or from a live model.
        """
        if not self.mixture.needs_reference:
            zeros = torch.zeros(inputs["input_ids"].size(0) // 2, device=inputs["input_ids"].device)
            return (zeros, zeros), None
        if stored is not None:
            chosen, rejected = transforms.sum_logps(stored, mask, self.args.ld_alpha).chunk(2)
            return (chosen, rejected), _trl.scored_output(stored)
        if self.args.precompute_ref_log_probs:
            chosen, rejected = (inputs[column] for column in _trl.REFERENCE_COLUMNS)
            return (chosen, rejected), None
        chosen, rejected, output = _trl.run_reference(self, inputs, self._call)
        return (chosen, rejected), output

    def _check_start(self, batch: ForwardOutputs) -> None:
        """Before the first step, compare policy and stored reference where they are one model."""
        if self._start_checked or not _trl.is_training(self):
            return
        self._start_checked = True
        if not (self.args.precompute_ref_log_probs and self.args.verify_reference) or self.state.global_step:
            return
        causal = _trl.causal_model(self, self.model)
        apart = self._own_reference or adapters_alter_base(_trl.reference_module(self))
        if consistency_check.skip_reason(self.args, causal.config, apart):
            return
        if batch.ref_output is None:
            logps = transforms.sum_logps(batch.tokens(), batch.mask, self.args.ld_alpha)
            measured = consistency_check.difference(logps, torch.cat(batch.ref_logps), batch.mask)
        else:
            measured = consistency_check.difference(batch.tokens(), batch.ref_tokens(), batch.mask)
        worst = self._gather(measured.unsqueeze(0)).max().item()  # so that all processes stop, or none
        consistency_check.check(
            worst, consistency_check.tolerance(*_trl.precision(self, causal)), self.describe_reference()
        )

    def _call(self, model: Any) -> Callable[..., Any]:
        """What is called in a model's place: the model itself, or what feeds it fewer tokens."""
        return self.forward.around(model, _trl.causal_model(self, model)) if self.forward.active else model

    def _check_forward(self, model: Any, inputs: Mapping[str, Any]) -> None:
        if self.forward.unchecked:
            names = ("input_ids", "attention_mask")
            batch = {**{name: inputs[name] for name in names}, "labels": _trl.labels_of(inputs)}
            models = {"policy": model, "reference": self.ref_model}
            calls = {name: (m, _trl.causal_model(self, m)) for name, m in models.items() if m is not None}
            lowest = max((_trl.precision(self, c)[0] for _, c in calls.values()), key=lambda d: torch.finfo(d).eps)
            self.forward.verify_first_batch(calls, batch, torch.finfo(lowest).bits < 32, self._gather)

    def _gather(self, values: torch.Tensor) -> torch.Tensor:
        gathered = gather(values.detach())  # not the accelerator's, which leaves padding out in evaluation
        assert isinstance(gathered, torch.Tensor)
        return gathered

    def _log_terms(self, per_term: Mapping[str, torch.Tensor], share: float) -> None:
        if per_term and len(per_term) + len(self.mixture.host_names) > 1:
            # All terms in one collective: (processes, terms).
            means = self._gather(share * torch.stack(list(per_term.values())).unsqueeze(0)).mean(dim=0)
            for label, value in zip(per_term, means.tolist(), strict=True):
                _trl.add_metric(self, f"loss/{label}", value)

    def _log_rewards(self, pairs: Pairs) -> None:
        """Where no reference defines rewards, log the variant's own in the place of TRL's, which assume one."""
        rewards = self.mixture.rewards(pairs)
        if rewards is None:
            return
        chosen, rejected = (torch.as_tensor(self.accelerator.gather(reward)) for reward in rewards)
        _trl.replace_metric(self, "rewards/chosen", chosen.mean().item())
        _trl.replace_metric(self, "rewards/rejected", rejected.mean().item())
        _trl.replace_metric(self, "rewards/margins", (chosen - rejected).mean().item())
        _trl.replace_metric(self, "rewards/accuracies", (chosen > rejected).float().mean().item())

    def _set_signature_columns_if_needed(self) -> None:
        # TRL drops every column that it does not know before the collator sees it.
        super()._set_signature_columns_if_needed()
        wanted = (*self.extra_columns, self.args.length_column_name)
        self._signature_columns += [name for name in wanted if name not in self._signature_columns]

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        # Transformers groups rows by a column of lengths, which preference data has not.
        return length_column(super()._prepare_dataset(dataset, processing_class, args, dataset_name), args)

    def evaluate(self, eval_dataset: Any = None, *positional: Any, **keywords: Any) -> dict[str, float]:
        """Evaluate on `eval_dataset`, or on the one given at construction; see TRL's `DPOTrainer.evaluate`."""
        if eval_dataset is None or isinstance(eval_dataset, str):
            return super().evaluate(eval_dataset, *positional, **keywords)  # type: ignore[arg-type]
        (eval_dataset,) = self._checked(eval_dataset=eval_dataset)
        if not self.args.precompute_ref_log_probs:
            return super().evaluate(eval_dataset, *positional, **keywords)
        eval_dataset = _trl.prepared(self, eval_dataset)
        for name, part in eval_dataset.items() if isinstance(eval_dataset, dict) else [("eval", eval_dataset)]:
            self._precompute_ref_logps(part, name, self.args.per_device_eval_batch_size)
        with _trl.no_precompute(self):
            return super().evaluate(eval_dataset, *positional, **keywords)

    def precompute_reference(self) -> None:
        """Read the streamed datasets of the trainer to their end and fill the store with their reference log-probs.

        That of other datasets is done when a trainer is made with `precompute_ref_log_probs`.
        """
        datasets = [("train", self.train_dataset)]
        if self.eval_dataset is not None:
            parts = self.eval_dataset
            datasets += parts.items() if isinstance(parts, dict) else [("eval", parts)]
        for name, dataset in datasets:
            if self._stored is not None and isinstance(dataset, IterableDataset):
                self._stored.fill(self, dataset, name, self._plain_collator, streams=True)

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """TRL's place for the reference pass: ours fills the store, and leaves the dataset as it is."""
        disable_cpu_repacking(self.model)
        if has_reference_columns(dataset):
            return dataset
        if self._stored is None:
            self._stored = open_store(self, self._policy_source, self._planned_reference)
        self._stored.fill(self, dataset, name, self._plain_collator or self.data_collator)
        return dataset

    def save_extra_state(self, checkpoint: Path) -> None:
        """Write the losses' running state into a checkpoint, and what the reference's error was measured to be."""
        super().save_extra_state(checkpoint)
        if self.drift_watch is not None and self.drift_watch.drift is not None:
            self.drift_watch.drift.save(checkpoint)

    def load_extra_state(self, checkpoint: Path) -> None:
        """Read what `save_extra_state` has written."""
        super().load_extra_state(checkpoint)
        if self.drift_watch is not None:
            self.drift_watch.resume(checkpoint)

    def _checked(self, **datasets: Any) -> list[Any]:
        """Each dataset in a layout that TRL takes.

        Raises:
            InputError: listing what is wrong with all of them.
        """
        problems: list[str] = []
        prepared = []
        for name, dataset in datasets.items():
            if dataset is None:  # TRL names a missing train_dataset itself, and the others are optional
                prepared.append(None)
            elif isinstance(dataset, dict):
                prepared.append(
                    {key: self._check_one(part, f"{name}[{key!r}]", problems) for key, part in dataset.items()}
                )
            else:
                prepared.append(self._check_one(dataset, name, problems))
        if problems:
            raise InputError(*problems)
        return prepared

    def _check_token_columns(self, **datasets: Any) -> None:
        """Compare what TRL has tokenized with the columns that hold a value per token.

        Raises:
            InputError: listing the first row of each dataset and column that does not fit.
        """
        parts = {
            f"{name}[{key!r}]" if key else name: part
            for name, dataset in datasets.items()
            for key, part in (dataset.items() if isinstance(dataset, dict) else [("", dataset)])
        }
        problems = [
            problem for name, part in parts.items() for problem in token_column_problems(part, name, self.extra_columns)
        ]
        if problems:
            raise InputError(*problems)

    def _check_one(self, dataset: Any, name: str, problems: list[str]) -> Any:
        report = check_preferences(dataset, name, self.extra_columns)
        problems += report.problems
        for warning in report.warnings:
            warnings.warn(warning, stacklevel=5)
        return dataset if report.problems else one_layout(dataset)


def _extra_columns(args: DPOExtConfig, mixture: LossMixture) -> dict[str, Column]:
    columns = mixture.columns
    if args.weight_column:
        columns[args.weight_column] = Column("Weight of the pair's loss.", ge=0)
    return columns


def _warn_of_likely_mistakes(args: DPOExtConfig, mixture: LossMixture, ref_model: Any) -> None:
    if ref_model is not None and not mixture.needs_reference:
        warnings.warn(f"ref_model is not used: {mixture.describe()} needs no reference. Leave it out.", stacklevel=3)
    if args.precompute_ref_log_probs and args.precompute_ref_batch_size is not None:
        warnings.warn(
            "precompute_ref_batch_size is not used: the reference pass fills its batches with tokens "
            "(precompute_ref_max_tokens).",
            stacklevel=3,
        )
    lonely = [t.variant.name for t in mixture.terms if Need.BATCH in t.variant.needs and _pairs_compared(t, args) == 1]
    if lonely:
        warnings.warn(
            f"{', '.join(lonely)} compares pairs within a batch, and the batch is one pair: the comparison says "
            "nothing. Raise per_device_train_batch_size; accumulation does not help.",
            stacklevel=3,
        )


def _pairs_compared(term: Term, args: DPOExtConfig) -> int:
    """How many pairs a term sees at a time: those of all processes, but for AOT, which TRL sorts process by process."""
    processes = 1 if term.hyper.get("aot_global") is False else args.world_size
    return args.per_device_train_batch_size * processes
