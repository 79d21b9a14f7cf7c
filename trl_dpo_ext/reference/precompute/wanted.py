"""Which sequences a dataset holds, read from its columns of token ids without the collator where it has them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from ... import _trl
from ..store.keys import KeyIndex, packed_sequence_keys, unpack_keys
from .sequences import TokenSequence, batch_sequences

_ROWS_AT_ONCE = 1000
_ROWS_COLLATED_AT_ONCE = 256
SEQUENCES_AT_ONCE = 100_000

Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]
"""TRL's, or any function."""


@dataclass(frozen=True)
class Sequences:
    """Token sequences in one array, and their keys.

    Attributes:
        ids: (tokens,) int32.
        bounds: (sequences, 4) int64; where each prompt starts and ends in `ids`, and where its completion does.
        keys: (sequences, 2) uint64, packed.
    """

    ids: np.ndarray
    bounds: np.ndarray
    keys: np.ndarray

    @classmethod
    def of_ids(cls, ids: np.ndarray, bounds: np.ndarray) -> Sequences:
        """Compute the keys of sequences."""
        return cls(ids, bounds, packed_sequence_keys(ids, bounds))

    @classmethod
    def of(cls, sequences: Iterable[TokenSequence]) -> Sequences:
        """Copy sequences into one array, and compute their keys."""
        return cls.of_ids(*_copied(sequences))

    @classmethod
    def joined(cls, several: Sequence[Sequences]) -> Sequences:
        """Join sequences of several arrays in their order."""
        starts = np.cumsum([0, *(len(each.ids) for each in several)])
        bounds = [each.bounds + start for each, start in zip(several, starts, strict=False)]
        ids, keys = ([getattr(each, name) for each in several] for name in ("ids", "keys"))
        return cls(np.concatenate(ids), np.concatenate(bounds), np.concatenate(keys))

    @property
    def packed(self) -> np.ndarray:
        """The packed keys, (sequences, 2) uint64."""
        return self.keys

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        start, middle, scored, end = self.bounds.T
        return int((middle - start + end - scored).max(initial=0))

    def __len__(self) -> int:
        return len(self.bounds)

    def __iter__(self) -> Iterator[TokenSequence]:
        for start, middle, scored, end in self.bounds.tolist():
            yield TokenSequence(self.ids[start:middle], self.ids[scored:end], middle - start - 1)

    def unique(self) -> Sequences:
        """The sequences without repetitions."""
        return self._chosen(np.sort(KeyIndex.build(self.keys).positions))

    def copied(self, chosen: np.ndarray) -> Sequences:
        """Copy some sequences into an array that holds nothing else.

        Args:
            chosen: (sequences,) bool.
        """
        some = self._chosen(np.flatnonzero(chosen))
        return Sequences(*_copied(some), some.keys)

    def _chosen(self, positions: np.ndarray) -> Sequences:
        return Sequences(self.ids, self.bounds[positions], self.keys[positions])

    def by_key(self) -> dict[bytes, TokenSequence]:
        """The sequences by their keys."""
        return dict(zip(unpack_keys(self.keys), self, strict=True))


def _copied(sequences: Iterable[TokenSequence]) -> tuple[np.ndarray, np.ndarray]:
    pieces = [piece for sequence in sequences for piece in (sequence.prompt, sequence.completion)]
    ends = np.cumsum([0, *map(len, pieces)])
    bounds = np.stack([ends[:-1], ends[1:]], axis=1).reshape(-1, 4)
    return np.concatenate([np.empty(0, np.int32), *pieces]), bounds


@dataclass(frozen=True)
class RowKeys:
    """Which sequences the rows of a dataset are, for all rows in their order; the chosen side comes first.

    Attributes:
        keys: (rows, 2, 2) uint64, packed; anything where there is nothing to score.
        scored: (rows, 2) int32; scored tokens, 0 where nothing is left of a completion.
        cut: (rows, 2) bool; whether the collator's `max_length` has removed tokens.
    """

    keys: np.ndarray
    scored: np.ndarray
    cut: np.ndarray


def row_keys(dataset: Any, columns: list[str] | None, collator: Collator) -> RowKeys:
    """Read the keys of both sides of every row; the arguments are those of `portions`."""
    parts = [RowKeys(np.empty((0, 2, 2), np.uint64), np.empty((0, 2), np.int32), np.empty((0, 2), bool))]
    for found in _rows(dataset, columns, collator):
        keys = np.zeros((len(found.kept), 2), np.uint64)
        start, end = found.sequences.bounds.T[2:]
        scored = np.zeros(len(found.kept), np.int32)
        keys[found.kept], scored[found.kept] = found.sequences.keys, end - start
        sides = [array.reshape(2, -1, *array.shape[1:]).swapaxes(0, 1) for array in (keys, scored, found.cut)]
        parts.append(RowKeys(*sides))
    return RowKeys(*(np.concatenate([vars(part)[name] for part in parts]) for name in ("keys", "scored", "cut")))


def portions(dataset: Any, columns: list[str] | None, collator: Collator) -> Iterator[Sequences]:
    """Read a dataset from its first row to its last, in portions of about 100,000 sequences, each without repetitions.

    Args:
        dataset: tokenized, as `collator` takes it.
        columns: what the collator reads; None for all.
        collator: that training uses; it is called where the token ids do not stand in columns.
    """
    waiting: list[Sequences] = []
    for sequences in _batches(dataset, columns, collator):
        waiting.append(sequences)
        if sum(map(len, waiting)) >= SEQUENCES_AT_ONCE:
            yield Sequences.joined(waiting).unique()
            waiting = []
    if any(map(len, waiting)):
        yield Sequences.joined(waiting).unique()


def content(dataset: Any, collator: Any) -> bytes | None:
    """Hash what `portions` reads of a dataset, so that processes can tell whether they would read the same.

    Returns:
        None if that cannot be told without collating every row: for a stream, or a collator that is not TRL's.
    """
    if not _holds_ids(dataset, collator):
        return None
    hashed = hashlib.blake2b(repr((collator.max_length, _trl.keeps_end(collator))).encode(), digest_size=16)
    for table in _tables(dataset):
        for batch in table.combine_chunks().to_batches():
            hashed.update(str(batch.schema.types).encode())
            hashed.update(batch.serialize())
    return hashed.digest()


@dataclass(frozen=True)
class _Rows:
    """The sequences of some rows: those of all chosen sides, then those of all rejected ones.

    Attributes:
        sequences: that have something to score.
        kept: (2 x rows,) bool; whether a side is among them.
        cut: (2 x rows,) bool; whether `max_length` has removed tokens of it.
    """

    sequences: Sequences
    kept: np.ndarray
    cut: np.ndarray


def _batches(dataset: Any, columns: list[str] | None, collator: Any) -> Iterator[Sequences]:
    return (rows.sequences for rows in _rows(dataset, columns, collator))


def _rows(dataset: Any, columns: list[str] | None, collator: Any) -> Iterator[_Rows]:
    if not _holds_ids(dataset, collator):
        for examples in _examples(dataset, columns):
            sequences = list(batch_sequences(collator(examples)))
            kept = np.array([sequence is not None for sequence in sequences], bool)
            found = Sequences.of(sequence for sequence in sequences if sequence is not None)
            yield _Rows(found, kept, np.zeros_like(kept))
        return
    for table in _tables(dataset):
        lists = {name: _lists(table.column(name)) for name in _trl.TOKEN_IDS}
        yield _truncated(lists, collator.max_length, _trl.keeps_end(collator))


def _holds_ids(dataset: Any, collator: Any) -> bool:
    """Whether the sequences can be told from a dataset's columns of token ids."""
    if not isinstance(dataset, Dataset) or not _trl.reads_token_ids(collator):
        return False
    types = [dataset.data.schema.field(name).type for name in _trl.TOKEN_IDS if name in dataset.column_names]
    return len(types) == len(_trl.TOKEN_IDS) and all(
        (pa.types.is_list(each) or pa.types.is_large_list(each)) and pa.types.is_integer(each.value_type)
        for each in types
    )


def _tables(dataset: Dataset) -> Iterator[pa.Table]:
    stored = dataset.select_columns(list(_trl.TOKEN_IDS)).with_format("arrow")
    for start in range(0, len(dataset), _ROWS_AT_ONCE):
        yield stored[start : start + _ROWS_AT_ONCE]


def _lists(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The values of a column of lists, (tokens,) int32, and where each list starts and the last one ends."""
    lists = column.combine_chunks()
    values = lists.flatten()
    if lists.null_count or values.null_count:
        raise ValueError("A row of the dataset has no token ids. Filter empty rows.")
    return np.asarray(values.cast(pa.int32())), np.cumsum([0, *np.asarray(lists.value_lengths())])


def _truncated(lists: Mapping[str, tuple[np.ndarray, np.ndarray]], max_length: int | None, keep_end: bool) -> _Rows:
    """The sequences that TRL's collator makes of rows of a prompt and two completions; see `batch_sequences`."""
    prompt_ids, prompts = lists[_trl.TOKEN_IDS[0]]
    ids, bounds, tokens = [prompt_ids], [], []
    for name in _trl.COMPLETION_IDS.values():
        completion_ids, starts = lists[name]
        completion = starts[:-1] + sum(map(len, ids))
        ids.append(completion_ids)
        bounds.append(_cut(prompts[:-1], np.diff(prompts), completion, np.diff(starts), max_length, keep_end))
        tokens.append(np.diff(prompts) + np.diff(starts))
    every, total = np.concatenate(bounds), np.concatenate(tokens)
    kept = every[:, 3] > every[:, 2]
    cut = total > max_length if max_length else np.zeros_like(kept)
    return _Rows(Sequences.of_ids(np.concatenate(ids), every[kept]), kept, cut)


def _cut(
    prompt: np.ndarray, prompt_tokens: np.ndarray, completion: np.ndarray, completion_tokens: np.ndarray,
    max_length: int | None, keep_end: bool,
) -> np.ndarray:  # fmt: skip
    """Where prompt and completion of each sequence start and end, after truncation; nothing may be left to score."""
    end = prompt_tokens + completion_tokens  # in tokens of prompt and completion together
    first = np.zeros_like(end)
    if max_length and keep_end:
        first = np.maximum(end - max_length, 0)
    elif max_length is not None and not keep_end:
        end = np.minimum(end, max_length)
    scored = np.maximum(prompt_tokens, first + 1)  # the first token is never scored: there it counts as the prompt
    has_prompt = first < prompt_tokens
    bounds = [
        np.where(has_prompt, prompt + first, completion + first - prompt_tokens),
        np.where(has_prompt, prompt + prompt_tokens, completion + first - prompt_tokens + 1),
        completion + scored - prompt_tokens,
        completion + end - prompt_tokens,
    ]
    return np.stack(bounds, axis=1)


def _examples(dataset: Any, columns: list[str] | None) -> Iterator[list[dict[str, Any]]]:
    """A few hundred rows at a time, with what the collator reads of them."""
    if isinstance(dataset, Dataset):
        dataset = dataset.with_format(None)
        if columns is not None:
            dataset = dataset.select_columns([name for name in columns if name in dataset.column_names])
    for batch in dataset.iter(batch_size=_ROWS_COLLATED_AT_ONCE):
        yield [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
