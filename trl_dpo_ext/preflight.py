"""Every decision about a run, and every check that needs no model, before anything is loaded."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from . import _trl
from .checks import trainable
from .checks.machine import machine_problems
from .checks.models import policy_config, reference_problems
from .checks.targets import target_problems
from .checks.tokenizers import check_tokenizer, eos_ids
from .config import DPOExtConfig
from .core.columns import Column
from .core.lists import Order
from .core.mixture import LossMixture, Term
from .core.pairs import Need
from .data.columns import loss_columns
from .data.evaluation_sets import evaluation_problems
from .data.images import image_problems, read_images, refuse_unreadable_start
from .data.lists.pair_rows import examples
from .data.lists.refusals import list_columns, list_run_problems, without_scores
from .data.prepare import Kept, are_lists, checked_datasets, named_parts, with_fitting_tool_calls
from .data.streams import StreamReport
from .distributed.launch import check_launch
from .errors import InputError
from .errors import collecting as _collecting
from .forward.pair_forward import PairForward
from .inspection.training import DatasetPreparation
from .policy.start import Policy
from .reference.columns import has_reference_columns, ignored_columns, refuse_sums
from .reference.corrected import correction_problems, run_correction
from .reference.dataset_source import DatasetReference
from .reference.drift.monitor import monitor_drift
from .reference.identity.processor import processor_settings
from .reference.model.resolve import resolve_reference
from .reference.moving.config import unused_options
from .reference.moving.problems import moving_reference_problems
from .reference.moving.source import MovingReference
from .reference.precompute.image_keys import ImageKeys
from .reference.producer import AdapterBase, InitialPolicy, PolicyStart, Producer, ReferenceModel
from .reference.source import (
    LiveReference,
    NoReference,
    ReferenceSettings,
    ReferenceSource,
    StoredReference,
)
from .reference.store.another_reference import check_processor
from .reference.store.manifest import check_folder


@dataclass(frozen=True)
class RunSpec:
    """What a run will do."""

    policy: Policy
    mixture: LossMixture
    columns: dict[str, Column]
    """Dataset columns that the losses read."""
    pair_forward: PairForward
    reference: ReferenceSource
    train_dataset: Any
    """In a layout that TRL takes."""
    eval_dataset: Any
    processing_class: Any
    """The tokenizer or processor; None for the one of an adapter's base model, which TRL loads."""
    preparation: DatasetPreparation
    """Holds the datasets that are tokenized already."""
    of_lists: frozenset[Order] = frozenset()
    """What orders the completions of its lists; empty for pairs."""

    @classmethod
    def build(
        cls,
        args: DPOExtConfig,
        model: Any,
        ref_model: Any,
        train_dataset: Any,
        eval_dataset: Any,
        processing_class: Any = None,
        *,
        peft_config: Any = None,
        quantization_config: Any = None,
        compute_metrics: Any = None,
        data_collator: Any = None,
        tokenizes: bool = True,
    ) -> RunSpec:
        """Decide what the trainer's arguments ask for, and tokenize the data if `tokenizes`. No model is loaded.

        Raises:
            InputError: listing every problem of launch, machine, options, data, tokenizer, model and reference.
        """
        mixture = args.loss_mixture()
        datasets: dict[str, Any] = {"train_dataset": train_dataset, "eval_dataset": eval_dataset}
        refuse_unreadable_start(named_parts(datasets))
        columns = (list_columns if are_lists(args, datasets) else loss_columns)(args, mixture)
        pair_forward = PairForward(args.share_prompt, args.padding_free, args.verify_share_prompt)
        problems = evaluation_problems(args, eval_dataset, is_loaded=train_dataset is not None)
        with _collecting(problems):
            check_launch(os.environ, args)
        problems += machine_problems(args)
        if args.precompute_ref_log_probs and args.ref_store:
            with _collecting(problems):
                check_folder(Path(args.ref_store))
        kept: dict[str, Kept] = {}
        with _collecting(problems):
            datasets = checked_datasets(columns, args, kept=kept, **datasets)
            numbers = {name: each.numbers for name, each in kept.items()}
            problems += image_problems(named_parts(datasets), numbers)
        orders: frozenset[Order] = frozenset(each.order for each in kept.values() if each.order)
        problems += list_run_problems(args, mixture, orders, compute_metrics is not None) if kept else []
        columns = without_scores(columns) if orders else columns
        problems += _trl.late_refusals(
            args, [model, ref_model], [*named_parts(datasets).values()], peft_config, data_collator
        )
        policy, config, is_readable = Policy(model, args, peft_config), None, False
        with _collecting(problems):
            policy = Policy.of(args, model, ref_model, peft_config, quantization_config)
            with policy.described_args():
                config, is_readable = policy_config(args, policy.described), True
        given = processing_class or policy.processing_class
        if is_readable or given is not None:
            with _collecting(problems), policy.described_args():
                config = None if policy.adds_tokens else config
                live = ref_model if mixture.needs_reference and isinstance(ref_model, torch.nn.Module) else None
                processing_class = check_tokenizer(args, policy.described, config, given, named_parts(datasets), live)
                datasets = with_fitting_tool_calls(datasets, processing_class, kept)
        if (is_readable or isinstance(model, str)) and not policy.converts:
            loaded: Any = args.model_init_kwargs or {}
            quantized = quantization_config or loaded.get("quantization_config")
            problems += trainable.policy_problems(model, peft_config, None if policy.is_adapted else quantized)
        untargeted, ignored = target_problems(model, config, peft_config)
        problems += untargeted
        has_images = bool(_trl.image_columns(_trl.column_names(datasets["train_dataset"])))
        by_name = isinstance(model, str)
        known_images: list[tuple[Any, ImageKeys]] = []
        settings = ReferenceSettings(args, mixture.needs, pair_forward, by_name, has_images, known_images)
        if has_images and args.precompute_ref_log_probs and args.ref_store and processing_class is not None:
            with _collecting(problems):
                check_processor(Path(args.ref_store), processor_settings(processing_class))
        reference: ReferenceSource = NoReference(settings)
        if mixture.needs_reference and (is_readable or isinstance(model, str)):
            with _collecting(problems), policy.described_args():
                reference = _reference(
                    settings,
                    mixture,
                    policy,
                    ref_model,
                    [*named_parts(datasets).values()],
                    processing_class=processing_class,
                    peft_config=peft_config,
                    quantization_config=quantization_config,
                )
        if problems:
            raise InputError(*problems)
        _warn_of_likely_mistakes(args, mixture, ref_model)
        ignored += _ignored_columns(args, datasets) if mixture.needs_reference else []
        ignored += trainable.no_step_warnings(args, examples(datasets["train_dataset"]))
        for warning in [*ignored, *unused_options(args), *_trl.initialization_warnings(peft_config)]:
            warnings.warn(warning, stacklevel=3)
        preparation = DatasetPreparation(StreamReport(), eos_ids(policy.described, args), kept)
        if tokenizes and processing_class is not None:
            preparation.prepare_early(datasets, processing_class, args)
            if has_images and reference.is_stored:
                known_images += read_images(named_parts(datasets), numbers, processing_class, args)
        data = (datasets["train_dataset"], datasets["eval_dataset"])
        return cls(policy, mixture, columns, pair_forward, reference, *data, processing_class, preparation, orders)


def _reference(
    settings: ReferenceSettings, mixture: LossMixture, policy: Policy, ref_model: Any, datasets: list[Any], **given: Any
) -> ReferenceSource:
    """The reference that a trainer's arguments ask for."""
    args = settings.args
    problems = reference_problems(ref_model)
    if problems:
        raise InputError(*problems)
    spec = resolve_reference(args, policy.described, ref_model, given)
    train = next(iter(datasets), None)
    pairs = len(examples(train)) if isinstance(train, Dataset) else None
    problems = correction_problems(args, spec, train, pairs, given["quantization_config"])
    if problems:
        raise InputError(*problems)
    monitor = monitor_drift(args, mixture, policy.given, spec if spec is not None else ref_model)
    apart = spec is not None or ref_model is not None
    if args.precompute_ref_log_probs:
        for part in datasets:
            refuse_sums(settings.needs, part, "given")
    if args.precompute_ref_log_probs and settings.has_images and any(map(has_reference_columns, datasets)):
        raise InputError(
            f"The datasets have reference log-probs of their own ({', '.join(_trl.REFERENCE_COLUMNS)}), which are not "
            "read beside images. Remove those columns; a store is filled instead."
        )
    if args.precompute_ref_log_probs and datasets and all(map(has_reference_columns, datasets)):
        if spec is not None:
            raise InputError(
                "The datasets have reference log-probs of their own (ref_chosen_logps, ref_rejected_logps), and the "
                "options describe a reference to compute them with. Remove those columns, or those options."
            )
        return DatasetReference(settings, is_initial_policy=not apart)
    producer: Producer
    if apart:
        producer = ReferenceModel(args, ref_model, spec, run_correction(args, policy.given, spec))
    elif policy.is_adapted or args.precompute_ref_log_probs:
        producer = (AdapterBase if policy.is_adapted else InitialPolicy)(*policy.source)
    else:
        producer = PolicyStart(policy.given)
    if args.sync_ref_model:
        problems = moving_reference_problems(args, spec if spec is not None else ref_model, policy.adapter_config)
        if problems:
            raise InputError(*problems)
        return MovingReference(producer, settings, monitor, adapted=policy.is_adapted)
    kind = StoredReference if args.precompute_ref_log_probs else LiveReference
    return kind(producer, settings, monitor)


def _ignored_columns(args: DPOExtConfig, datasets: Mapping[str, Any]) -> list[str]:
    found = (ignored_columns(part, name, args.precompute_ref_log_probs) for name, part in named_parts(datasets).items())
    return [warning for warning in found if warning is not None]


def _warn_of_likely_mistakes(args: DPOExtConfig, mixture: LossMixture, ref_model: Any) -> None:
    if ref_model is not None and not mixture.needs_reference:
        warnings.warn(f"ref_model is not used: {mixture.describe()} needs no reference. Leave it out.", stacklevel=4)
    if args.precompute_ref_log_probs and args.precompute_ref_batch_size is not None:
        warnings.warn(
            "precompute_ref_batch_size is not used: the reference pass fills its batches by token count. Set "
            "precompute_ref_max_tokens instead.",
            stacklevel=4,
        )
    experimental = list(dict.fromkeys(term.variant.name for term in mixture.terms if term.variant.experimental))
    if experimental:
        warnings.warn(
            f"{', '.join(experimental)}: experimental, because the formula was compared with neither the paper nor the "
            f"authors' code. `trl-dpo-ext losses {experimental[0]}` says what is known.",
            stacklevel=4,
        )
    for warning in _small_batches(args, mixture):
        warnings.warn(warning, stacklevel=4)


def _small_batches(args: DPOExtConfig, mixture: LossMixture) -> Iterator[str]:
    """Say which losses compare the pairs of a batch that holds one, or fewer than their statistics need."""
    remedy = "Increase per_device_train_batch_size; gradient accumulation has no effect here."
    found = {
        term.variant.name: (_pairs_compared(term, args), term.variant.fewest_pairs)
        for term in mixture.terms
        if Need.BATCH in term.variant.needs
    }
    lonely = [name for name, (pairs, _) in found.items() if pairs == 1]
    if lonely:
        yield (
            f"{', '.join(lonely)} uses batch statistics, but the batch holds one pair, so there is nothing to compare. "
            f"{remedy}"
        )
    for name, (pairs, fewest) in found.items():
        if 1 < pairs < fewest:
            yield f"{name} uses batch statistics, and {pairs} pairs are few for them: fewer than {fewest}. {remedy}"


def _pairs_compared(term: Term, args: DPOExtConfig) -> int:
    """How many pairs a term sees at a time: those of all processes, but for AOT, which TRL sorts process by process."""
    processes = 1 if term.hyper.get("aot_global") is False else args.world_size
    return args.per_device_train_batch_size * processes
