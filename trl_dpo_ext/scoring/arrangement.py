"""Arranges what a plan runs over: the rows as they are, RewardBench's token ids, or several completions of a prompt."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import SimpleNamespace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset

from .. import _trl
from ..data.dataset_columns import map_columns, sample_mapped
from ..data.findings import ties, told
from ..data.lists.choice import holds_lists
from ..data.lists.groups import Groups
from ..data.lists.layouts import Completions
from ..data.lists.reading import read_completions
from ..data.lists.selection import empty_completions
from ..errors import InputError
from ..reference.precompute.wanted import RowKeys
from .pair_scores import PairScores, SideScores, status_of
from .plan import Scored, ScorePlan
from .rewardbench.rows import completion_rows, read_rows
from .rewardbench.tokens import MAX_LENGTH, BenchSequences, tokenize_rows
from .row_numbers import ROW, numbered
from .token_rows import token_rows

Protocol = Literal["train", "rewardbench"]
_NAME = "the dataset"
_NOTHING = (
    "The dataset has no completions, so that there is nothing to score. Name their columns with --dataset_columns."
)
_LISTS = (
    "The dataset holds lists of completions, not pairs. Set --rank to score and rank them (in Python, call "
    "rank_completions)."
)


@dataclass(frozen=True)
class Arrangement:
    """A plan, and how the scores of its rows belong to the completions of the loaded rows.

    Attributes:
        plan: with the rows to run over.
        loaded: the loaded split.
        protocol: how rows become token ids.
        places: (completions, 2) int64, row and side of each completion among the rows of the plan; None for pairs as
            the plan scores them.
        groups: of the completions, if a prompt may have any number of them.
        paired: token ids of the pairs, with the numbers of their loaded rows; the chosen side's prompt stands for both.
        cut: (pairs or prompts,) bool, where token ids were removed before the plan gets them.
        mapping: `dataset_columns`, by which the loaded rows are read.
    """

    plan: ScorePlan
    loaded: Dataset
    protocol: Protocol = "train"
    places: npt.NDArray[np.int64] | None = None
    groups: Groups | None = None
    paired: Dataset | None = None
    cut: npt.NDArray[np.bool_] | None = None
    mapping: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: ScorePlan, protocol: Protocol = "train", rank: bool = False) -> Arrangement:
        """Arrange the rows of a plan; no model is loaded.

        Args:
            plan: whose rows are those of the loaded split.
            protocol: `train` tokenizes and truncates as training does, `rewardbench` as RewardBench does.
            rank: read any number of completions per prompt.

        Raises:
            InputError: the rows have another layout, or the tokenizer does not suffice.
        """
        mapping = plan.args.dataset_columns or {}
        if protocol == "train" and not rank:
            # Of the options, the names of columns alone choose between lists and pairs here: no loss is trained.
            if holds_lists(sample_mapped(plan.rows, mapping), SimpleNamespace(dataset_columns=mapping)):
                raise InputError(_LISTS)
            return cls(plan, plan.rows)
        mapped = map_columns(numbered(plan.rows.with_format(None)), _NAME, mapping)
        kept, mapped = np.array(mapped[ROW][:], np.int64), mapped.remove_columns(ROW)
        if rank and len(mapped) < len(plan.rows):
            raise InputError(
                "--dataset_columns names a winner of two answers, and --rank reads any number of "
                "them. Remove --rank, or name the column of completions."
            )
        if len(kept) < len(plan.rows):
            for line in told([ties(len(plan.rows), kept.tolist())], _NAME, plan.args):
                warnings.warn(line, stacklevel=4)
        if protocol == "train":
            return replace(cls._of_texts(plan, read_completions(mapped)), mapping=mapping)
        if plan.tokenizer is None:
            raise InputError("--protocol rewardbench needs the policy's tokenizer: pass it as `tokenizer`.")
        if rank:
            read = read_completions(mapped)
            rows = completion_rows(read.prompts, read.texts, read.groups)
            made = cls._of_ids(plan, tokenize_rows(plan.tokenizer, rows), read.groups, kept)
            return replace(made, mapping=mapping)
        rows = read_rows(mapped)
        more = [at for at, row in enumerate(rows) if len(row.answers) != 2]
        if more:
            raise InputError(
                f"{len(more)} of {len(rows)} rows have more than two answers, first in row {more[0]}. Set --rank."
            )
        return cls._of_ids(plan, tokenize_rows(plan.tokenizer, rows), None, kept)

    def read(self) -> Completions:
        """Prompts and completions of the loaded rows, as they are ranked."""
        return read_completions(map_columns(self.loaded.with_format(None), _NAME, self.mapping))

    @classmethod
    def _of_texts(cls, plan: ScorePlan, read: Completions) -> Arrangement:
        """Two completions of a prompt make a row, so that each is tokenized once."""
        problems = empty_completions(read, _NAME)
        if problems:
            raise InputError(*problems)
        rows, places = {"prompt": list[Any](), "chosen": list[Any](), "rejected": list[Any]()}, list[tuple[int, int]]()
        for prompt, where in zip(read.prompts, read.groups, strict=True):
            texts = read.texts[where]
            for first in range(0, len(texts), 2):
                pair = texts[first : first + 2]
                places += [(len(rows["prompt"]), side) for side in range(len(pair))]
                for name, value in zip(rows, (prompt, pair[0], pair[-1]), strict=True):
                    rows[name].append(value)
        if not places:
            raise InputError(_NOTHING)
        try:
            dataset = Dataset.from_dict(rows)
        except pa.ArrowException as error:
            raise InputError(
                f"Prompts or completions are texts in some rows and messages in others ({error}). Make them all "
                "texts, or all messages."
            ) from None
        arranged = replace(plan, rows=dataset, args=_without_columns(plan.args))
        return cls(arranged, plan.rows, "train", np.array(places, np.int64).reshape(-1, 2), read.groups)

    @classmethod
    def _of_ids(
        cls, plan: ScorePlan, found: Sequence[BenchSequences], groups: Groups | None, numbers: npt.NDArray[np.int64]
    ) -> Arrangement:
        """Each completion makes a row, as the prompts of two may differ by a token."""
        sequences = [(each.prompt, each.completion) for row in found for each in row.sequences]
        if not sequences:
            raise InputError(_NOTHING)
        places = np.stack([np.arange(len(sequences)), np.zeros(len(sequences), np.int64)], axis=1)
        args = _without_columns(plan.args)
        args.max_length = None
        arranged = replace(plan, rows=token_rows(sequences), args=args)
        cut = np.array([row.cut for row in found], bool)
        pairs = None if groups is not None else _paired(found, numbers)
        return cls(arranged, plan.rows, "rewardbench", places, groups, pairs, cut)

    def completions(self, scored: Scored) -> SideScores:
        """Return the scores of all completions, in the order of the groups.

        Args:
            scored: what the plan has found.
        """
        assert self.places is not None
        row, side = self.places.T
        pairs = scored.pairs
        both = zip(_arrays(pairs.chosen), _arrays(pairs.rejected), strict=True)
        return SideScores(*(np.where(side == 0, chosen[row], rejected[row]) for chosen, rejected in both))

    def described(self, scored: Scored) -> Scored:
        """Return what the plan has found, with the protocol among what describes it."""
        changed: dict[str, Any] = {"protocol": self.protocol}
        if self.protocol == "rewardbench":
            changed |= {"max_length": MAX_LENGTH, "truncation_mode": "rewardbench", "beta": self.beta(scored)}
        return replace(scored, described={**scored.described, **changed})

    def beta(self, scored: Scored) -> float:
        """Return the scale of rewards: RewardBench has none."""
        return 1.0 if self.protocol == "rewardbench" else scored.pairs.beta

    def pairs(self, scored: Scored) -> Scored:
        """Return what the plan has found, with the pairs of the loaded rows.

        Args:
            scored: what the plan has found.
        """
        if self.places is None or self.paired is None:
            return self.described(scored)
        every, keys = self.completions(scored), scored.rows.keys
        total, numbers = len(self.loaded), np.array(self.paired[ROW][:], np.int64)

        def placed(values: Any, empty: Any) -> Any:
            array = np.full(total, empty, values.dtype)
            array[numbers] = values
            return array

        # A completion is a row of the plan, and its first side is read.
        keys = RowKeys(
            keys.keys[:, 0].reshape(-1, 2, 2), keys.scored[:, 0].reshape(-1, 2), keys.cut[:, 0].reshape(-1, 2)
        )
        chosen, rejected = (
            SideScores(*(placed(each[side::2], 0 if each.dtype.kind == "i" else np.nan) for each in _arrays(every)))
            for side in (0, 1)
        )
        same = placed((keys.keys[:, 0] == keys.keys[:, 1]).all(axis=1), False)
        status = status_of(chosen, rejected, placed(self.cut, False), same, scored.reference is not None)
        pairs = PairScores(np.arange(total), status, chosen, rejected, beta=self.beta(scored), columns=self.loaded)
        return replace(self.described(scored), pairs=pairs, rows=replace(scored.rows, dataset=self.paired, keys=keys))


def _paired(found: Sequence[BenchSequences], numbers: npt.NDArray[np.int64]) -> Dataset:
    chosen, rejected = ([row.sequences[side] for row in found] for side in (0, 1))
    ids = [each.prompt for each in chosen], [each.completion for each in chosen], [each.completion for each in rejected]
    return Dataset.from_dict({ROW: numbers, **dict(zip(_trl.TOKEN_IDS, ids, strict=True))})


def _arrays(side: SideScores) -> list[npt.NDArray[Any]]:
    return [getattr(side, each.name) for each in fields(SideScores)]


def protocol_problems(protocol: Protocol, normalize: str, beta: float | None = None) -> list[str]:
    """Return which settings contradict a protocol.

    Args:
        protocol: of an `Arrangement`.
        normalize: of `measure`.
        beta: that the user has set; None if none is.
    """
    problems = [
        f"{name} must be one of {', '.join(known)}; got {given!r}."
        for name, given, known in (
            ("protocol", protocol, get_args(Protocol)),
            ("normalize", normalize, ("sum", "mean")),
        )
        if given not in known
    ]
    if problems or protocol == "train":
        return problems
    if normalize == "mean":
        problems.append("--protocol rewardbench takes the sum of log-ratios. Remove --normalize mean, or the protocol.")
    if beta is not None:
        problems.append("--protocol rewardbench has no beta. Remove --beta, or the protocol.")
    return problems


def _without_columns(args: Any) -> Any:
    """The configuration for rows whose columns have their names already."""
    changed = copy.copy(args)
    changed.dataset_columns = None
    return changed
