"""Measure tokenized lists: every better completion of a list against every worse one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from .. import _trl
from ..data.batches import read_batches
from ..data.columnar import list_lengths
from ..data.lists.pair_rows import LIST_ROW, LIST_SCORES, PROMPT_FILLS, GatheredLists
from ..forward.list_rows import LIST_IDS
from .examples import Examples
from .pair_measures import PairMeasurer, Rows, Sequences, Truncation
from .pair_table import Measured, PairTable, left_out_of_prompts
from .row_texts import ListTexts, RowTexts, read_texts
from .token_kinds import TokenKinds
from .token_lists import TokenLists


def list_table(
    found: GatheredLists, pairs: Dataset, kinds: TokenKinds, processing_class: Any, args: Any, prompts: int
) -> PairTable:
    """Measure tokenized lists.

    Args:
        found: the lists, some of which are kept.
        pairs: the rows of pairs that they were tokenized from.
        kinds: the tokens' meaning.
        processing_class: the run's.
        args: the run's configuration.
        prompts: how many prompts are tokenized alone, at most.
    """
    measurer = PairMeasurer(kinds, Truncation.of(args))
    measured = measure_lists(found.kept, measurer)
    examples = measured.examples
    numbers, every = (np.asarray(each[LIST_ROW][:], np.int64) for each in (found.kept, found.whole))
    list_texts = _texts_of(pairs, numbers)
    places, left_out, texts = left_out_of_prompts(
        found.kept, processing_class, measured.rows.prompt[examples.starts], prompts
    )
    lost = found.whole.select(np.flatnonzero(found.lost))
    filled = found.whole.select(np.flatnonzero(found.lost == PROMPT_FILLS)).select_columns([_trl.TOKEN_IDS[0]])
    lengths = [list_lengths(batch.column(_trl.TOKEN_IDS[0])) for batch in read_batches(filled, filled.column_names)]
    return PairTable(
        found.kept,
        kinds,
        measurer.truncation,
        len(every),
        numbers[examples.of],
        every[found.lost > 0],
        measured,
        _of_pairs(read_texts(list_texts.dataset, kinds, ends=False), list_texts, examples),
        left_out,
        examples.starts[places],
        texts,
        measurer.tails,
        list_texts,
        dropped_prompts=np.concatenate([np.zeros(0, np.int64), *lengths]),
        dropped_measured=measure_lists(lost, PairMeasurer(kinds, Truncation(None, False))) if len(lost) else None,
    )


def measure_lists(lists: Dataset, measurer: PairMeasurer) -> Measured:
    """Measure tokenized lists as their ordered pairs.

    Args:
        lists: one row for each, with the token ids and scores of all completions.
        measurer: of sequences and pairs.
    """
    rows, chain, scores, gaps = list[Rows](), list[Rows](), list[npt.NDArray[np.float32]](), list[npt.NDArray]()
    for batch in read_batches(lists, [_trl.TOKEN_IDS[0], LIST_IDS, LIST_SCORES]):
        sizes = list_lengths(batch.column(LIST_IDS))
        starts = sizes.cumsum() - sizes
        prompt, ids = (TokenLists.of(batch.column(name)) for name in (_trl.TOKEN_IDS[0], LIST_IDS))
        every = measurer.sequences(prompt[np.repeat(np.arange(len(sizes)), sizes)], ids)
        given = batch.column(LIST_SCORES).flatten().to_numpy(zero_copy_only=False)
        own = np.split(given.astype(np.float32), starts[1:])  # as batches hold them
        examples = Examples.of_scores(own)
        left, right = (starts[examples.of][:, None] + examples.places).T
        rows.append(measurer.pairs(every.at(left), every.at(right)))
        gaps.append(given[left] - given[right])
        first, second = _neighbors(every, starts, sizes)
        chain.append(measurer.pairs(every.at(first), every.at(second)))
        scores += own
    return Measured(Rows.joined(rows), Examples.of_scores(scores), Rows.joined(chain), np.concatenate(gaps))


def _neighbors(every: Sequences, starts: npt.NDArray, sizes: npt.NDArray) -> tuple[npt.NDArray, npt.NDArray]:
    """Each list's sequences beside the next ones by their tokens, so that neighbors share the most."""
    first, second = list[int](), list[int]()
    parts = [(each, each.values.astype(">i4")) for each in (every.prompt_kept, every.kept)]

    def tokens(at: int) -> bytes:
        return b"".join(
            values[each.starts[at] : each.starts[at] + each.lengths[at]].tobytes() for each, values in parts
        )

    for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
        order = sorted(range(start, start + size), key=tokens)
        first += order[:-1]
        second += order[1:]
    return np.array(first, np.int64), np.array(second, np.int64)


def _texts_of(pairs: Dataset, numbers: npt.NDArray[np.int64]) -> ListTexts:
    """The rows of pairs of some lists."""
    every = np.asarray(pairs[LIST_ROW][:], np.int64)
    kept = np.flatnonzero(np.isin(every, numbers))
    if len(kept) < len(every):
        pairs, every = pairs.select(kept), every[kept]
    return ListTexts(pairs, np.flatnonzero(np.diff(every, prepend=every[:1] - 1)))


def _of_pairs(read: RowTexts, texts: ListTexts, examples: Examples) -> RowTexts:
    """What the ordered pairs of lists say, given what the rows of pairs say that hold each completion."""
    of, places = examples.of, examples.places
    heads = texts.starts[of]

    def sides(values: npt.NDArray) -> npt.NDArray:
        return np.concatenate([values[heads, :1], texts.spread(values[:, 1:], of, places)], axis=1)

    def anywhere(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        return np.logical_or.reduceat(mask, texts.starts)[of]

    return RowTexts(
        read.are_texts,
        sides(read.keys),
        texts.spread(read.scripts, of, places),
        {name: anywhere(mask) for name, mask in read.characters.items()},
        anywhere(read.special),
        anywhere(read.special_prompt),
        read.role_names,
        sides(read.role_codes) if len(read.role_codes) else read.role_codes,
    )


def keys_of_lists(table: PairTable, keys: Sequence[npt.NDArray]) -> npt.NDArray:
    """Keys of the rows of a table of lists, (rows, 3), given those of the rows of pairs that hold their texts."""
    assert table.list_texts is not None
    every, examples = np.stack(keys, axis=1), table.examples
    heads = table.list_texts.starts[examples.of]
    sides = table.list_texts.spread(every[:, 1:], examples.of, examples.places)
    return np.concatenate([every[heads, :1], sides], axis=1)
