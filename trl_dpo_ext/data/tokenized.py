"""Tell what tokenizing and truncating make of preference data: rows that are dropped, answers that are cut."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from .. import _trl
from ..errors import InputError
from . import columnar
from .batches import on_main_process, read_batches
from .findings import EVERY_ROW, WARNING, Finding, count_rows, gravest_first, numbered, told
from .lengths import length_column
from .messages import ANSWER_FIELDS, is_set
from .rows import SIDES
from .streams import StreamReport
from .tool_calls import fit_tool_calls
from .truncation import all_dropped, without_limit


def tokenized(
    prepare: Callable[..., Any],
    dataset: Any,
    processing_class: Any,
    args: Any,
    name: str,
    streams: StreamReport,
    find: Callable[[Dataset, Dataset], list[Finding]],
    numbers: Sequence[int] = EVERY_ROW,
    lost: Callable[[], Finding | None] | None = None,
) -> Any:
    """Tokenize a dataset as TRL does, warn of what is found in it, and add the column of lengths.

    Args:
        prepare: TRL's `_prepare_dataset`.
        dataset, processing_class, args, name: its arguments.
        streams: counts streamed datasets while they are read.
        find: what is wrong with the rows, given the dataset before and after.
        numbers: the number that messages give each row of `dataset`.
        lost: gives the finding of rows that `prepare` has left out; by default, their prompts fill `max_length`.

    Raises:
        InputError: no row is left.
    """
    if not _trl.is_tokenized(dataset):
        dataset = fit_tool_calls(dataset, processing_class, f"{name} dataset", numbers)
    if isinstance(dataset, IterableDataset):
        return streams.prepared(prepare, dataset, processing_class, args, name)
    prepared = prepared_by(prepare, dataset, processing_class, args, name, numbers)
    if isinstance(prepared, Dataset) and not _trl.is_tokenized(dataset):
        if not len(prepared) and len(dataset):
            finding = lost() if lost is not None else None
            if finding is None:
                whole = prepare(dataset, processing_class, without_limit(args), name)
                finding = all_dropped(whole, args.max_length)
            raise InputError(f"{name} dataset: {finding.sentence}. {finding.remedy}")

        def lines() -> list[str]:
            found = [*find(dataset, prepared), *unprinted(dataset, processing_class, numbers)]
            found += filter(None, [lost() if lost is not None else None])
            return told(gravest_first(found), f"{name} dataset", args)

        for line in on_main_process(lines):
            warnings.warn(line, stacklevel=6)
    return length_column(prepared, args)


def tokenized_as_trl(
    dataset: Dataset, processing_class: Any, args: Any, name: str, numbers: Sequence[int] = EVERY_ROW
) -> Dataset:
    """Tokenize a dataset as TRL does, without a trainer.

    Args:
        dataset: in a layout that TRL takes.
        processing_class: the tokenizer or processor.
        args: the run's configuration.
        name: what TRL calls the dataset.
        numbers: the number that messages give each row.

    Raises:
        InputError: the chat template refuses rows.
    """
    return prepared_by(_trl.preparation(processing_class), dataset, processing_class, args, name, numbers)


def prepared_by(
    prepare: Callable[..., Any], dataset: Any, processing_class: Any, args: Any, name: str, numbers: Sequence[int]
) -> Any:
    """Return a dataset as TRL's preparation, or one made of it, tokenizes it.

    Args:
        prepare: TRL's `_prepare_dataset`.
        dataset, processing_class, args, name: its arguments.
        numbers: the number that messages give each row.

    Raises:
        InputError: the chat template refuses rows.
    """
    try:
        return prepare(dataset, processing_class, args, name)
    except Exception as error:
        if not _trl.is_template_error(error):
            raise
        refused = numbered(_trl.refused_rows(dataset, processing_class), numbers)
        total = count_rows(len(dataset), numbers)
        which = f"{len(refused)} of {total} rows, first row {refused[0]}" if refused else "a row"
        why = str(error).strip()
        why += "" if why.endswith((".", "!", "?")) else "."
        raise InputError(
            f"{name} dataset: the chat template refuses {which}: {why} Change or filter these rows, or set another "
            "chat_template."
        ) from error


def unprinted(dataset: Dataset, processing_class: Any, numbers: Sequence[int] = EVERY_ROW) -> list[Finding]:
    """Return a finding for answers whose text is in a field that the chat template does not print.

    Args:
        dataset: in a layout that TRL takes.
        processing_class: whose template is looked at.
        numbers: the number of each row in the dataset that was loaded.
    """
    template = getattr(processing_class, "chat_template", None)
    candidates = ["reasoning_content", "reasoning", "thinking"]
    if "tool_calls" in "".join(str(dataset.features.get(side)) for side in SIDES):
        candidates.append("tool_calls")
    fields = [field for field in candidates if field not in str(template or "")]
    if not fields or not template or not set(SIDES) <= set(dataset.column_names):
        return []
    only: list[int] = []
    for batch in read_batches(dataset, SIDES):
        try:
            masks = [columnar.only_in_fields(batch.column(side), fields) for side in SIDES]
            only += (batch.start + np.flatnonzero(masks[0] | masks[1])).tolist()
        except columnar.UnknownLayoutError:
            rows = enumerate(batch.rows(*SIDES), batch.start)
            only += [index for index, row in rows if any(_only_in(row[side], fields) for side in SIDES)]
    if not only:
        return []
    said: Any = next(iter(dataset.select(only[:1]).with_format(None)))
    fields = [field for field in fields if any(_only_in(said[side], [field]) for side in SIDES)] or fields
    rows, total = numbered(only, numbers), count_rows(len(dataset), numbers)
    sentence = (
        f"in {len(rows)} of {total} rows an answer is in {' or '.join(fields)} alone, which the chat template "
        "does not print, so that the answer is empty"
    )
    remedy = "Write it into 'content', or use another template."
    return [Finding("template_drops", WARNING, len(rows), total, sentence, remedy, rows)]


def _only_in(side: Any, fields: list[str]) -> bool:
    last = side[-1] if isinstance(side, list) and side else None
    if not isinstance(last, dict):
        return False
    printed = [field for field in ANSWER_FIELDS if field not in fields]
    return is_set(last, fields) and not is_set(last, printed)
