"""Bring preference data to layouts that TRL takes: rows are converted where there is no doubt, and named otherwise."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from accelerate import PartialState
from datasets import Dataset, Features, IterableDataset, Json, List, Value

from ..errors import InputError
from .batches import DatasetBatch, on_main_process, read_batches
from .findings import EVERY_ROW, WARNING, Finding, count_rows, numbered
from .layout_columns import find_layout
from .plain_rows import READ, WITHOUT_PROMPT, row_codes
from .rows import (
    EMPTY_KWARGS,
    INNER_TURN,
    KWARGS_TEXT,
    LAST_TURN,
    NO_START,
    OPEN_PROMPT,
    SIDES,
    TEXT_REPEATED,
    Layout,
    Reading,
    read_row,
)

AnyDataset = Dataset | IterableDataset
logger = logging.getLogger(__name__)

_VERSION = 1
"""Part of a conversion's fingerprint: to be raised when rows are converted in another way."""
_STREAMED_ROWS = 1000
"""How many rows of a stream are looked at to find one that can be trained on."""
_BESIDE = ("system", "chat_template_kwargs")
_CONFUSING = ("messages", "completion")
"""Columns that TRL may look at, in place of prompt and sides, to tell messages from text."""
_NAMES = {
    LAST_TURN: "last_turn",
    INNER_TURN: "last_turn",
    OPEN_PROMPT: "prompt_ends_open",
    NO_START: "prompt_guessed",
    TEXT_REPEATED: "prompt_repeated",
}
"""Doubt about a row -> name of the finding; `layout` for the others."""


@dataclass
class Survey:
    """What the rows of a dataset are like."""

    numbers: Sequence[int] = EVERY_ROW
    """The number of each row in the dataset that was loaded."""
    total: int = 0
    texts: int = 0
    messages: int = 0
    without_prompt: int = 0
    changed: int = 0
    problems: dict[str, tuple[list[int], str]] = field(default_factory=dict)
    """By text: the rows, and what the first one has."""
    doubts: dict[str, list[int]] = field(default_factory=dict)
    """By text: the rows."""
    notes: dict[str, int] = field(default_factory=dict)
    unusable: dict[str, list[int]] = field(default_factory=dict)
    """By reason: the rows that cannot be trained on, where others can."""

    def add_batch(self, batch: DatasetBatch, layout: Layout) -> None:
        """Count rows: by column where that tells enough, one by one where it does not."""
        codes, is_messages = row_codes(batch, layout)
        to_read = np.flatnonzero(codes == READ)
        plain = len(codes) - len(to_read)
        self.total += plain
        self.messages += plain * is_messages
        self.texts += plain * (not is_messages)
        dropped = int((codes == WITHOUT_PROMPT).sum())
        if dropped:
            self.without_prompt += dropped
            self._note("prompt: repeated by whole conversations -> dropped", dropped)
        if len(to_read):
            for index, row in zip(to_read.tolist(), batch.rows_at(to_read.tolist(), layout.columns), strict=True):
                self.add(read_row(row, layout), batch.start + index)

    def add(self, reading: Reading, index: int) -> None:
        """Count one row."""
        self.total += 1
        if reading.unusable:
            self.texts += not reading.is_messages
            self.unusable.setdefault(reading.unusable, []).append(index)
            return
        self.messages += reading.is_messages
        self.texts += not reading.is_messages
        self.without_prompt += reading.without_prompt
        self.changed += bool(reading.values)
        for text, detail in reading.problems.items():
            self.problems.setdefault(text, ([], detail))[0].append(index)
        for text in reading.doubts:
            self.doubts.setdefault(text, []).append(index)
        for text in reading.notes:
            self._note(text, 1)

    def _note(self, text: str, count: int) -> None:
        self.notes[text] = self.notes.get(text, 0) + count

    def problem_lines(self, name: str) -> list[str]:
        """Return one line for each kind of problem, by the first row that has it."""
        lines = []
        for text, (places, detail) in sorted(self.problems.items(), key=lambda item: item[1][0][0]):
            rows = numbered(places, self.numbers)
            what, stop, remedy = text.partition(". ")
            shown = f" ({detail})" if detail else ""
            fix = f" {remedy}." if stop else ""
            which = f"{len(rows)} of {self.counted} rows, first in row {rows[0]}"
            lines.append(f"{name}: {what}; wrong in {which}{shown}.{fix}")
        return lines

    def all_unusable(self, name: str) -> list[str]:
        """Return one line if no row can be trained on."""
        if not self.total or len(self.dropped) < self.total:
            return []
        return [
            f"{name}: {text}, in all {len(rows)} rows. Add a column 'prompt'." for text, rows in self.unusable.items()
        ]

    @property
    def counted(self) -> int:
        """The number of rows that messages count."""
        return count_rows(self.total, self.numbers)

    @property
    def dropped(self) -> list[int]:
        """The rows that cannot be trained on, in order."""
        return sorted(row for rows in self.unusable.values() for row in rows)

    def findings(self) -> list[Finding]:
        """Return one finding for each kind of row that is dropped, and for each kind of doubt."""
        total = self.counted
        unusable = [(text, numbered(places, self.numbers)) for text, places in self.unusable.items()]
        doubts = sorted(self.doubts.items(), key=lambda item: (item[1][0], len(item[1])))
        return [
            Finding(
                "torn",
                WARNING,
                len(rows),
                total,
                f"{len(rows)} of {total} rows are dropped, first row {rows[0]}: {text}",
                "Add a column 'prompt' to keep them.",
                rows,
            )
            for text, rows in unusable
        ] + [
            Finding(
                _NAMES.get(text, "layout"),
                WARNING,
                len(rows),
                total,
                f"{text}, in {len(rows)} of {total} rows, first in row {rows[0]}",
                "Change or filter these rows.",
                rows,
            )
            for text, rows in ((text, numbered(places, self.numbers)) for text, places in doubts)
        ]


@dataclass(frozen=True)
class Plan:
    """How a dataset gets a layout that TRL takes; made on the main process for all."""

    layout: Layout
    problems: list[str]
    findings: list[Finding]
    notes: dict[str, int] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    """Columns that are removed."""
    convert: bool = False
    """Whether rows are rewritten."""
    without: tuple[int, ...] = ()
    """Rows that are removed."""

    @property
    def warnings(self) -> list[str]:
        """The findings, as they are told of a dataset without a name."""
        return [finding.sentence for finding in self.findings]


def plan_layout(
    dataset: AnyDataset,
    name: str,
    numbers: Sequence[int] = EVERY_ROW,
    *,
    conversational: bool = False,
    explicit: bool = False,
) -> Plan:
    """Look at every row of a dataset, or at the first one of a stream, and decide what is done with it.

    Every process has to call this; the main process reads the rows.

    Args:
        dataset: with the columns `chosen` and `rejected`, or those of another layout that is known.
        name: what messages call it.
        numbers: the number that messages give each row.
        conversational: whether texts become messages; without it, only where other rows are messages.
        explicit: whether every row gets a prompt, also where both sides repeat it.
    """
    return on_main_process(lambda: _plan(dataset, name, numbers, conversational, explicit))


def _plan(dataset: AnyDataset, name: str, numbers: Sequence[int], conversational: bool, explicit: bool) -> Plan:
    first = next(iter(dataset), None)
    if first is None:
        return Plan(Layout(()), [], [])  # reported by check_preferences
    layout, problems, suspects = find_layout(dataset, first)
    if problems:
        return Plan(layout, [f"{name} {problem}" for problem in problems], [])
    layout, survey = replace(layout, explicit=explicit), Survey(numbers)
    if isinstance(dataset, Dataset):
        for batch in read_batches(dataset, layout.columns):
            survey.add_batch(batch, layout)
        if survey.texts and (survey.messages or conversational):  # once more, with what texts are turned into
            layout, survey = replace(layout, conversational=True), Survey(numbers)
            for batch in read_batches(dataset, layout.columns):
                survey.add_batch(batch, layout)
    else:
        layout = replace(layout, conversational=conversational)
        readings = (read_row(row, layout) for row in itertools.islice(dataset, _STREAMED_ROWS))
        survey.add(next((reading for reading in readings if not reading.unusable), read_row(first, layout)), 0)
    problems = survey.all_unusable(name) or survey.problem_lines(name)
    found = survey.findings()
    for suspect in suspects:
        if suspect.stops(bool(survey.texts), NO_START in survey.doubts, bool(problems)):
            problems.insert(0, f"{name}: {suspect.text}")
        elif suspect.warns(bool(survey.texts)):
            found.insert(0, suspect.finding(survey.total))
    if problems:
        return Plan(layout, problems, found)
    drop = _confusing(first, bool(survey.messages))
    if isinstance(dataset, IterableDataset):
        layout = replace(layout, explicit=bool(survey.messages), conversational=bool(survey.messages))
        return Plan(layout, [], found, survey.notes, drop, convert=True)
    dropped = tuple(survey.dropped)
    if survey.without_prompt == survey.total and "prompt" in layout.columns:
        return Plan(layout, [], found, survey.notes, (*drop, "prompt"))
    convert = bool(survey.changed or (survey.without_prompt and "prompt" in layout.columns))
    layout = replace(layout, explicit=True, conversational=bool(survey.messages))
    return Plan(layout, [], found, survey.notes, drop, convert, dropped)


def _confusing(first: Mapping[str, Any], is_messages: bool) -> tuple[str, ...]:
    """The columns by which TRL may take messages for text, or text for messages, depending on Python's hash seed."""
    return tuple(name for name in _CONFUSING if name in first and _looks_like_messages(first[name]) != is_messages)


def _looks_like_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "role" in value[0]


def apply_layout(dataset: AnyDataset, plan: Plan, name: str = "the dataset") -> AnyDataset:
    """Bring a dataset to the layout that was planned; unchanged data is returned as it is.

    Args:
        dataset: that the plan was made for.
        plan: without problems.
        name: what messages call it.
    """
    layout = plan.layout
    for note, count in plan.notes.items() if isinstance(dataset, Dataset) else ():
        logger.info("%s: %s (%d rows)", name, note, count)
    used = sorted(name for name in (layout.context, layout.rejected) if name and plan.convert)
    drop = [column for column in plan.drop if column not in used]
    if isinstance(dataset, IterableDataset):
        if "prompt" not in layout.columns:
            dataset = dataset.filter(_is_usable, fn_kwargs={"layout": layout, "name": name})
        dataset = dataset.map(_convert_streamed, fn_kwargs={"layout": layout, "name": name})
        return dataset.remove_columns([*drop, *used]) if drop or used else dataset
    if drop:
        dataset = dataset.remove_columns(drop)
    if plan.without:
        removed = set(plan.without)
        dataset = dataset.select([row for row in range(len(dataset)) if row not in removed])
    if not plan.convert:
        return dataset
    with PartialState().local_main_process_first():  # the others read its cache
        return dataset.map(
            _convert,
            fn_kwargs={"layout": layout, "version": _VERSION},
            features=_features(dataset, plan),
            remove_columns=used,
            desc=f"Converting rows of {name}",
        )


def one_layout(dataset: AnyDataset) -> AnyDataset:
    """Return a dataset in a layout that TRL takes; it is the same object if it was in one.

    Raises:
        InputError: listing the rows that cannot be converted.
    """
    plan = plan_layout(dataset, "the dataset")
    if plan.problems:
        raise InputError(*plan.problems)
    return apply_layout(dataset, plan)


def _convert(row: Mapping[str, Any], layout: Layout, version: int) -> dict[str, Any]:
    return read_row(row, layout).values


def _is_usable(row: Mapping[str, Any], layout: Layout, name: str) -> bool:
    unusable = read_row(row, layout).unusable
    if unusable:
        text = f"{name}: streamed rows are dropped: {unusable}. Add a column 'prompt' to keep them."
        warnings.warn(text, stacklevel=2)
    return not unusable


def _convert_streamed(row: Mapping[str, Any], layout: Layout, name: str) -> dict[str, Any]:
    reading = read_row(row, layout)
    if reading.is_messages and not layout.conversational:
        reading.problems["there are messages, and the first row of the stream holds texts"] = ""
    if reading.problems:
        shown = {column: row[column] for column in layout.columns if column in row}
        text = str(shown)
        raise InputError(
            *(
                f"{name}: {problem.partition('. ')[0]}, in the streamed row {text[:200]}{'...' if text[200:] else ''}"
                for problem in reading.problems
            )
        )
    for doubt in sorted(reading.doubts):
        warnings.warn(f"{name}: {doubt}, in at least one streamed row.", stacklevel=2)
    return reading.values


def _features(dataset: Dataset, plan: Plan) -> Features:
    """The types of the converted columns: messages of role and content alone, or JSON, which adds no empty fields."""
    layout, features = plan.layout, Features(dataset.features)
    sources = [features[name] for name in layout.columns if name not in _BESIDE]
    kind: Any = Value("string")
    if layout.conversational:
        plain = not layout.keep_parts and all(map(_has_no_other_fields, sources))
        kind = List({"role": Value("string"), "content": Value("string")}) if plain else Json()
    for column in ("prompt", *SIDES):
        features[column] = kind
    if {EMPTY_KWARGS, KWARGS_TEXT} & set(plan.notes):
        features |= {"chat_template_kwargs": Json()}
    for name in (layout.context, layout.rejected):
        features.pop(name, None)
    return features


def _has_no_other_fields(kind: Any) -> bool:
    if isinstance(kind, Value):
        return kind.dtype in ("string", "large_string")
    if isinstance(kind, List):
        kind = kind.feature
    return isinstance(kind, dict) and set(kind) <= {"role", "content", "from", "value"}
