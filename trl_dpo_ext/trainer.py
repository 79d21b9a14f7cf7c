"""TRL's DPO trainer with any mixture of loss variants. TRL keeps its forward, reference, metrics and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather
from trl import DPOTrainer

from . import _trl
from .config import DPOExtConfig, explain_trainer_arguments
from .core.columns import Column
from .core.lists import Order
from .core.mixture import LossMixture
from .core.pairs import Need, Pairs
from .data.columns import token_column_problems
from .data.lists.collator import as_pairs
from .data.positions import position_problems
from .data.prepare import named_parts
from .distributed.eval_padding import EvalPadding
from .errors import InputError
from .first_step import FirstStepChecks
from .forward.cudnn_attention import avoid_cudnn_attention
from .forward.outputs import ForwardOutputs, PairBatch, RefLogps, build_sides, pair_weights
from .forward.pair_forward import PairForward
from .inspection.training import DatasetPreparation
from .lists.mixin import LIST_COLUMNS, ListMixin
from .logging_setup import show_messages
from .model_card import ModelCardMixin, RunLog
from .preflight import RunSpec
from .reference.model.instance import recorded_instances
from .reference.model.quantization import disable_cpu_repacking
from .reference.precompute.settings import PassSettings
from .reference.source import ReferenceSource
from .watch.mixin import WatchMixin

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
    from peft import PeftConfig, PeftModel
    from transformers import (
        BitsAndBytesConfig,
        DataCollator,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        ProcessorMixin,
        TrainerCallback,
    )


@explain_trainer_arguments
class DPOExtTrainer(ModelCardMixin, WatchMixin, ListMixin, DPOTrainer):  # type: ignore[misc]  # TRL's card, not transformers'
    """Drop-in replacement for TRL's `DPOTrainer`: the same arguments, with `DPOExtConfig` in place of `DPOConfig`.

    Args:
        model: model id, folder, or model instance; a saved adapter, or a model with one, to train the adapter further.
        ref_model: the reference; None takes the initial policy, or nothing if no chosen loss needs a reference.
        args: configuration; the losses are chosen there.
        data_collator: builds batches; TRL's own by default.
        train_dataset, eval_dataset: preference data as TRL takes it, or with a string `prompt` beside message lists,
            and with the extra columns that the chosen losses read.
        processing_class, compute_metrics, callbacks, optimizers, quantization_config, peft_config: as TRL takes them.

    Raises:
        TypeError: `args` is a plain `DPOConfig`, or an argument is unknown.
        InputError: (a ValueError) listing everything that is wrong, before a model is loaded.

    Example:
        >>> from trl_dpo_ext import DPOExtConfig, DPOExtTrainer
        >>> args = DPOExtConfig(output_dir="out", loss_type="dpop", dpop_lambda=5.0)  # doctest: +SKIP
        >>> DPOExtTrainer("Qwen/Qwen2.5-0.5B-Instruct", args=args, train_dataset=pairs).train()  # doctest: +SKIP
    """

    args: DPOExtConfig
    # TRL's constructor calls methods below that read these, so they are set before it runs.
    host: _trl.Host
    mixture: LossMixture
    extra_columns: Mapping[str, Column]
    pair_forward: PairForward
    reference: ReferenceSource
    preparation: DatasetPreparation
    pass_settings: PassSettings = PassSettings()
    """How log-probs are computed for a store."""

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        ref_model: PreTrainedModel | None = None,
        args: DPOExtConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | DatasetDict | IterableDatasetDict | Mapping[str, Any] | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        compute_metrics: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
    ) -> None:
        args = DPOExtConfig.for_model(args, model)
        show_messages(args)
        load: dict[str, Any] = {"quantization_config": quantization_config, "peft_config": peft_config}
        # 1. Decide. Nothing is loaded; every problem is reported at once.
        load |= {"compute_metrics": compute_metrics, "data_collator": data_collator}
        spec = RunSpec.build(args, model, ref_model, train_dataset, eval_dataset, processing_class, **load)
        self.host, self.mixture, self.extra_columns = _trl.Host(self), spec.mixture, spec.columns
        self.pair_forward, self.reference, self.preparation = spec.pair_forward, spec.reference, spec.preparation
        self.started_from: str | None = spec.policy.started_from
        self.of_lists: frozenset[Order] = spec.of_lists
        given = recorded_instances(start=spec.policy.instance, reference=ref_model)
        self.given_models: Mapping[str, Mapping[str, Any]] = given
        # 2. Construct. TRL loads, tokenizes and prepares; it sees no losses of ours, and no reference that we serve.
        with (
            args.keep_mixture(),
            spec.policy.constructing(self.reference.switches_adapters) as model,
            self.reference.constructing(self.host) as ref_model,
            _trl.without_losses(args, self.mixture.host_names, self.mixture.host_weights),
        ):
            load |= {"train_dataset": spec.train_dataset, "eval_dataset": spec.eval_dataset}
            load |= {"callbacks": callbacks, "optimizers": optimizers, "processing_class": spec.processing_class}
            super().__init__(model, ref_model, args, **load)
        # 3. Attach what needs the constructed models.
        self.preparation.forget()
        self._check_models()
        self.add_callback(self.preparation.streams)
        self.add_callback(RunLog(self))
        self.data_collator: Any = self.reference.attach(self.batch_collator())
        checks = FirstStepChecks(self.host, spec.pair_forward, spec.reference, spec.columns, self._gather)
        self.first_step: FirstStepChecks = checks

    def _check_models(self) -> None:
        """Check what only the loaded models and the tokenized data can tell.

        Raises:
            InputError: listing what the options ask for and the models or the data cannot give.
        """
        disable_cpu_repacking(self.model)
        self.pair_forward.check_supported(self.host.models(), self.args.max_length, self.host.unsupported_inputs())
        policy, packed = self.host.causal_model(self.model), self.pair_forward.active
        lowest, _ = self.host.precision(policy)
        avoid_cudnn_attention(policy, self.accelerator.device, lowest, packed, self.host.is_main_process)
        problems = self._watching_problems()
        if Need.TOKEN_KL in self.mixture.needs:
            names = ", ".join(t.variant.name for t in self.mixture.terms if Need.TOKEN_KL in t.variant.needs)
            problems += [
                f"{names} needs the complete next-token distributions of both models, but {problem}."
                for problem in self.host.projection_problems()
            ]
        datasets = {"train_dataset": self.train_dataset, "eval_dataset": self.eval_dataset}
        for name, part in named_parts(datasets).items():
            problems += position_problems(policy, part, name, self.args)
            problems += token_column_problems(part, name, self.extra_columns)
        if problems:
            raise InputError(*problems)

    def set_losses(self, **options: Any) -> None:
        """Replace the losses of a constructed trainer.

        Args:
            **options: fields of `DPOExtConfig` that choose losses (`loss_type`, `loss_weights`, hyperparameters, ...).

        Raises:
            InputError: the options are wrong, or need a reference that the trainer lacks; the old losses are kept.
        """
        if isinstance(options.get("loss_type"), (str, Mapping)):
            options["loss_type"] = [options["loss_type"]]
        with _trl.temporarily(self.args, **options):  # not kept if anything is wrong
            mixture = self.args.loss_mixture()
            columns = self.columns_of(mixture)
            missing = mixture.needs.of_reference & ~self.reference.settings.needs
            if missing:
                raise InputError(
                    f"{mixture.describe()} needs a reference; this trainer was created without it. "
                    "Create one with this loss_type."
                )
        for name, value in options.items():
            setattr(self.args, name, value)
        self.mixture, self.extra_columns = mixture, columns

    def describe_reference(self) -> str:
        """Describe where the reference log-probs come from, in a few words."""
        return self.reference.describe()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mixture's loss on one batch, a scalar. TRL runs the model, adds its own terms and logs."""
        batch = PairBatch.take(inputs, self.extra_columns)
        padding = self._padding(batch.prompts)
        self.first_step.before(model, batch)
        reference = self.reference.logps(model, batch)
        host = self.host.loss(
            super().compute_loss,
            self.pair_forward.wrap(model, self.host.causal_model),
            batch.inputs,
            reference.sums,
            own_scores=bool(self.mixture.host_names),
            capture=self.host.capture_projection(
                model, batch.mask, Need.TOKEN_KL in self.mixture.needs, self.pair_forward.active
            ),
            uncounted=self.uncounted_rows(batch, padding),
            ragged=batch.lists is not None,
            return_outputs=return_outputs,
            num_items_in_batch=num_items_in_batch,
        )
        outputs = self._outputs(host, reference, batch)
        self.first_step.after(model, outputs, batch)
        own = self._pair_loss if batch.lists is None else self.list_loss
        loss = own(outputs, batch, padding) + host.loss
        return (loss, host.outputs) if return_outputs else loss

    def _pair_loss(self, outputs: ForwardOutputs, batch: PairBatch, padding: EvalPadding) -> torch.Tensor | float:
        """The mixture's loss on a batch of pairs, a scalar; it is logged."""
        pairs = self._pairs(outputs, batch)
        counted, weights = padding.real_batch(pairs, pair_weights(outputs, self.args, batch.columns))
        loss, per_term = self.mixture(counted, weights)
        self._count_evaluated(counted, weights)
        self._log_terms(per_term, padding.share)
        self._log_rewards(pairs)
        self.watch_batch(pairs, loss, batch, padding)
        return loss

    def training_step(self, *positional: Any, **keywords: Any) -> torch.Tensor:
        """One forward and backward pass; see transformers' `Trainer.training_step`."""
        loss = super().training_step(*positional, **keywords)
        self.first_step.after_backward()
        return loss

    def _outputs(self, host: _trl.HostLoss, reference: RefLogps, batch: PairBatch) -> ForwardOutputs:
        vocabulary = self.host.vocabulary_size() if Need.REF_ENTROPY in self.mixture.needs else 0
        return ForwardOutputs(host, reference, batch.mask, vocabulary)

    def _pairs(self, outputs: ForwardOutputs, batch: PairBatch) -> Pairs:
        return Pairs(
            *build_sides(outputs, self.mixture, self.args),
            columns=batch.columns,
            gather=self._gather,
            rank=self.accelerator.process_index,
            training=self.host.is_training,
            progress=self.state.global_step / max(self.state.max_steps, 1),
        )

    def _gather(self, values: torch.Tensor) -> torch.Tensor:
        gathered = gather(values.detach())  # not the accelerator's, which leaves padding out in evaluation
        assert isinstance(gathered, torch.Tensor)
        return gathered

    def _log_terms(self, per_term: Mapping[str, torch.Tensor], share: float) -> None:
        if per_term and len(per_term) + len(self.mixture.host_names) > 1:
            # All terms in one collective: (processes, terms).
            means = self._gather(share * torch.stack(list(per_term.values())).unsqueeze(0)).mean(dim=0)
            for label, value in zip(per_term, means.tolist(), strict=True):
                self.host.add_metric(f"loss/{label}", value)

    def _log_rewards(self, pairs: Pairs) -> None:
        """Log the variant's own rewards in place of TRL's, which assume a reference, if the losses need none."""
        rewards = self.mixture.rewards(pairs)
        if rewards is None:
            return
        chosen, rejected = (torch.as_tensor(self.accelerator.gather(reward)) for reward in rewards)
        right = (chosen > rejected).to(chosen.dtype)
        values = {"chosen": chosen, "rejected": rejected, "margins": chosen - rejected, "accuracies": right}
        means = torch.stack([value.mean() for value in values.values()])
        for name, mean in zip(values, means.tolist(), strict=True):  # the host waits for the device once
            self.host.replace_metric(f"rewards/{name}", mean)

    def _set_signature_columns_if_needed(self) -> None:
        # TRL drops every column that it does not know before the collator sees it.
        super()._set_signature_columns_if_needed()
        wanted = (*self.extra_columns, self.args.length_column_name, *LIST_COLUMNS)
        self._signature_columns += [name for name in wanted if name not in self._signature_columns]

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        # What becomes of rows is told, and transformers groups them by a column of lengths.
        return self.preparation.prepared(super()._prepare_dataset, dataset, processing_class, args, dataset_name)

    def precompute_reference(self) -> None:
        """Read the trainer's streamed datasets to their end and store their reference log-probs.

        Other datasets are precomputed when a trainer is created with `precompute_ref_log_probs`.
        """
        datasets = {"train": self.train_dataset}
        if self.eval_dataset is not None:
            datasets |= self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
        self.reference.read_streams(datasets)

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """Run our reference pass in place of TRL's: it fills the store and leaves the dataset unchanged."""
        disable_cpu_repacking(self.model)
        self.reference.fill(as_pairs(dataset), name)
        return dataset
