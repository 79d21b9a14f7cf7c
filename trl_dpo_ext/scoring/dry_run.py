"""Count what expressions would do with the rows of a written file, without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import InputError
from .output import ENDINGS
from .selection import Selected, Selection, select
from .written_columns import TYPES


def dry_run(file: Path, selection: Selection) -> Selected:
    """Compute the expressions on a file that `score` has written.

    Raises:
        InputError: it cannot be read, `score` has not written it, or an expression cannot be computed on it.
    """
    if file.suffix not in ENDINGS:
        raise InputError(f"--output {file}: a file of scored rows must end in {' or '.join(ENDINGS)}.")
    if not file.is_file():
        raise InputError(
            f"--dry_run counts rows of an existing --output; {file} does not exist. Run `score` "
            "without --dry_run first."
        )
    try:
        names, read, rows = _parquet(file) if file.suffix == ".parquet" else _lines(file)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"--output {file} cannot be read: {error}") from error
    missing = [name for name in TYPES if name not in names]
    if missing and rows:
        raise InputError(
            f"--dry_run: {file} has no column {missing[0]!r}; `score` has not written it. Run it "
            "without --dry_run first."
        )
    return select(selection, names, read, np.arange(rows))


def _parquet(file: Path) -> tuple[list[str], Any, int]:
    opened = pq.ParquetFile(file)
    names = opened.schema_arrow.names
    return names, lambda name: opened.read([name])[name], opened.metadata.num_rows


def _lines(file: Path) -> tuple[list[str], Any, int]:
    with file.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    names = [*dict.fromkeys(name for row in rows for name in row)]
    return names, lambda name: pa.array([row.get(name) for row in rows]), len(rows)
