"""Give the arguments of tool calls the form that the chat template prints: a mapping, or JSON text."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate import PartialState
from datasets import Dataset, Features, IterableDataset, Json

from .. import _trl
from ..errors import InputError
from .batches import on_main_process, read_batches
from .findings import EVERY_ROW, count_rows, numbered
from .rows import SIDES

logger = logging.getLogger(__name__)

_COLUMNS = ("prompt", *SIDES)
_VERSION = 1
_PROBE = {"probed_argument": "a b"}
_PRINTED = '"probed_argument": "a b"'


def argument_form(processing_class: Any) -> str | None:
    """Return in which form a chat template prints the arguments of a tool call as JSON: `mapping` or `text`.

    Returns:
        The form; None if both will do, or neither does.
    """
    if getattr(processing_class, "chat_template", None) is None:
        return None
    prints = {"mapping": _prints(processing_class, _PROBE), "text": _prints(processing_class, json.dumps(_PROBE))}
    able = [form for form, prints_it in prints.items() if prints_it]
    return able[0] if len(able) == 1 else None


def _prints(processing_class: Any, arguments: Any) -> bool:
    call = {"id": "call00001", "type": "function", "function": {"name": "probe", "arguments": arguments}}
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    try:
        return _PRINTED in str(processing_class.apply_chat_template(messages, tokenize=False))
    except Exception:  # whatever a template raises
        return False


@dataclass
class _Found:
    """What the tool calls of a dataset's rows are like."""

    to_convert: int = 0
    problems: dict[str, tuple[list[int], str]] = field(default_factory=dict)
    """By text: the rows, and what the first one has."""

    def lines(self, name: str, total: int, numbers: Sequence[int]) -> list[str]:
        found = [(text, numbered(places, numbers), shown) for text, (places, shown) in self.problems.items()]
        return [
            f"{name}: {text}; wrong in {len(rows)} of {count_rows(total, numbers)} rows, first in row {rows[0]} "
            f"({shown})."
            for text, rows, shown in found
        ]


def fit_tool_calls(dataset: Any, processing_class: Any, name: str, numbers: Sequence[int] = EVERY_ROW) -> Any:
    """Return a dataset whose tool calls the chat template prints as they are meant; the same object if it does already.

    Arguments that are JSON text become mappings where the template prints mappings, and the reverse. Of arguments in a
    column of one type for all rows, the keys that `datasets` has filled with None are dropped.

    Args:
        dataset: with prompt and sides in messages, not tokenized; anything else is returned.
        processing_class: with the chat template.
        name: what messages call the dataset.
        numbers: the number that messages give each row.

    Raises:
        InputError: with the count of rows whose arguments are no JSON object.
    """
    if isinstance(dataset, IterableDataset):
        form = argument_form(processing_class)
        return dataset if form is None else dataset.map(_convert_streamed, fn_kwargs={"form": form, "name": name})
    is_stored = isinstance(dataset, Dataset) and not _trl.is_transformed(dataset)
    columns = _columns(dataset) if is_stored else {}
    if not columns:
        return dataset
    form = argument_form(processing_class)
    found: _Found = on_main_process(lambda: _survey(dataset, columns, form))
    if found.problems:
        raise InputError(*found.lines(name, len(dataset), numbers))
    if not found.to_convert:
        return dataset
    logger.info("%s: arguments of tool calls -> %s (%d rows)", name, form or "mapping", found.to_convert)
    features = Features(dataset.features)
    as_json: Any = Json()  # of mappings with any keys
    features |= dict.fromkeys(columns, as_json)
    with PartialState().local_main_process_first():
        return dataset.map(
            _convert,
            fn_kwargs={"form": form, "columns": columns, "version": _VERSION},
            features=features,
            desc=f"Converting tool calls of {name}",
        )


def _columns(dataset: Dataset) -> dict[str, bool]:
    """The columns in which tools may be called, and whether their arguments are filled up with None to one type."""
    kinds = {column: str(dataset.features.get(column)) for column in _COLUMNS}
    return {
        column: "'arguments': {" in kind
        for column, kind in kinds.items()
        if "tool_calls" in kind or kind.startswith("Json")
    }


def _survey(dataset: Dataset, columns: Mapping[str, bool], form: str | None) -> _Found:
    found = _Found()
    for batch in read_batches(dataset, list(columns)):
        for index, row in enumerate(batch.rows(*columns), batch.start):
            try:
                found.to_convert += any(
                    _fitted(row[column], form, filled) is not row[column] for column, filled in columns.items()
                )
            except _ArgumentsError as error:
                found.problems.setdefault(str(error), ([], error.shown))[0].append(index)
    return found


class _ArgumentsError(ValueError):
    def __init__(self, shown: str) -> None:
        self.shown = shown
        super().__init__("the arguments of a tool call are text that is not a JSON object")


def _convert(row: Mapping[str, Any], form: str | None, columns: Mapping[str, bool], version: int) -> dict[str, Any]:
    return {column: _fitted(row[column], form, filled) for column, filled in columns.items()}


def _convert_streamed(row: Mapping[str, Any], form: str, name: str) -> dict[str, Any]:
    try:
        return {column: _fitted(row[column], form, False) for column in _COLUMNS if column in row}
    except _ArgumentsError as error:
        raise InputError(f"{name}: {error}, in a streamed row ({error.shown}).") from None


def _fitted(messages: Any, form: str | None, filled: bool) -> Any:
    """Messages with the arguments of their tool calls in one form; the same object if nothing changes."""
    if not isinstance(messages, list):
        return messages
    fitted = [_fitted_message(message, form, filled) for message in messages]
    return fitted if any(new is not old for new, old in zip(fitted, messages, strict=True)) else messages


def _fitted_message(message: Any, form: str | None, filled: bool) -> Any:
    calls = message.get("tool_calls") if isinstance(message, Mapping) else None
    if not isinstance(calls, list):
        return message
    fitted = [_fitted_call(call, form, filled) for call in calls]
    same = all(new is old for new, old in zip(fitted, calls, strict=True))
    return message if same else {**message, "tool_calls": fitted}


def _fitted_call(call: Any, form: str | None, filled: bool) -> Any:
    if not isinstance(call, Mapping):
        return call
    inner = call.get("function")
    if isinstance(inner, Mapping):
        fitted = _fitted_call(inner, form, filled)
        return call if fitted is inner else {**call, "function": fitted}
    arguments = call.get("arguments")
    if filled and isinstance(arguments, Mapping):
        arguments = _without_none(arguments)
    if form == "text" and isinstance(arguments, Mapping):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif form == "mapping" and isinstance(arguments, str):
        arguments = _decoded(arguments)
    return call if arguments is call.get("arguments") else {**call, "arguments": arguments}


def _without_none(value: Any) -> Any:
    """A mapping without the keys that are None, at any depth; the same object if there are none."""
    if not isinstance(value, Mapping):
        return value
    kept = {key: _without_none(item) for key, item in value.items() if item is not None}
    same = len(kept) == len(value) and all(kept[key] is value[key] for key in kept)
    return value if same else kept


def _decoded(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text) if text.strip() else {}
    except ValueError:
        raise _ArgumentsError(repr(text[:60])) from None
    if not isinstance(value, dict):
        raise _ArgumentsError(repr(text[:60]))
    return value
