"""`score_preferences`: implicit rewards of a policy on preference data, through the machinery of the reference pass."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from datasets import Dataset

from .. import _trl
from ..checks.machine import folder_problems
from ..config import DPOExtConfig
from ..errors import InputError, collecting
from ..statistics import finite
from .arrangement import Arrangement, Protocol, protocol_problems
from .column_values import labels
from .measures import Measures, Normalize, ReferenceFree, measure
from .pair_scores import PairScores
from .plan import Scored, ScorePlan
from .ranking.result import RankedCompletions, check_ranking
from .reference_of import Wanted
from .rewardbench.sections import section_table
from .summary import SummaryOptions, summarize


@dataclass
class PreferenceScores:
    """The result of `score_preferences`; `data` is what JSON, terminal and page show."""

    scored: Scored = field(repr=False)
    options: SummaryOptions
    described: dict[str, Any] = field(default_factory=dict)
    """What else `data` says of its arguments."""

    @property
    def pairs(self) -> PairScores:
        """Log-probs and status of every loaded row."""
        return self.scored.pairs

    @functools.cached_property
    def measures(self) -> Measures:
        """Rewards and margins of every loaded row."""
        return measure(self.pairs, self.options.normalize, self.options.reference_free)

    @functools.cached_property
    def data(self) -> dict[str, Any]:
        """All statistics: `kind`, `format`, `versions`, `date`, `arguments`, blocks of statistics, `notes`."""
        found = self.scored
        data = summarize(self.pairs, self.options, {**found.described, **self.described}, found.notes)
        return {**data, "rewardbench": self._sections()}

    def _sections(self) -> dict[str, Any] | None:
        """Sections of RewardBench, where subsets have its names."""
        column, mask = self.options.completed(self.pairs.columns).subset_column, self.pairs.scored
        if column is None:
            return None
        names = [name for name, kept in zip(labels(self.pairs.columns, column), mask, strict=True) if kept]
        right = self.measures.margin[mask] > 0
        return finite(section_table(names, right, self.pairs.chosen.tokens[mask], self.pairs.rejected.tokens[mask]))

    @property
    def accuracy(self) -> float | None:
        """Share of pairs whose chosen side has the higher reward; ties count one half."""
        return self.data["accuracy"]["accuracy"]

    def json(self) -> str:
        """Return `data` as JSON text."""
        return json.dumps(self.data, ensure_ascii=False, allow_nan=False, indent=1)


def score_preferences(
    policy: Any,
    dataset: Any,
    tokenizer: Any = None,
    args: DPOExtConfig | None = None,
    *,
    reference: Any = None,
    ref_adapter: str | None = None,
    ref_store: str | None = None,
    reference_free: ReferenceFree | None = None,
    normalize: Normalize = "sum",
    subset_column: str | None = None,
    score_columns: tuple[str, str] | None = None,
    protocol: Protocol = "train",
    work_dir: str | Path | None = None,
    quantization_config: Any = None,
    described: Mapping[str, Any] | None = None,
) -> PreferenceScores:
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
        reference_free: score without a reference, by the `sum`, the `mean` or the negative `norm` of log-probs.
        normalize: what rewards are made of: the `sum` of a side's log-ratios, or their `mean`.
        subset_column: groups the statistics; `subset` by default, where the dataset has it.
        score_columns: what margins are compared with; `score_chosen` and `score_rejected` by default.
        protocol: `rewardbench` tokenizes and truncates as RewardBench does, and takes a `beta` of 1.
        work_dir: folder for log-probs, which a second call continues from; by default a temporary one.
        quantization_config: to load the base of an adapter, or the policy, with.
        described: what else the result says of its arguments, such as names.

    Raises:
        InputError: (a ValueError) policy, reference or data do not fit; as far as possible before a model is loaded.

    Example:
        >>> from trl_dpo_ext import score_preferences
        >>> score_preferences("out", pairs).data["accuracy"]  # doctest: +SKIP
    """
    args = args or default_config(work_dir)
    options = SummaryOptions(normalize, reference_free, subset_column, score_columns)
    wanted = Wanted.of(args, model=reference, adapter=ref_adapter, store=ref_store, free=reference_free is not None)
    plan = _planned(policy, dataset, tokenizer, args, wanted, quantization_config, options, protocol)
    arrangement = Arrangement.of(plan, protocol)
    with work_folder(work_dir, args) as folder:
        return PreferenceScores(arrangement.pairs(arrangement.plan.run(folder)), options, dict(described or {}))


def rank_completions(
    policy: Any,
    dataset: Any,
    tokenizer: Any = None,
    args: DPOExtConfig | None = None,
    *,
    reference: Any = None,
    ref_adapter: str | None = None,
    ref_store: str | None = None,
    reference_free: ReferenceFree | None = None,
    normalize: Normalize = "sum",
    subset_column: str | None = None,
    protocol: Protocol = "train",
    work_dir: str | Path | None = None,
    quantization_config: Any = None,
    described: Mapping[str, Any] | None = None,
) -> RankedCompletions:
    """Score any number of completions per prompt, and compare their order with given scores or ranks.

    Layouts: `prompt` and `completions`, a list of texts, messages, or `{completion, rank, reward}`, beside which
    `scores` or `ranks` may stand; `prompt` and `completion` in several rows, with `score` or `rank`; `chosen` and
    `rejected` as lists of texts. A prompt and its completions go through a model as one row.

    Args:
        policy, dataset, tokenizer, args: as of `score_preferences`.
        reference, ref_adapter, ref_store, reference_free, normalize: as of `score_preferences`.
        subset_column: names RewardBench 2's subsets; `subset` by default, where the dataset has it.
        protocol, work_dir, quantization_config, described: as of `score_preferences`.

    Raises:
        InputError: (a ValueError) policy, reference or data do not fit.

    Example:
        >>> from trl_dpo_ext import rank_completions
        >>> rank_completions("out", answers).columns["dpo_order"]  # doctest: +SKIP
    """
    args = args or default_config(work_dir)
    options = SummaryOptions(normalize, reference_free, subset_column)
    wanted = Wanted.of(args, model=reference, adapter=ref_adapter, store=ref_store, free=reference_free is not None)
    plan = _planned(policy, dataset, tokenizer, args, wanted, quantization_config, options, protocol)
    arrangement = Arrangement.of(plan, protocol, rank=True)
    check_ranking(arrangement, options)
    with work_folder(work_dir, args) as folder:
        return RankedCompletions.of(arrangement, arrangement.plan.run(folder), options, described or {})


def _planned(
    policy: Any,
    dataset: Any,
    tokenizer: Any,
    args: DPOExtConfig,
    wanted: Wanted,
    quantization: Any,
    options: SummaryOptions,
    protocol: Protocol,
) -> ScorePlan:
    """A plan for a dataset that has the columns of the options, which fit the protocol."""
    plan, problems = None, protocol_problems(protocol, options.normalize)
    if options.reference_free not in (None, *get_args(ReferenceFree)):
        problems.append(
            f"reference_free must be one of {', '.join(get_args(ReferenceFree))}, or None; got "
            f"{options.reference_free!r}."
        )
    with collecting(problems):
        plan = ScorePlan.build(policy, dataset, tokenizer, args, wanted, quantization)
    if isinstance(dataset, Dataset):
        problems += options.problems(dataset)
    if problems or plan is None:
        raise InputError(*problems)
    return plan


def default_config(work_dir: str | Path | None) -> DPOExtConfig:
    """Return the configuration of a call without one: TRL's defaults, in float32 on a machine without a GPU."""
    folder = str(work_dir or tempfile.gettempdir())
    without_bf16: dict[str, Any] = {"output_dir": folder, "report_to": "none"}
    try:
        return DPOExtConfig(**without_bf16)
    except InputError:  # the machine has no GPU
        return DPOExtConfig(**without_bf16, bf16=False, use_cpu=True)


def work_folder_problems(folder: Path) -> list[str]:
    """Return why log-probs cannot be kept in a folder."""
    if folder.is_dir():
        other = sorted({path.name for path in folder.iterdir() if not path.name.startswith(".")} - {*_WORK})
        if other:
            named = ", ".join(other[:3]) + (" ..." if len(other) > 3 else "")
            return [f"--work_dir {folder} contains other files ({named}). Choose another folder."]
    return folder_problems("--work_dir", str(folder))


_WORK = ("policy", "reference", "compare")


@contextlib.contextmanager
def work_folder(given: str | Path | None, args: DPOExtConfig) -> Iterator[Path]:
    """The folder for log-probs, the same one for all processes; a temporary one is removed."""
    if given is not None:
        problems = work_folder_problems(Path(given))
        if problems:
            raise InputError(*problems)
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
