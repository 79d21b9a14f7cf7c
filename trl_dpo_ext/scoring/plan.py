"""What a scoring run will do: policy, reference, rows; decided before anything is loaded, and then run."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from .. import _trl
from ..checks.models import policy_config
from ..checks.tokenizers import load_processing_class
from ..config import DPOExtConfig
from ..distributed.resumption import weight_problems
from ..errors import InputError, collecting
from ..policy.adapter import SavedAdapter
from .configuration import beta_of, scoring_config
from .pair_scores import PairScores, SideScores, status_of
from .passes import LogProbs, Model, Pass, Tokenized, of_store
from .reference_of import Reference, Wanted, find_reference
from .row_numbers import ROW, numbered


@dataclass
class Scored:
    """What the passes have found: arrays of all rows, and where they come from."""

    pairs: PairScores
    described: dict[str, Any]
    """Policy, reference, identities, lengths, template, and what the passes computed, as JSON."""
    notes: list[str]
    """Sentences about policy and reference that a reader of the numbers needs."""
    rows: Tokenized = field(repr=False)
    policy: LogProbs = field(repr=False)
    reference: LogProbs | None = field(repr=False, default=None)


@dataclass(frozen=True)
class ScorePlan:
    """A policy, a reference and rows that fit each other."""

    policy: Model
    reference: Reference
    rows: Dataset
    args: DPOExtConfig
    tokenizer: Any

    @classmethod
    def build(
        cls, policy: Any, dataset: Any, tokenizer: Any, args: DPOExtConfig, wanted: Wanted, quantization: Any = None
    ) -> ScorePlan:
        """Decide what to run. No model is loaded.

        Args:
            policy: a model, or its name.
            dataset: one split.
            tokenizer: the policy's; None for the one saved with it.
            args: the run's configuration.
            wanted: what the caller says of the reference.
            quantization: to load the policy or its base with.

        Raises:
            InputError: listing what is wrong with policy, reference and rows.
        """
        problems: list[str] = []
        with collecting(problems):
            dataset = _split(dataset)
        model = reference = None
        with collecting(problems):
            model, tokenizer = _policy(policy, args, tokenizer, quantization)
            reference = find_reference(model, args, wanted, tokenizer)
        for name in _names(model, reference):
            problems += weight_problems(Path(name)) if Path(name).is_dir() else []
        if problems or model is None or reference is None:
            raise InputError(*problems)
        return cls(model, reference, dataset, args, tokenizer)

    def run(self, folder: Path, reference: Path | None = None) -> Scored:
        """Run policy and reference over the rows; of two models, the first is freed before the second is loaded.

        Args:
            folder: for log-probs; what it holds of them is not computed again.
            reference: for those of the reference, unless the user has named a store; by default below `folder`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        config = functools.partial(scoring_config, self.args, folder)
        to, of_reference = self.reference.store or reference or folder / "reference", None
        with Pass(self.policy, config, folder / "policy", _numbered(self.rows), self.tokenizer, who="policy") as first:
            rows, of_policy = first.tokenized(), first.result
            if self.reference.adapter_off:
                of_reference = first.without_adapter(to, "reference")
        if self.reference.model is not None:
            with Pass(self.reference.model, config, to, rows.dataset, rows.processing_class, who="reference") as second:
                of_reference = second.result
        elif of_reference is None and not self.reference.is_none:
            of_reference = of_store(to, rows)
        pairs = _pairs(self.rows, rows, of_policy, of_reference, beta_of(self.args))
        described = self._described(rows, of_policy, of_reference)
        return Scored(pairs, described, self._notes(of_policy, of_reference), rows, of_policy, of_reference)

    def _described(self, rows: Tokenized, policy: LogProbs, reference: LogProbs | None) -> dict[str, Any]:
        template = getattr(rows.processing_class, "chat_template", None)
        return {
            "policy": self.policy.described,
            "reference": None if self.reference.is_none else self.reference.described,
            "max_length": self.args.max_length,
            "truncation_mode": self.args.truncation_mode,
            "beta": beta_of(self.args),
            "chat_template": hashlib.sha256(str(template).encode()).hexdigest()[:16] if template else None,
            "policy_identity": policy.described_identity,
            "reference_identity": reference and reference.described_identity,
            "passes": {"policy": vars(policy.stats), "reference": reference and vars(reference.stats)},
        }

    def _notes(self, policy: LogProbs, reference: LogProbs | None) -> list[str]:
        notes = [self.reference.note] if self.reference.note else []
        for who, found in (("policy", policy), ("reference", reference)):
            if found is not None and found.identity.quantization != "none":
                notes.append(
                    f"The {who} is quantized ({found.identity.quantization}): the log-prob of an answer may be off by "
                    "several nats, which exceeds small margins. Load it without quantization where they matter."
                )
        return notes


def _names(model: Model | None, reference: Reference | None) -> list[str]:
    """The names of what would be loaded."""
    models = [each for each in (model, reference and reference.model) if each is not None]
    bases = [each.adapter.base for each in models if each.adapter is not None]
    return list(dict.fromkeys([*(each.given for each in models if isinstance(each.given, str)), *bases]))


def _policy(given: Any, args: DPOExtConfig, tokenizer: Any, quantization: Any) -> tuple[Model, Any]:
    """The model to score, and its tokenizer."""
    if not isinstance(given, str):
        return Model(given), tokenizer
    loading: Any = args.model_init_kwargs or {}
    load = {"trust_remote_code": args.trust_remote_code, **loading}
    if quantization is not None:
        load["quantization_config"] = quantization
    adapter = SavedAdapter.find(given, load)
    if adapter is not None:
        _check_adapter(adapter)
        tokenizer = tokenizer or adapter.processing_class
        tokenizer = tokenizer or load_processing_class(args, adapter.base, adapter.base_revision)
        return Model(given, adapter, quantization=quantization), tokenizer
    policy_config(args, given)  # raises for what is no model
    tokenizer = tokenizer or load_processing_class(args, given, load.get("revision"))
    return Model(given, options={"ref_model_name_or_path": given, **_as_options(quantization)}), tokenizer


def _check_adapter(adapter: SavedAdapter) -> None:
    """Refuse an adapter that the pass cannot run.

    Raises:
        InputError: its base cannot be read, or it is in the way of TRL's head.
    """
    _ = adapter.base_config
    if adapter.config.is_prompt_learning:
        raise InputError(
            f"{adapter.name} is an adapter of virtual tokens ({adapter.kind}), which stand in front of every sequence "
            "and cannot be scored or merged. Score an adapter of another kind, such as LoRA."
        )
    if _trl.adapts_head(adapter.config):
        raise InputError(
            f"{adapter.name} adapts lm_head, whose adapter TRL bypasses. Merge it into its base "
            "(PeftModel.merge_and_unload), save the result, and score that with --ref_model_name_or_path "
            f"{adapter.base}."
        )


def _as_options(quantization: Any) -> dict[str, Any]:
    """The options of a described model that ask for the quantization of a policy."""
    if quantization is None:
        return {}
    if quantization.load_in_8bit:
        return {"ref_quantization": "int8"}
    compute = str(quantization.bnb_4bit_compute_dtype).removeprefix("torch.")
    return {
        "ref_quantization": quantization.bnb_4bit_quant_type,
        "ref_double_quant": quantization.bnb_4bit_use_double_quant,
        "ref_compute_dtype": compute,
    }


def _split(dataset: Any) -> Dataset:
    if isinstance(dataset, IterableDataset):
        raise InputError(
            "The dataset is streamed, and a score needs all of its rows. Remove --dataset_streaming, or pass "
            "Dataset.from_list(list(dataset.take(1000)))."
        )
    if isinstance(dataset, Mapping):
        raise InputError(f"The dataset has several splits ({', '.join(map(str, dataset))}). Pass one of them.")
    if isinstance(dataset, Dataset) and not len(dataset):
        raise InputError("The dataset has no rows, so that there is nothing to score. Choose another split.")
    pictures = _trl.image_columns(_trl.column_names(dataset))
    if pictures:
        raise InputError(
            f"The dataset has images (column {pictures[0]}), and score reads texts alone. To compare a policy with its "
            "reference on images, call evaluate of a trainer; to score the texts, remove the column."
        )
    return dataset


def _numbered(dataset: Dataset) -> Dataset:
    """The rows with their numbers, and without reference log-probs that the dataset has itself."""
    if not isinstance(dataset, Dataset):
        return dataset
    unread = [name for name in (ROW, *_trl.REFERENCE_COLUMNS) if name in dataset.column_names]
    return numbered(dataset.remove_columns(unread).with_format(None))


def _pairs(raw: Dataset, rows: Tokenized, policy: LogProbs, reference: LogProbs | None, beta: float) -> PairScores:
    """Place what was computed for the kept rows among all loaded rows."""
    numbers = np.array(rows.numbers, dtype=np.int64)
    total = len(raw)

    def placed(values: Any, empty: Any, dtype: Any) -> Any:
        array = np.full(total, empty, dtype)
        array[numbers] = values
        return array

    ours = policy.of_rows(rows.keys)
    theirs = reference.of_rows(rows.keys) if reference is not None else (ours[0] * np.nan, ours[1] * np.nan)

    def side(at: int) -> SideScores:
        sums, ref_sums, norms, ref_norms = (
            placed(each[:, at], np.nan, np.float32) for each in (ours[0], theirs[0], ours[1], theirs[1])
        )
        return SideScores(sums, ref_sums, norms, ref_norms, placed(rows.keys.scored[:, at], 0, np.int32))

    chosen, rejected = side(0), side(1)
    same = (rows.keys.keys[:, 0] == rows.keys.keys[:, 1]).all(axis=1)
    cut, same = (placed(each, False, bool) for each in (rows.keys.cut.any(axis=1), same))
    status = status_of(chosen, rejected, cut, same, reference is not None)
    return PairScores(np.arange(total), status, chosen, rejected, beta=beta, columns=raw)
