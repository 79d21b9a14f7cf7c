"""The file that `score` writes: the rows of a dataset, with what `score` found about each."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Audio, Dataset, Features, Image, Video

from ..errors import InputError
from ..statistics import finite
from .column_values import arrow_column
from .measures import Measures
from .pair_scores import PairScores
from .partners import alone, exchange_sides, exchanged_types
from .selection import Selected, Selection, relabeled_before, select
from .written_columns import RELABELED, TYPES, written_columns

ENDINGS = (".parquet", ".jsonl")
METADATA_KEY = b"trl_dpo_ext.score"
"""Of a Parquet file's metadata; the value is a JSON object."""
_BATCH = 1000
"""Rows that are converted at a time, at most."""
_BATCH_BYTES = 2**28
_LINE_ENDS = re.compile("[\u0085\u2028\u2029]")  # some readers end a line there


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        file: its name.
        rows: number of rows in it.
        columns: names of the columns that were added to those of the dataset.
        replaced: those that the dataset had already, from an earlier run.
        counts: of `Selected`.
        notes: sentences about columns that may not be what they were.
    """

    file: str
    rows: int
    columns: list[str]
    replaced: list[str]
    counts: dict[str, int]
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        """Return the block `output` of the JSON object."""
        return {name: getattr(self, name) for name in ("file", "rows", "columns", "replaced", "counts", "notes")}


def output_problems(file: Path, dataset: Dataset, selection: Selection, overwrite: bool = False) -> list[str]:
    """Return why an output could not be written, before a model is loaded.

    Args:
        file: that will be written.
        dataset: the loaded split.
        selection: the expressions.
        overwrite: whether an existing file may be replaced.
    """
    problems = selection.problems(dataset)
    if file.suffix not in ENDINGS:
        problems.append(f"--output {file}: a file of scored rows must end in {' or '.join(ENDINGS)}.")
    if file.is_dir():
        problems.append(f"--output {file}: this is a folder; name a file.")
    elif file.exists() and not overwrite:
        problems.append(f"--output {file}: the file exists. Choose another name, or set --overwrite to replace it.")
    if file.suffix == ".jsonl":
        held = _without_text(dataset)
        if held:
            problems.append(f"--output {file}: JSON cannot hold the columns {', '.join(held)}. Choose a .parquet file.")
    if selection.relabel:
        try:
            exchanged_types(dataset.features.arrow_schema, selection.dataset_columns)
            if RELABELED in dataset.column_names:
                relabeled_before([RELABELED], lambda name: arrow_column(dataset, name))
        except InputError as error:
            problems += error.problems
    return problems


def write_scored(
    file: Path,
    scores: PairScores,
    measures: Measures,
    selection: Selection,
    recorded: Mapping[str, Any],
    overwrite: bool = False,
) -> Written:
    """Write the rows of a split, in their order, with the columns of `TYPES`; aside first, then renamed.

    Args:
        file: ends in `.parquet` or `.jsonl`.
        scores: of all rows.
        measures: made of them.
        selection: which rows are exchanged and kept, and their weights.
        recorded: identity of policy and reference, beta, max_length, template, versions; the metadata of a Parquet
            file.
        overwrite: whether an existing file may be replaced.

    Raises:
        InputError: see `output_problems`, `select`; or the file cannot be written.
    """
    dataset: Dataset = scores.columns.with_format(None)
    problems = output_problems(file, dataset, selection, overwrite)
    if problems:
        raise InputError(*problems)
    ours = written_columns(scores, measures)
    names = [*dict.fromkeys([*dataset.column_names, *ours])]
    selected = select(
        selection, names, lambda name: ours[name] if name in ours else arrow_column(dataset, name), scores.rows
    )
    added: dict[str, Any] = {**ours}
    if selection.relabel:
        before = relabeled_before(dataset.column_names, lambda name: arrow_column(dataset, name))
        added[RELABELED] = pa.array(selected.relabeled ^ before)
    if selected.weights is not None:
        added[selection.weight_column] = pa.array(selected.weights)
    _write(file, _Rows(dataset, added, selected, selection), recorded)
    replaced = [name for name in added if name in dataset.column_names]
    lone = [name for name in alone(dataset.column_names) if name not in selection.signed] if selection.relabel else []
    notes = [f"{name!r} has no partner for the other side; relabeled rows keep its value." for name in lone]
    counts = selected.counts()
    if not counts["kept"]:
        notes.insert(0, f"{file} has 0 rows: no row is kept.")
    return Written(str(file), counts["kept"], [name for name in added if name not in replaced], replaced, counts, notes)


def write_columns(
    file: Path, dataset: Dataset, added: Mapping[str, pa.Array], recorded: Mapping[str, Any], overwrite: bool = False
) -> Written:
    """Write all rows of a split, in their order, with more columns; aside first, then renamed.

    Args:
        file: ends in `.parquet` or `.jsonl`.
        dataset: the split.
        added: columns, one value per row.
        recorded: the metadata of a Parquet file.
        overwrite: whether an existing file may be replaced.

    Raises:
        InputError: see `output_problems`; or the file cannot be written.
    """
    dataset, selection = dataset.with_format(None), Selection()
    problems = output_problems(file, dataset, selection, overwrite)
    if problems:
        raise InputError(*problems)
    rows = len(dataset)
    selected = Selected(np.zeros(rows, bool), np.ones(rows, bool), None)
    _write(file, _Rows(dataset, added, selected, selection), recorded)
    replaced = [name for name in added if name in dataset.column_names]
    return Written(str(file), rows, [name for name in added if name not in replaced], replaced, selected.counts(), [])


def _write(file: Path, rows: _Rows, recorded: Mapping[str, Any]) -> None:
    with _aside(file) as aside:
        (_write_parquet if file.suffix == ".parquet" else _write_lines)(aside, rows, recorded)


def _without_text(dataset: Dataset) -> list[str]:
    """Columns with something inside that JSON has no form for."""

    def binary(kind: pa.DataType) -> bool:
        if pa.types.is_nested(kind):
            return any(binary(kind.field(at).type) for at in range(kind.num_fields))
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    media = (Audio, Image, Video)
    return [
        name
        for name, feature in dataset.features.items()
        if isinstance(feature, media) or binary(dataset.features.arrow_schema.field(name).type)
    ]


class _Rows:
    """The rows that are written, a batch at a time."""

    def __init__(self, dataset: Dataset, added: Mapping[str, Any], selected: Selected, selection: Selection) -> None:
        self.dataset, self.added = dataset.with_format("arrow"), added
        self.selected, self.selection = selected, selection
        features = {**dataset.features}
        if selection.relabel:
            changed = exchanged_types(dataset.features.arrow_schema, selection.dataset_columns)
            made = Features.from_arrow_schema(pa.schema([*changed.items()]))
            features |= made
        features |= Features.from_arrow_schema(pa.schema([(name, column.type) for name, column in added.items()]))
        self.features = Features(features)

    def tables(self) -> Iterator[pa.Table]:
        schema = self.features.arrow_schema
        stored = self.dataset.data
        batch = min(_BATCH, max(1, _BATCH_BYTES * max(stored.num_rows, 1) // max(stored.nbytes, 1)))
        for start in range(0, len(self.dataset), batch):
            end = min(start + batch, len(self.dataset))
            table: Any = self.dataset[start:end]
            given = {name: table[name] for name in table.column_names}
            table = pa.table(given | {name: column[start:end] for name, column in self.added.items()})
            if self.selection.relabel:
                table = self._exchanged(table, start, end)
            kept = pa.array(self.selected.kept[start:end])
            yield table.filter(kept).select(schema.names).cast(schema)

    def _exchanged(self, table: pa.Table, start: int, end: int) -> pa.Table:
        names = [*self.added]
        settled = {name: table[name] for name in names[len(TYPES) :]}  # known for the rows as they are now
        where = pa.array(self.selected.relabeled[start:end])
        table = exchange_sides(table, where, self.selection.signed, self.selection.dataset_columns)
        for name, column in settled.items():
            table = table.set_column(table.column_names.index(name), name, column)
        return table


def _write_parquet(file: Path, rows: _Rows, recorded: Mapping[str, Any]) -> None:
    schema = rows.features.arrow_schema
    noted = json.dumps(finite({**recorded}), ensure_ascii=False, default=str).encode()
    schema = schema.with_metadata({**(schema.metadata or {}), METADATA_KEY: noted})
    with pq.ParquetWriter(file, schema) as writer:
        for table in rows.tables():
            writer.write_table(table.cast(schema))


def _write_lines(file: Path, rows: _Rows, recorded: Mapping[str, Any]) -> None:
    with file.open("w", encoding="utf-8", newline="\n") as lines:
        for table in rows.tables():
            columns = rows.features.decode_batch(table.to_pydict())
            for values in zip(*columns.values(), strict=True):
                row = finite(dict(zip(columns, values, strict=True)))
                text = json.dumps(row, ensure_ascii=False, allow_nan=False, default=str)
                lines.write(_LINE_ENDS.sub(lambda each: f"\\u{ord(each[0]):04x}", text) + "\n")


@contextlib.contextmanager
def _aside(file: Path) -> Iterator[Path]:
    """A name beside a file; what was written there takes the file's place at the end, or is removed."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        os.replace(aside, file)
    except OSError as error:
        raise InputError(f"--output {file}: {error.strerror or error}.") from error
    finally:
        aside.unlink(missing_ok=True)
