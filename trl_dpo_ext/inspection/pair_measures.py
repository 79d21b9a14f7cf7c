"""Measure tokenized pairs, many rows at a time: lengths before and after truncation, where the sides differ, EOS."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _trl
from ..data.batches import DatasetBatch
from ..data.columnar import list_lengths
from .token_kinds import TokenKinds

Counts = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
Ids = npt.NDArray[np.int64]
_TRAILING = 16
"""Tokens of whitespace behind an EOS, at most."""
_CELLS = 1 << 20
"""Cells of one padded block."""


@dataclass(frozen=True)
class Truncation:
    """What TRL's collator leaves of a sequence. `check_truncation` compares it with the collator."""

    max_length: int | None
    keeps_end: bool

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
    """Measures of rows; every array has shape (rows,) or (rows, 2), the latter with one column per side."""

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


class PairMeasurer:
    """Measures batches of tokenized pairs.

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
        columns = [batch.column(name) for name in _trl.TOKEN_IDS]
        lengths = [list_lengths(column) for column in columns]
        values = [column.flatten().to_numpy(zero_copy_only=False).astype(np.int64, copy=False) for column in columns]
        starts = [length.cumsum() - length for length in lengths]
        prompt, sides = _Lists(values[0], starts[0], lengths[0]), [
            _Lists(*parts) for parts in zip(values[1:], starts[1:], lengths[1:], strict=True)
        ]  # fmt: skip
        kept = [self.truncation.kept(prompt.lengths, side.lengths) for side in sides]
        prompts = [prompt.cut(number, self.truncation.keeps_end) for number, _ in kept]
        trained = [side.cut(number, self.truncation.keeps_end) for side, (_, number) in zip(sides, kept, strict=True)]
        common, common_end = _common(*trained)
        any_cut = any((part.lengths != side.lengths).any() for part, side in zip(trained, sides, strict=True))
        whole = _common(*sides)[0] if any_cut else common
        endings = [self._ending(part) for part in trained]
        return Rows(
            prompt.lengths.astype(np.int32),
            _columns(side.lengths for side in sides),
            _columns(part.lengths for part in prompts),
            _columns(part.lengths for part in trained),
            common,
            self._shared(prompts, common),
            common_end,
            whole,
            _columns(ending[0] for ending in endings),
            _columns(ending[1] for ending in endings),
            _columns(self._ends(side) for side in sides),
            np.stack([ending[2] for ending in endings], axis=1),
            self._double_bos(prompts, trained),
            _keys(prompts[0]),
            np.stack([_keys(first, second) for first, second in zip(prompts, trained, strict=True)], axis=1),
        )

    @staticmethod
    def _shared(prompts: list[_Lists], common: Counts) -> Counts:
        """With how many equal tokens both sequences begin; prompts of different lengths have lost their starts."""
        lengths = [prompt.lengths for prompt in prompts]
        apart = np.flatnonzero(lengths[0] != lengths[1])
        shared = (lengths[0] + common).astype(np.int32)
        if len(apart):
            shared[apart] = _common(*(prompt.rows(apart) for prompt in prompts))[0]
        return shared

    def _ending(self, side: _Lists) -> tuple[npt.NDArray, npt.NDArray, Mask]:
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

    def _count_tails(self, side: _Lists, behind: npt.NDArray) -> None:
        one = behind == 1
        ids, counts = np.unique(side.values[(side.starts + side.lengths - 1)[one]], return_counts=True)
        self.tails.update({(index,): count for index, count in zip(ids.tolist(), counts.tolist(), strict=True)})
        for row in np.flatnonzero(behind > 1).tolist():
            end = side.starts[row] + side.lengths[row]
            self.tails[tuple(side.values[end - behind[row] : end][:8].tolist())] += 1

    def _ends(self, side: _Lists) -> Counts:
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

    def _double_bos(self, prompts: list[_Lists], sides: list[_Lists]) -> Mask:
        bos = self.kinds.bos_id
        found = np.zeros(len(prompts[0]), dtype=bool)
        if bos is None:
            return found
        for prompt, side in zip(prompts, sides, strict=True):
            first, second = prompt.at(0), np.where(prompt.lengths > 1, prompt.at(1), side.at(0))
            found |= (prompt.lengths > 0) & (first == bos) & (second == bos)
            found |= (prompt.lengths == 0) & (side.at(0) == bos) & (side.at(1) == bos)
        return found


@dataclass(frozen=True)
class _Lists:
    """A column of lists, as values and where each row's begin."""

    values: Ids
    starts: Ids
    lengths: Ids

    def __len__(self) -> int:
        return len(self.lengths)

    def cut(self, kept: npt.NDArray, keeps_end: bool) -> _Lists:
        """The first, or the last, `kept` items of each list."""
        return _Lists(self.values, self.starts + (self.lengths - kept) * keeps_end, kept)

    def rows(self, places: npt.NDArray) -> _Lists:
        """Some of the lists."""
        return _Lists(self.values, self.starts[places], self.lengths[places])

    def at(self, place: int) -> Ids:
        """The item at a place of each list; -1 where the list is shorter."""
        reached = self.lengths > place
        found = np.full(len(self), -1, dtype=np.int64)
        found[reached] = self.values[self.starts[reached] + place]
        return found

    def flat(self) -> tuple[Ids, Ids, Ids]:
        """All items, the row of each, and its place in the row."""
        rows = np.repeat(np.arange(len(self)), self.lengths)
        before = self.lengths.cumsum() - self.lengths
        places = np.arange(len(rows)) - np.repeat(before, self.lengths)
        return self.values[self.starts[rows] + places], rows, places

    def padded(self, rows: npt.NDArray, width: int, fill: int, backward: bool = False) -> Ids:
        """Some rows as a matrix, (rows, width), from their start, or from their end backward."""
        steps = np.arange(width)
        lengths, starts = self.lengths[rows, None], self.starts[rows, None]
        places = starts + (lengths - 1 - steps if backward else steps)
        inside = steps < lengths
        if not len(self.values):
            return np.full(inside.shape, fill)
        return np.where(inside, self.values[np.where(inside, places, 0)], fill)


def _common(left: _Lists, right: _Lists) -> tuple[Counts, Counts]:
    """With how many equal items both lists begin, and with how many others both end; each (rows,)."""
    shorter = np.minimum(left.lengths, right.lengths)
    begin, end = np.zeros(len(left), dtype=np.int32), np.zeros(len(left), dtype=np.int32)
    for rows in _blocks(shorter):
        width = int(shorter[rows].max())
        for found, backward in ((begin, False), (end, True)):
            same = left.padded(rows, width, -1, backward) == right.padded(rows, width, -2, backward)
            found[rows] = np.where(same.all(axis=1), width, same.argmin(axis=1))
    return begin, np.minimum(end, shorter - begin).astype(np.int32)


def _blocks(lengths: npt.NDArray) -> Iterator[npt.NDArray]:
    """Rows of similar lengths, few enough for a padded matrix; rows of length 0 are left out."""
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    while len(order):
        widest = int(lengths[order[-1]])
        count = max(1, _CELLS // widest)
        yield order[-count:]
        order = order[:-count]


def _columns(parts: Any) -> Counts:
    return np.stack([*parts], axis=1).astype(np.int32)


def _keys(*lists: _Lists) -> npt.NDArray[np.void]:
    """A key of 16 bytes for the items of each row, (rows,)."""
    keys = bytearray()
    values = [memoryview(part.values.astype(np.int32).tobytes()).cast("i") for part in lists]
    for row in range(len(lists[0])):
        digest = hashlib.blake2b(digest_size=16)
        for part, items in zip(lists, values, strict=True):
            digest.update(items[part.starts[row] : part.starts[row] + part.lengths[row]])
            digest.update(b"|")
        keys += digest.digest()
    return np.frombuffer(bytes(keys), dtype="V16")
