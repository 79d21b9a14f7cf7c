"""One row as it is shown: tokens with their ids and texts, what is cut, which findings it has."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _trl
from ..data.rows import SIDES
from .pair_table import PairTable
from .row_texts import COLUMNS

_LONGEST_VALUE = 4000
_HIDDEN = {*COLUMNS, *_trl.TOKEN_IDS, *_trl.IMAGE_COLUMNS}


def row_views(table: PairTable, split: str, places: Sequence[int], findings: Sequence[Any]) -> list[dict[str, Any]]:
    """Return some rows of a table as JSON holds them.

    Token ids are those of the whole prompt and answers. `kept` says which of them are trained, as [first, behind the
    last]: of the prompt in front of each answer, and of each answer.

    Args:
        table: the split's measures.
        split: its name.
        places: places of the rows in the table.
        findings: those of the split, with the numbers of their rows.
    """
    has = {finding.name: set(finding.rows) for finding in findings}
    return [_view(table, split, int(place), table.row(int(place)), has) for place in places]


def _view(table: PairTable, split: str, place: int, row: dict[str, Any], has: dict[str, set[int]]) -> dict[str, Any]:
    rows, number = table.rows, int(table.numbers[place])
    whole = [int(rows.prompt[place]), *(int(each) for each in rows.sides[place])]
    ends = table.truncation.keeps_end
    left = [*(int(each) for each in rows.prompt_kept[place]), *(int(each) for each in rows.kept[place])]
    of = [whole[0], whole[0], whole[1], whole[2]]
    spans = [[total - kept, total] if ends else [0, kept] for total, kept in zip(of, left, strict=True)]
    kept = dict(zip(("prompt_chosen", "prompt_rejected", *SIDES), spans, strict=True))
    view: dict[str, Any] = {"row": number, "split": split}
    view |= {name: [int(index) for index in row[name]] for name in _trl.TOKEN_IDS}
    for name, ids in zip(COLUMNS, _trl.TOKEN_IDS, strict=True):
        borders = sorted({edge for part, span in kept.items() if part.split("_")[0] == name for edge in span})
        view[name] = _texts(table, view[ids], borders)
    view |= {f"n_{name}": total for name, total in zip(COLUMNS, whole, strict=True)}
    view |= {f"cut_{side}": int(rows.cut[place, at]) for at, side in enumerate(SIDES)}
    view["kept"] = kept
    view["first_difference"] = None if bool(rows.same[place]) else int(rows.common[place])
    view["findings"] = [name for name, numbers in has.items() if number in numbers]
    view["columns"] = {name: short(value) for name, value in row.items() if name not in _HIDDEN}
    return view


def _texts(table: PairTable, ids: list[int], borders: list[int]) -> list[str | None]:
    """Texts of tokens; a character is never shown across the place where a sequence is cut."""
    edges = [0, *[edge for edge in borders if 0 < edge < len(ids)], len(ids)]
    pieces: list[str | None] = []
    for start, end in itertools.pairwise(edges):
        pieces += table.kinds.texts(ids[start:end], ids[:start])
    return pieces


def short(value: Any) -> Any:
    """Return a column's value as JSON holds it; long texts without their middle."""
    if isinstance(value, str) and len(value) > _LONGEST_VALUE:
        half = _LONGEST_VALUE // 2
        return f"{value[:half]} [... {len(value) - 2 * half} characters ...] {value[-half:]}"
    if isinstance(value, (list, tuple)):
        return [short(each) for each in value]
    if isinstance(value, dict):
        return {str(key): short(each) for key, each in value.items()}
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


def even_sample(total: int, most: int) -> list[int]:
    """Return at most so many places, spread evenly over all."""
    if total <= most:
        return list(range(total))
    return sorted(set(np.linspace(0, total - 1, most).astype(int).tolist()))
