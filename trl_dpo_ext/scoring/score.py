"""`score_preferences`: implicit rewards of a policy on preference data, through the machinery of the reference pass."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from .. import _trl
from ..checks.tokenizers import load_processing_class
from ..config import DPOExtConfig
from ..data.findings import ROW
from ..errors import InputError
from ..inspection.pair_table import numbered
from ..policy.adapter import SavedAdapter
from .configuration import beta_of, scoring_config
from .pair_scores import PairScores, SideScores, status_of
from .passes import LogProbs, Model, Pass, Tokenized, of_store
from .reference_of import Reference, Wanted, find_reference


@dataclass
class Scored:
    """What the two passes have found: arrays of all rows, and where they come from."""

    pairs: PairScores
    described: dict[str, Any]
    """Policy, reference, identities, lengths, template, and what the passes computed, as JSON."""
    rows: Tokenized = field(repr=False)
    policy: LogProbs = field(repr=False)
    reference: LogProbs | None = field(repr=False, default=None)


def score_preferences(
    policy: Any,
    dataset: Any,
    tokenizer: Any = None,
    args: DPOExtConfig | None = None,
    *,
    reference: Any = None,
    ref_adapter: str | None = None,
    ref_store: str | None = None,
    reference_free: bool = False,
    work_dir: str | Path | None = None,
    quantization_config: Any = None,
    described: Mapping[str, Any] | None = None,
) -> Scored:
    """Score preference data by the implicit rewards of a policy, `beta * (log pi - log ref)`.

    The rows go through the loader's layouts, TRL's tokenization and truncation, as in training. Log-probs are stored
    by content, so that a second call computes what is missing. With several processes, every one of them calls this.

    Args:
        policy: a model, or its name; an adapter, or a model with one.
        dataset: one split, in any layout that the trainer takes; or tokenized by TRL.
        tokenizer: the policy's tokenizer or processor; by default the one saved with the policy.
        args: the run's configuration: lengths, columns, precision, `beta`, options of the reference.
        reference: a model, or the name of a model or an adapter. By default the policy with its adapter off; for a
            full model, what its folder records as the start of the run.
        ref_adapter: the adapter that the run started from, frozen.
        ref_store: folder of a store of the reference's log-probs, which is read, and filled where the model is known.
        reference_free: score without a reference.
        work_dir: folder for log-probs, which a second call continues from; by default a temporary one.
        quantization_config: to load the base of an adapter, or the policy, with.
        described: what else the result says of its arguments, such as names.

    Raises:
        InputError: (a ValueError) policy, reference or data do not fit; as far as possible before a model is loaded.

    Example:
        >>> from trl_dpo_ext import score_preferences
        >>> score_preferences("out", pairs).pairs.chosen.policy  # doctest: +SKIP
    """
    args = args or default_config(work_dir)
    model, tokenizer = _policy(policy, args, tokenizer, quantization_config)
    raw = _split(dataset)
    wanted = Wanted.of(args, model=reference, adapter=ref_adapter, store=ref_store, free=reference_free)
    found = find_reference(model, args, wanted, tokenizer)
    with _work_folder(work_dir, args) as folder:
        config = functools.partial(scoring_config, args, folder)
        rows, of_policy, of_reference = _run(model, found, config, folder, _numbered(raw), tokenizer)
    pairs = _pairs(raw, rows, of_policy, of_reference, beta_of(args))
    return Scored(
        pairs,
        {**_described(model, found, args, rows, of_policy, of_reference), **(described or {})},
        rows,
        of_policy,
        of_reference,
    )


def default_config(work_dir: str | Path | None) -> DPOExtConfig:
    """Return the configuration of a call without one: TRL's defaults, in float32 on a machine without a GPU."""
    folder = str(work_dir or tempfile.gettempdir())
    without_bf16: dict[str, Any] = {"output_dir": folder, "report_to": "none"}
    try:
        return DPOExtConfig(**without_bf16)
    except InputError:  # the machine has no GPU
        return DPOExtConfig(**without_bf16, bf16=False, use_cpu=True)


def _policy(given: Any, args: DPOExtConfig, tokenizer: Any, quantization: Any) -> tuple[Model, Any]:
    """The model to score, and its tokenizer."""
    if not isinstance(given, str):
        return Model(given), tokenizer
    load = {"trust_remote_code": args.trust_remote_code, **(args.model_init_kwargs or {})}
    if quantization is not None:
        load["quantization_config"] = quantization
    adapter = SavedAdapter.find(given, load)
    if adapter is not None:
        problems = adapter.problems(args.merge_adapter)
        if problems:
            raise InputError(*problems)
        tokenizer = tokenizer or adapter.processing_class
        tokenizer = tokenizer or load_processing_class(args, adapter.base, adapter.base_revision)
        return Model(given, adapter, quantization=quantization), tokenizer
    tokenizer = tokenizer or load_processing_class(args, given, load.get("revision"))
    return Model(given, options={"ref_model_name_or_path": given, **_as_options(quantization)}), tokenizer


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
    return dataset


def _numbered(dataset: Dataset) -> Dataset:
    """The rows with their numbers, and without reference log-probs that the dataset has itself."""
    if not isinstance(dataset, Dataset):
        return dataset
    unread = [name for name in (ROW, *_trl.REFERENCE_COLUMNS) if name in dataset.column_names]
    return numbered(dataset.remove_columns(unread).with_format(None))


@contextlib.contextmanager
def _work_folder(given: str | Path | None, args: DPOExtConfig) -> Iterator[Path]:
    """The folder for log-probs, the same one for all processes; a temporary one is removed."""
    if given is not None:
        Path(given).mkdir(parents=True, exist_ok=True)
        yield Path(given)
        return
    is_first = not args.world_size or args.process_index == 0  # the number of processes is read first: it joins them
    mine = tempfile.mkdtemp(prefix="trl_dpo_ext_score_") if is_first else None
    folder = Path(_trl.gather_object(mine)[0])
    try:
        yield folder
    finally:
        if mine is not None:
            shutil.rmtree(mine, ignore_errors=True)


def _run(
    model: Model, reference: Reference, config: Any, folder: Path, dataset: Any, tokenizer: Any
) -> tuple[Tokenized, LogProbs, LogProbs | None]:
    """Run policy and reference over the rows; of two models, the first is freed before the second is loaded."""
    of_reference = None
    to = reference.store or folder / "reference"
    with Pass(model, config, folder / "policy", dataset, tokenizer, who="policy") as policy:
        rows, of_policy = policy.tokenized(), policy.result
        if reference.adapter_off:
            of_reference = policy.without_adapter(to, "reference")
    if reference.model is not None:
        with Pass(reference.model, config, to, rows.dataset, rows.processing_class, who="reference") as second:
            of_reference = second.result
    elif not reference.adapter_off and not reference.is_none:
        of_reference = of_store(to, rows)
    return rows, of_policy, of_reference


def _pairs(raw: Dataset, rows: Tokenized, policy: LogProbs, reference: LogProbs | None, beta: float) -> PairScores:
    """Place what was computed for the kept rows among all loaded rows."""
    numbers = np.array(rows.dataset[ROW][:], dtype=np.int64)
    total = len(raw)

    def placed(values: Any, empty: Any, dtype: Any) -> Any:
        array = np.full(total, empty, dtype)
        array[numbers] = values
        return array

    found = policy.of_rows(rows.keys)
    theirs = reference.of_rows(rows.keys) if reference is not None else [np.full_like(each, np.nan) for each in found]
    sides = [
        SideScores(
            *(placed(each[:, side], np.nan, np.float32) for each in (found[0], theirs[0], found[1], theirs[1])),
            placed(rows.keys.scored[:, side], 0, np.int32),
        )
        for side in (0, 1)
    ]
    same = (rows.keys.keys[:, 0] == rows.keys.keys[:, 1]).all(axis=1)
    status = status_of(
        *sides, placed(rows.keys.cut.any(axis=1), False, bool), placed(same, False, bool), reference is not None
    )
    return PairScores(np.arange(total), status, *sides, beta=beta, columns=raw)


def _described(
    model: Model, found: Reference, args: DPOExtConfig, rows: Tokenized, policy: LogProbs, reference: LogProbs | None
) -> dict[str, Any]:
    template = getattr(rows.processing_class, "chat_template", None)
    return {
        "policy": _name(model),
        "reference": None if found.is_none else found.described,
        "max_length": args.max_length,
        "truncation_mode": args.truncation_mode,
        "beta": beta_of(args),
        "chat_template": hashlib.sha256(str(template).encode()).hexdigest()[:16] if template else None,
        "policy_identity": {**policy.identity.keyed, "fingerprint": policy.identity.fingerprint},
        "reference_identity": reference and {**reference.identity.keyed, "fingerprint": reference.identity.fingerprint},
        "passes": {"policy": vars(policy.stats), "reference": reference and vars(reference.stats)},
    }


def _name(model: Model) -> str:
    if isinstance(model.given, str):
        return f"{model.given} (adapter on {model.adapter.base})" if model.adapter is not None else model.given
    return getattr(getattr(model.given, "config", None), "_name_or_path", "") or "a model in memory"
