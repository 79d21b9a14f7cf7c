"""Measure tokenized pairs, many rows at a time: lengths before and after truncation, where the sides differ, EOS."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _trl
from ..data.batches import DatasetBatch
from .token_kinds import TokenKinds
from .token_lists import Counts, TokenLists, common_ends, keys_of

Mask = npt.NDArray[np.bool_]
_TRAILING = 16
"""Tokens of whitespace behind an EOS, at most."""


@dataclass(frozen=True)
class Truncation:
    """What TRL's collator leaves of a sequence. `check_truncation` compares it with the collator."""

    max_length: int | None
    keeps_end: bool

    @classmethod
    def of(cls, args: Any) -> Truncation:
        """That of a run's configuration."""
        return cls(args.max_length, args.truncation_mode == "keep_end")

    def kept(self, prompt: npt.NDArray, side: npt.NDArray) -> tuple[npt.NDArray, npt.NDArray]:
        """Return how many tokens of prompts and completions are left, each (rows,)."""
        if self.max_length is None:
            return prompt, side
        if self.keeps_end:
            left = np.minimum(side, self.max_length)
            return np.minimum(prompt, self.max_length - left), left
        left = np.minimum(prompt, self.max_length)
        return left, np.minimum(side, self.max_length - left)


@dataclass
class Rows:
    """Measures of pairs; every array has shape (rows,) or (rows, 2), the latter with one column per side."""

    prompt: Counts
    """Tokens of the whole prompt."""
    sides: Counts
    """Tokens of the whole completions, (rows, 2)."""
    prompt_kept: Counts
    """Tokens of the prompt that are left in front of each completion, (rows, 2)."""
    kept: Counts
    """Tokens of the completions that are left, (rows, 2)."""
    common: Counts
    """Tokens with which both completions begin, as trained."""
    shared: Counts
    """Tokens with which both sequences begin, prompts included, as trained."""
    common_end: Counts
    """Tokens with which both end, as trained, not counting those in `common`."""
    common_whole: Counts
    """Tokens with which both whole completions begin."""
    content: Counts
    """Trained tokens of completions that are neither EOS nor whitespace, (rows, 2)."""
    behind_eos: Counts
    """Tokens behind the last EOS of each completion, as trained; -1 without EOS; (rows, 2)."""
    ending: Counts
    """Tokens from the EOS that ends the whole completion to its end, whitespace included; 0 without it; (rows, 2)."""
    double_eos: Mask
    """Whether a completion has two EOS with nothing but whitespace between, (rows, 2)."""
    double_bos: Mask
    prompt_key: npt.NDArray[np.void]
    """Key of the prompt's tokens, as trained."""
    side_key: npt.NDArray[np.void]
    """Key of prompt and completion, as trained, (rows, 2)."""

    @classmethod
    def joined(cls, parts: list[Rows]) -> Rows:
        """Join measures of rows that follow one another."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def cut(self) -> Counts:
        """Tokens that truncation removes from completions, (rows, 2)."""
        return self.sides - self.kept

    @property
    def same(self) -> Mask:
        """Whether both completions are the same tokens, as trained."""
        return (self.kept[:, 0] == self.kept[:, 1]) & (self.common == self.kept[:, 0])

    @property
    def scored(self) -> Counts:
        """Scored tokens of completions, as trained, (rows, 2): all but a sequence's first token."""
        return (self.kept - ((self.prompt_kept == 0) & (self.kept > 0))).astype(np.int32)

    @property
    def fed(self) -> Counts:
        """Tokens of each sequence, (rows, 2)."""
        return self.prompt_kept + self.kept


@dataclass(frozen=True)
class Sequences:
    """Measured prompts, each with one completion behind it; arrays have shape (sequences,)."""

    prompt: TokenLists
    """The whole prompts."""
    side: TokenLists
    """The whole completions."""
    prompt_kept: TokenLists
    """The prompts as trained."""
    kept: TokenLists
    """The completions as trained."""
    content: npt.NDArray
    behind_eos: npt.NDArray
    double_eos: Mask
    ending: Counts
    double_bos: Mask
    key: npt.NDArray[np.void]

    def at(self, places: npt.NDArray) -> Sequences:
        """Some of the sequences."""
        return Sequences(*(getattr(self, field.name)[places] for field in dataclasses.fields(self)))


class PairMeasurer:
    """Measures batches of tokenized prompts and completions.

    Args:
        kinds: the tokens' meaning.
        truncation: what is left of sequences.
    """

    def __init__(self, kinds: TokenKinds, truncation: Truncation) -> None:
        self.kinds, self.truncation = kinds, truncation
        self.tails: Counter[tuple[int, ...]] = Counter()
        """What stands behind the last EOS of completions: token ids, and in how many completions."""

    def measure(self, batch: DatasetBatch) -> Rows:
        """Measure the rows of a batch with TRL's columns of token ids."""
        prompt, chosen, rejected = (TokenLists.of(batch.column(name)) for name in _trl.TOKEN_IDS)
        return self.pairs(self.sequences(prompt, chosen), self.sequences(prompt, rejected))

    def sequences(self, prompt: TokenLists, side: TokenLists) -> Sequences:
        """Measure prompts with one completion each.

        Args:
            prompt, side: token ids, whole.
        """
        left, number = self.truncation.kept(prompt.lengths, side.lengths)
        prompt_kept, kept = (
            each.cut(count, self.truncation.keeps_end) for each, count in ((prompt, left), (side, number))
        )
        content, behind, doubled = self._ending(kept)
        ends, double_bos = self._ends(side), self._double_bos(prompt_kept, kept)
        key = keys_of(prompt_kept, kept)
        return Sequences(prompt, side, prompt_kept, kept, content, behind, doubled, ends, double_bos, key)

    def pairs(self, left: Sequences, right: Sequences) -> Rows:
        """Measure pairs of sequences with the same prompt: the chosen ones and the rejected ones."""
        both = (left, right)
        common, common_end = common_ends(left.kept, right.kept)
        any_cut = any((each.kept.lengths != each.side.lengths).any() for each in both)
        whole = common_ends(left.side, right.side)[0] if any_cut else common
        return Rows(
            left.prompt.lengths.astype(np.int32),
            _columns(each.side.lengths for each in both),
            _columns(each.prompt_kept.lengths for each in both),
            _columns(each.kept.lengths for each in both),
            common,
            self._shared([each.prompt_kept for each in both], common),
            common_end,
            whole,
            _columns(each.content for each in both),
            _columns(each.behind_eos for each in both),
            _columns(each.ending for each in both),
            np.stack([each.double_eos for each in both], axis=1),
            left.double_bos | right.double_bos,
            keys_of(left.prompt_kept),
            np.stack([each.key for each in both], axis=1),
        )

    @staticmethod
    def _shared(prompts: list[TokenLists], common: Counts) -> Counts:
        """With how many equal tokens both sequences begin; prompts of different lengths have lost their starts."""
        lengths = [prompt.lengths for prompt in prompts]
        apart = np.flatnonzero(lengths[0] != lengths[1])
        shared = (lengths[0] + common).astype(np.int32)
        if len(apart):
            shared[apart] = common_ends(*(prompt[apart] for prompt in prompts))[0]
        return shared

    def _ending(self, side: TokenLists) -> tuple[npt.NDArray, npt.NDArray, Mask]:
        """Content tokens, tokens behind the last EOS, and whether there are two EOS in a row; each (rows,)."""
        ids, rows, places = side.flat()
        eos, blank = self.kinds.is_eos(ids), self.kinds.is_blank(ids)
        content = np.bincount(rows[~(eos | blank)], minlength=len(side))
        last = np.full(len(side), -1, dtype=np.int64)
        last[rows[eos]] = places[eos]  # the last assignment stays
        behind = np.where(last < 0, -1, side.lengths - 1 - last)
        spoken = ~blank
        kinds, of_row = eos[spoken], rows[spoken]
        doubled = np.zeros(len(side), dtype=bool)
        pairs = kinds[1:] & kinds[:-1] & (of_row[1:] == of_row[:-1])
        doubled[of_row[1:][pairs]] = True
        self._count_tails(side, behind)
        return content, behind, doubled

    def _count_tails(self, side: TokenLists, behind: npt.NDArray) -> None:
        one = behind == 1
        ids, counts = np.unique(side.values[(side.starts + side.lengths - 1)[one]], return_counts=True)
        self.tails.update({(index,): count for index, count in zip(ids.tolist(), counts.tolist(), strict=True)})
        for row in np.flatnonzero(behind > 1).tolist():
            end = side.starts[row] + side.lengths[row]
            self.tails[tuple(side.values[end - behind[row] : end][:8].tolist())] += 1

    def _ends(self, side: TokenLists) -> Counts:
        """Tokens from the last EOS to the end, if nothing but whitespace is behind it; otherwise 0; (rows,)."""
        ends = np.zeros(len(side), dtype=np.int32)
        open_ = side.lengths > 0
        back = np.ones(len(side), dtype=np.int64)
        for _ in range(_TRAILING):
            rows = np.flatnonzero(open_)
            if not len(rows):
                break
            ids = side.values[(side.starts + side.lengths)[rows] - back[rows]]
            eos = self.kinds.is_eos(ids)
            ends[rows[eos]] = back[rows[eos]]
            goes_on = self.kinds.is_blank(ids) & ~eos & (back[rows] < side.lengths[rows])
            open_[rows[~goes_on]] = False
            back[rows] += 1
        return ends

    def _double_bos(self, prompt: TokenLists, side: TokenLists) -> Mask:
        bos = self.kinds.bos_id
        if bos is None:
            return np.zeros(len(prompt), dtype=bool)
        first, second = prompt.at(0), np.where(prompt.lengths > 1, prompt.at(1), side.at(0))
        behind = (prompt.lengths > 0) & (first == bos) & (second == bos)
        return behind | ((prompt.lengths == 0) & (side.at(0) == bos) & (side.at(1) == bos))


def _columns(parts: Any) -> Counts:
    return np.stack([*parts], axis=1).astype(np.int32)
