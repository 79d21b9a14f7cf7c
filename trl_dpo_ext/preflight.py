"""Every decision about a run, and every check that needs no model, before anything is loaded."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import _trl
from .config import DPOExtConfig
from .core.columns import Column
from .core.mixture import LossMixture, Term
from .core.pairs import Need
from .data.layouts import one_layout
from .data.validation import check_preferences
from .distributed.launch import check_launch
from .errors import InputError
from .forward.pair_forward import PairForward
from .reference.columns import has_reference_columns, refuse_sums
from .reference.drift.monitor import monitor_drift
from .reference.model.resolve import resolve_reference
from .reference.moving.config import unused_options
from .reference.moving.problems import reference_problems
from .reference.moving.source import MovingReference
from .reference.producer import AdapterBase, InitialPolicy, PolicyCheckpoint, Producer, ReferenceModel
from .reference.source import (
    DatasetReference,
    LiveReference,
    NoReference,
    ReferenceSettings,
    ReferenceSource,
    StoredReference,
)
from .reference.store.manifest import check_folder


@dataclass(frozen=True)
class RunSpec:
    """What a run will do."""

    mixture: LossMixture
    columns: dict[str, Column]
    """Dataset columns that the losses read."""
    pair_forward: PairForward
    reference: ReferenceSource
    train_dataset: Any
    """In a layout that TRL takes."""
    eval_dataset: Any

    @classmethod
    def build(
        cls,
        args: DPOExtConfig,
        model: Any,
        ref_model: Any,
        train_dataset: Any,
        eval_dataset: Any,
        *,
        processing_class: Any = None,
        peft_config: Any = None,
        quantization_config: Any = None,
    ) -> RunSpec:
        """Decide what the trainer's arguments ask for. Nothing is loaded.

        Raises:
            InputError: listing every problem of launch, options, data and reference.
        """
        mixture = args.loss_mixture()
        columns = loss_columns(args, mixture)
        pair_forward = PairForward(args.share_prompt, args.padding_free, args.verify_share_prompt)
        problems: list[str] = []
        with _collecting(problems):
            check_launch(os.environ, args)
        if args.precompute_ref_log_probs and args.ref_store:
            with _collecting(problems):
                check_folder(Path(args.ref_store))
        datasets: dict[str, Any] = {}
        with _collecting(problems):
            datasets = checked_datasets(columns, train_dataset=train_dataset, eval_dataset=eval_dataset)
        settings = ReferenceSettings(args, mixture.needs, pair_forward, policy_by_name=isinstance(model, str))
        reference: ReferenceSource = NoReference(settings)
        if mixture.needs_reference:
            with _collecting(problems):
                reference = _reference(
                    settings,
                    mixture,
                    model,
                    ref_model,
                    [train_dataset, eval_dataset],
                    processing_class=processing_class,
                    peft_config=peft_config,
                    quantization_config=quantization_config,
                )
        if problems:
            raise InputError(*problems)
        _warn_of_likely_mistakes(args, mixture, ref_model)
        for warning in unused_options(args):
            warnings.warn(warning, stacklevel=3)
        return cls(mixture, columns, pair_forward, reference, datasets["train_dataset"], datasets["eval_dataset"])


@contextlib.contextmanager
def _collecting(problems: list[str]) -> Iterator[None]:
    """Add the problems of an `InputError` raised inside to a list, instead of raising it."""
    try:
        yield
    except InputError as error:
        problems += error.problems


def _reference(
    settings: ReferenceSettings, mixture: LossMixture, model: Any, ref_model: Any, datasets: list[Any], **given: Any
) -> ReferenceSource:
    """The reference that a trainer's arguments ask for."""
    args = settings.args
    spec = resolve_reference(args, model, ref_model, given)
    monitor = monitor_drift(args, mixture, model, spec if spec is not None else ref_model)
    apart = spec is not None or ref_model is not None
    if args.precompute_ref_log_probs:
        for part in _parts(datasets):
            refuse_sums(settings.needs, part, "given")
    if args.precompute_ref_log_probs and _all_have_reference_columns(datasets):
        if spec is not None:
            raise InputError(
                "The datasets have reference log-probs of their own (ref_chosen_logps, ref_rejected_logps), and the "
                "options describe a reference to compute them with. Remove those columns, or those options."
            )
        return DatasetReference(settings, is_initial_policy=not apart)
    producer: Producer
    adapted = given["peft_config"] is not None or _trl.is_peft_model(model)
    if apart:
        producer = ReferenceModel(args, ref_model, spec)
    elif adapted or args.precompute_ref_log_probs:
        name = model if settings.policy_by_name else None
        revision = (args.model_init_kwargs or {}).get("revision")
        producer = (AdapterBase if adapted else InitialPolicy)(name, revision)
    else:
        producer = PolicyCheckpoint()
    if args.sync_ref_model:
        adapter = given["peft_config"] or (model.active_peft_config if adapted else None)
        problems = reference_problems(args, spec if spec is not None else ref_model, adapter)
        if problems:
            raise InputError(*problems)
        return MovingReference(producer, settings, monitor, adapted=adapted)
    kind = StoredReference if args.precompute_ref_log_probs else LiveReference
    return kind(producer, settings, monitor)


def _all_have_reference_columns(datasets: list[Any]) -> bool:
    given = _parts(datasets)
    return bool(given) and all(has_reference_columns(part) for part in given)


def _parts(datasets: list[Any]) -> list[Any]:
    parts = [part for data in datasets for part in (data.values() if isinstance(data, dict) else [data])]
    return [part for part in parts if part is not None]


def loss_columns(args: DPOExtConfig, mixture: LossMixture) -> dict[str, Column]:
    """The dataset columns that a run's losses read, with what their values mean."""
    columns = mixture.columns
    if args.weight_column:
        columns[args.weight_column] = Column("Weight of the pair's loss.", ge=0)
    return columns


def checked_datasets(columns: Mapping[str, Column], **datasets: Any) -> dict[str, Any]:
    """Each dataset, or dictionary of them, in a layout that TRL takes.

    Raises:
        InputError: listing the problems of all datasets.
    """
    problems: list[str] = []

    def checked(dataset: Any, name: str) -> Any:
        report = check_preferences(dataset, name, columns)
        problems.extend(report.problems)
        for warning in report.warnings:
            warnings.warn(warning, stacklevel=5)
        return dataset if report.problems else one_layout(dataset)

    prepared = {}
    for name, dataset in datasets.items():
        if isinstance(dataset, dict):
            prepared[name] = {key: checked(part, f"{name}[{key!r}]") for key, part in dataset.items()}
        else:  # TRL names a missing train_dataset itself, and eval_dataset is optional
            prepared[name] = None if dataset is None else checked(dataset, name)
    if problems:
        raise InputError(*problems)
    return prepared


def _warn_of_likely_mistakes(args: DPOExtConfig, mixture: LossMixture, ref_model: Any) -> None:
    if ref_model is not None and not mixture.needs_reference:
        warnings.warn(f"ref_model is not used: {mixture.describe()} needs no reference. Leave it out.", stacklevel=4)
    if args.precompute_ref_log_probs and args.precompute_ref_batch_size is not None:
        warnings.warn(
            "precompute_ref_batch_size is not used: the reference pass fills its batches by token count. Set "
            "precompute_ref_max_tokens instead.",
            stacklevel=4,
        )
    lonely = [t.variant.name for t in mixture.terms if Need.BATCH in t.variant.needs and _pairs_compared(t, args) == 1]
    if lonely:
        warnings.warn(
            f"{', '.join(lonely)} uses batch statistics, but the batch holds one pair, so there is nothing to compare. "
            "Increase per_device_train_batch_size; gradient accumulation has no effect here.",
            stacklevel=4,
        )


def _pairs_compared(term: Term, args: DPOExtConfig) -> int:
    """How many pairs a term sees at a time: those of all processes, but for AOT, which TRL sorts process by process."""
    processes = 1 if term.hyper.get("aot_global") is False else args.world_size
    return args.per_device_train_batch_size * processes
