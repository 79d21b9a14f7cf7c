"""Lists as rows of pairs, which TRL tokenizes and collates, and tokenized rows as lists again.

A list of K completions is ceil(K / 2) rows; of an odd K, the last row has a completion a second time as its rejected
side, whose score is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from accelerate import PartialState
from datasets import Dataset, Features, List, Value, concatenate_datasets

from ... import _trl
from ...errors import InputError
from ...forward.list_rows import LIST_IDS
from ..rows import SIDES
from .selection import CompletionList

LIST_ROW = "list_row"
"""Column with the number of a row's list, the same in all its rows."""
LIST_SCORES = "list_scores"
"""Column with the scores of both sides of a pair row, or of all completions of a list."""
PROMPT_FILLS, EQUAL_CUT, EQUAL_TOKENS = 1, 2, 3
"""Why nothing of a tokenized list can be learned: its prompt fills max_length; truncation makes its completions the
same; or their tokens are the same to begin with."""
_LOST = "list_lost"
"""Column of one of these; 0 for lists that are kept."""
_VERSION = 2
"""Part of the fingerprint of lists: to be raised when they are made in another way."""


def places_in_pairs(completions: int) -> list[tuple[int, int]]:
    """Pair up the places of a list's completions; of an odd number, the last has the first as its partner.

    >>> places_in_pairs(5)
    [(0, 1), (2, 3), (4, 0)]
    """
    return [(place, (place + 1) % completions) for place in range(0, completions, 2)]


def is_of_lists(dataset: Any) -> bool:
    """Whether a dataset has rows of lists, as `pair_rows` or `gathered` made them."""
    return isinstance(dataset, Dataset) and LIST_ROW in dataset.column_names


def examples(dataset: Any) -> Any:
    """What has as many items as a dataset has lists, or the dataset itself if it holds pairs."""
    return set(dataset[LIST_ROW]) if is_of_lists(dataset) else dataset


def pair_rows(
    lists: Sequence[CompletionList], dataset: Dataset, numbers: Sequence[int], keep: Sequence[str]
) -> Dataset:
    """Return lists as rows of pairs.

    Args:
        lists: of a dataset.
        dataset: that they were read from.
        numbers: the number that messages give each of its rows.
        keep: columns that are kept of it.

    Raises:
        InputError: texts and messages are mixed.
    """
    columns: dict[str, list[Any]] = {name: [] for name in ("prompt", *SIDES, LIST_ROW, LIST_SCORES)}
    rows = []
    for one in lists:
        for first, second in places_in_pairs(len(one.completions)):
            filler = second < first
            scores = [one.scores[first], math.nan if filler else one.scores[second]]
            sides = (one.completions[first], one.completions[second])
            for column, value in zip(columns.values(), (one.prompt, *sides, numbers[one.row], scores), strict=True):
                column.append(value)
            rows.append(one.row)
    try:
        pairs = Dataset.from_dict(columns)
    except (pa.ArrowException, TypeError) as error:
        raise InputError(
            f"Prompts or completions are texts in some rows and messages in others ({error}). Convert them to one form."
        ) from None
    beside = [name for name in keep if name in dataset.column_names and name not in columns]
    if not beside:
        return pairs
    return concatenate_datasets([pairs, dataset.select_columns(beside).select(rows).flatten_indices()], axis=1)


@dataclass(frozen=True)
class GatheredLists:
    """Tokenized lists, one row for each.

    Attributes:
        kept: those that are trained on.
        whole: all of them.
        lost: (lists,) int64; why each is left out, such as `PROMPT_FILLS`, or 0.
    """

    kept: Dataset
    whole: Dataset
    lost: npt.NDArray[np.int64]


def gathered(pairs: Dataset, max_length: int | None, keeps_end: bool, name: str) -> GatheredLists:
    """Return tokenized rows of pairs as one row for each list.

    A row has the token ids of the prompt, of all completions (`list_ids`), and of a best and a worst one as TRL names
    them, with their texts. A list whose prompt fills `max_length` is not kept, as TRL does not keep such a pair, nor
    one whose completions are all the same after truncation.

    Args:
        pairs: tokenized without a limit.
        max_length: length to which sequences are cut in batches; None for none.
        keeps_end: whether their start is cut.
        name: of the dataset, for the progress bar.
    """
    numbers = np.asarray(pairs[LIST_ROW][:])
    starts = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1))
    heads = Dataset.from_dict({"start": starts, "stop": np.append(starts[1:], len(numbers))})
    ids = List(Value("int64"))
    features = Features(pairs.features)
    features |= {"prompt_ids": ids, "chosen_ids": ids, "rejected_ids": ids}
    features |= {LIST_IDS: List(ids), LIST_SCORES: List(Value("float64")), LIST_ROW: Value("int64")}
    features |= {_LOST: Value("int64")}
    settings = {"max_length": max_length, "keeps_end": keeps_end, "version": _VERSION}
    with PartialState().local_main_process_first():  # the others read its cache
        every = heads.map(
            _gather,
            batched=True,
            batch_size=200,
            fn_kwargs={"pairs": pairs.with_format(None), **settings},
            features=features,
            remove_columns=["start", "stop"],
            desc=f"Gathering lists of {name} dataset",
        )
    lost = np.asarray(every[_LOST][:], np.int64)
    whole = every.remove_columns(_LOST)
    return GatheredLists(whole.select(np.flatnonzero(lost == 0)) if lost.any() else whole, whole, lost)


def _gather(
    heads: Mapping[str, list[int]], pairs: Dataset, max_length: int | None, keeps_end: bool, version: int
) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {name: [] for name in (*pairs.column_names, LIST_IDS, _LOST)}
    first = heads["start"][0]
    block = pairs[first : heads["stop"][-1]]
    for start, stop in zip(heads["start"], heads["stop"], strict=True):
        rows = {name: values[start - first : stop - first] for name, values in block.items()}
        one = _one_list(rows)
        one[_LOST] = _lost(one, max_length, keeps_end)
        for name, values in found.items():
            values.append(one[name])
    return found


def _lost(row: Mapping[str, Any], max_length: int | None, keeps_end: bool) -> int:
    """Why nothing of a tokenized list can be learned; 0 if something can."""
    if max_length is not None and not keeps_end and len(row["prompt_ids"]) >= max_length:
        return PROMPT_FILLS
    if len({*map(tuple, row[LIST_IDS])}) < 2:
        return EQUAL_TOKENS
    return EQUAL_CUT if len({*_cut(row, max_length, keeps_end)}) < 2 else 0


def _one_list(rows: Mapping[str, list[Any]]) -> dict[str, Any]:
    """One row of the rows of a list."""
    shortest = min(map(len, rows["prompt_ids"]))  # where tokens of prompt and completion merge in one of them
    completions, scores, texts = [], [], []
    for at, (prompt, given) in enumerate(zip(rows["prompt_ids"], rows[LIST_SCORES], strict=True)):
        for side, score in zip(SIDES, given, strict=True):
            if not math.isnan(score):
                completions.append(prompt[shortest:] + rows[_trl.COMPLETION_IDS[side]][at])
                scores.append(score)
                texts.append(rows[side][at])
    best, worst = int(np.argmax(scores)), int(np.argmin(scores))
    one: dict[str, Any] = {name: values[0] for name, values in rows.items()}
    one |= {"prompt_ids": rows["prompt_ids"][0][:shortest], LIST_IDS: completions, LIST_SCORES: scores}
    for side, place in zip(SIDES, (best, worst), strict=True):
        one |= {side: texts[place], _trl.COMPLETION_IDS[side]: completions[place]}
    return one


def _cut(row: Mapping[str, Any], max_length: int | None, keeps_end: bool) -> Iterator[tuple[int, ...]]:
    """Yield what truncation leaves of each completion of a list."""
    prompt = len(row["prompt_ids"])
    for ids in row[LIST_IDS]:
        if max_length is None:
            yield tuple(ids)
        else:
            yield tuple(ids[-max_length:] if keeps_end else ids[: max(max_length - prompt, 0)])
