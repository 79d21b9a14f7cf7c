"""Tell what tokenizing and truncating make of preference data: rows that are dropped, answers that are cut."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

from datasets import Dataset, IterableDataset

from .. import _trl
from ..errors import InputError
from . import columnar
from .batches import on_main_process, read_batches
from .lengths import length_column
from .messages import ANSWER_FIELDS, is_set
from .rows import SIDES
from .streams import StreamReport
from .tool_calls import fit_tool_calls
from .truncation import Cut, token_lengths


def tokenized(
    prepare: Callable[..., Any], dataset: Any, processing_class: Any, args: Any, name: str, streams: StreamReport
) -> Any:
    """Tokenize a dataset as TRL does, say what truncation does to it, and add the column of lengths.

    Args:
        prepare: TRL's `_prepare_dataset`.
        dataset, processing_class, args, name: its arguments.
        streams: counts streamed datasets while they are read.

    Raises:
        InputError: no row is left, because the prompts alone fill `max_length`.
    """
    if not set(_trl.TOKEN_IDS) <= set(_trl.column_names(dataset)):
        dataset = fit_tool_calls(dataset, processing_class, f"{name} dataset")
    if isinstance(dataset, IterableDataset):
        return streams.prepared(prepare, dataset, processing_class, args, name)
    prepared = prepare(dataset, processing_class, args, name)
    if isinstance(prepared, Dataset) and not set(_trl.TOKEN_IDS) <= set(dataset.column_names):
        if not len(prepared) and len(dataset):
            whole = prepare(dataset, processing_class, _without_limit(args), name)
            raise InputError(_all_dropped(whole, args.max_length, name))
        for warning in on_main_process(lambda: _warnings(dataset, prepared, processing_class, args, name)):
            warnings.warn(warning, stacklevel=4)
    return length_column(prepared, args)


def _without_limit(args: Any) -> Any:
    unlimited = copy.copy(args)
    unlimited.max_length = None
    return unlimited


def _all_dropped(whole: Dataset, limit: int, name: str) -> str:
    shortest = min(int(token_lengths(batch)[:, 0].min()) for batch in read_batches(whole, [_trl.TOKEN_IDS[0]]))
    return (
        f"{name} dataset: all {len(whole)} rows dropped: the prompt alone fills max_length={limit} in every row, and "
        f"the shortest prompt has {shortest} tokens. Raise max_length, or set truncation_mode='keep_end'."
    )


def _warnings(dataset: Dataset, prepared: Dataset, processing_class: Any, args: Any, name: str) -> list[str]:
    found = []
    dropped, total = len(dataset) - len(prepared), len(prepared)
    if dropped:
        found.append(
            f"{name} dataset: {dropped} of {len(dataset)} rows dropped: the prompt alone fills max_length="
            f"{args.max_length}. Raise max_length, or filter these rows to silence this."
        )
    if args.max_length is not None:
        cut = Cut(args.max_length, args.truncation_mode == "keep_end")
        for batch in read_batches(prepared, _trl.TOKEN_IDS):
            cut.add(batch)
        found += cut.lines(f"{total} rows", name)
    return found + _unprinted(dataset, processing_class, name)


def _unprinted(dataset: Dataset, processing_class: Any, name: str) -> list[str]:
    """Answers whose text is in a field that the chat template does not print."""
    template = getattr(processing_class, "chat_template", None)
    candidates = ["reasoning_content", "reasoning", "thinking"]
    if "tool_calls" in "".join(str(dataset.features.get(side)) for side in SIDES):
        candidates.append("tool_calls")
    fields = [field for field in candidates if field not in str(template or "")]
    if not fields or not template or not set(SIDES) <= set(dataset.column_names):
        return []
    only = 0
    for batch in read_batches(dataset, SIDES):
        try:
            masks = [columnar.only_in_fields(batch.column(side), fields) for side in SIDES]
            only += int((masks[0] | masks[1]).sum())
        except columnar.UnknownLayoutError:
            only += sum(any(_only_in(row[side], fields) for side in SIDES) for row in batch.rows(*SIDES))
    if not only:
        return []
    return [
        f"{name} dataset: in {only} of {len(dataset)} rows an answer is in {' or '.join(fields)} alone, which the chat "
        "template does not print, so that the answer is empty. Write it into 'content', or use another template."
    ]


def _only_in(side: Any, fields: list[str]) -> bool:
    last = side[-1] if isinstance(side, list) and side else None
    if not isinstance(last, dict):
        return False
    printed = [field for field in ANSWER_FIELDS if field not in fields]
    return is_set(last, fields) and not is_set(last, printed)
