"""Give the columns of a dataset the names that this package reads: the option `dataset_columns`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from accelerate import PartialState
from datasets import Dataset, IterableDataset

from .. import _trl
from ..errors import InputError

_TIES = ("", "tie", "tie (bothbad)", "tie(bothbad)", "both", "both bad", "neither", "none", "equal")
"""Values of a winner column that name none of the answers."""
_ANSWERS = ("a", "b", "winner")
_VERSION = 1
_SAMPLE = 1000


def map_columns(dataset: Dataset | IterableDataset, name: str, mapping: Mapping[str, str]) -> Any:
    """Rename columns; join, reach into and choose between columns where the mapping says so.

    Args:
        dataset: any.
        name: what messages call it.
        mapping: from our names to the dataset's; see `DataOptions`.

    Raises:
        InputError: a column does not exist, or a name is taken.
    """
    first = next(iter(dataset), None) if mapping else None
    if first is None:
        return dataset
    wanted = {ours: source for ours, source in mapping.items() if ours != "winner_is_b"}
    problems = _problems(wanted, first, name)
    if problems:
        raise InputError(*problems)
    streamed = isinstance(dataset, IterableDataset)  # whose columns cannot change places by renaming
    computed = {ours: source for ours, source in wanted.items() if streamed or source not in first or ours in _ANSWERS}
    renamed = {source: ours for ours, source in wanted.items() if ours not in computed and source != ours}
    if computed:
        dataset = _computed(dataset, name, first, computed, mapping.get("winner_is_b"), list(renamed))
    return dataset.rename_columns(renamed) if renamed else dataset


def sample_mapped(dataset: Any, mapping: Mapping[str, str]) -> Any:
    """Return rows of a dataset under our names, to tell its layout by; empty where that fails, which is told later.

    These are all rows where columns are renamed, the first ones where they are computed, and one of a stream.
    """
    if not isinstance(dataset, (Dataset, IterableDataset)) or _trl.is_transformed(dataset):
        return []
    if isinstance(dataset, IterableDataset):
        dataset = dataset.take(1)
    elif not set(mapping.values()) <= set(dataset.column_names) or set(_ANSWERS) & set(mapping):
        dataset = dataset.select(range(min(len(dataset), _SAMPLE)))
    try:
        return map_columns(dataset, "", mapping)
    except InputError:
        return []


def _problems(wanted: Mapping[str, str], first: Mapping[str, Any], name: str) -> list[str]:
    used = {column for source in wanted.values() for column in _columns(source, first)}
    absent = {ours: missing for ours, source in wanted.items() if (missing := _missing(source, first))}
    problems = [
        f"{name}: --dataset_columns {ours}={wanted[ours]} names {missing}, which the dataset does not have; it has "
        f"{', '.join(map(repr, first))}. Name one of these."
        for ours, missing in absent.items()
    ]
    targets = [ours for ours in wanted if ours not in _ANSWERS]
    if "a" in wanted:
        targets += ["chosen", "rejected"]
    return problems + [
        f"{name}: --dataset_columns {ours}={wanted.get(ours, '...')} would replace the dataset's column {ours!r}. Give "
        "that one another name in the same option, or remove it."
        for ours in targets
        if ours in first and ours not in used
    ]


def _columns(source: str, first: Mapping[str, Any]) -> list[str]:
    """The columns that a source reads: itself, or those that it joins or reaches into."""
    if source in first:
        return [source]
    return [part if part in first else part.split(".")[0] for part in source.split(",")]


def loaded_columns(columns: Sequence[str], mapping: Mapping[str, str], loaded: Collection[str]) -> tuple[str, ...]:
    """Return what a dataset called its columns before they were mapped.

    Args:
        columns: as they are called now.
        mapping: from our names to the dataset's.
        loaded: the dataset's names.
    """
    names = dict.fromkeys(loaded, None)
    sources = {ours: source for ours, source in mapping.items() if ours != "winner_is_b"}
    of_sources = [name for source in sources.values() for name in _columns(source, names)]
    return tuple(dict.fromkeys([*of_sources, *(name for name in columns if name not in sources and name in names)]))


def _missing(source: str, first: Mapping[str, Any]) -> str | None:
    for part in [] if source in first else source.split(","):
        column = part if part in first else part.split(".")[0]
        if column not in first:
            return repr(column)
        try:
            _reach(part, first)
        except (LookupError, TypeError, ValueError):
            return f"{part!r} in its first row"
    return None


def _computed(
    dataset: Any,
    name: str,
    first: Mapping[str, Any],
    computed: Mapping[str, str],
    winner_is_b: str | None,
    renamed: list[str],
) -> Any:
    used = {column for source in computed.values() for column in _columns(source, first)}
    replaced = sorted(used - set(renamed))
    arguments: dict[str, Any] = {"sources": dict(computed), "winner_is_b": winner_is_b, "version": _VERSION}
    if isinstance(dataset, IterableDataset):
        dataset = dataset.map(_compute, fn_kwargs=arguments, remove_columns=replaced)
        return dataset.filter(_is_decided) if "winner" in computed else dataset
    with PartialState().local_main_process_first():
        dataset = dataset.map(_compute, fn_kwargs=arguments, remove_columns=replaced, desc=f"Mapping columns of {name}")
        if "winner" not in computed:
            return dataset
        decided = dataset.filter(_is_decided, desc=f"Dropping ties of {name}")
    if not len(decided):
        raise InputError(f"{name}: the winner column names one of the answers in none of {len(dataset)} rows.")
    return decided


def _compute(row: Mapping[str, Any], sources: Mapping[str, str], winner_is_b: str | None, version: int) -> dict:
    values = {ours: _value(row, source) for ours, source in sources.items()}
    if "winner" not in values:
        return values
    a, b, winner = (values.pop(name) for name in _ANSWERS)
    is_b = _is_second(winner, str(winner_is_b))
    if is_b is None:
        return values | {"chosen": None, "rejected": None}
    return values | {"chosen": b if is_b else a, "rejected": a if is_b else b}


def _is_second(winner: Any, winner_is_b: str) -> bool | None:
    """Whether the second answer is better; None for a tie."""
    if winner is None or (isinstance(winner, str) and winner.strip().lower() in _TIES):
        return None
    if winner_is_b in ("positive", "negative"):
        number = float(winner)
        return None if number == 0 else (number > 0) == (winner_is_b == "positive")
    if isinstance(winner, float) and winner.is_integer():
        winner = int(winner)
    return str(winner) == winner_is_b


def _is_decided(row: Mapping[str, Any]) -> bool:
    return row["chosen"] is not None


def _value(row: Mapping[str, Any], source: str) -> Any:
    if source in row or "," not in source:
        return _reach(source, row)
    parts = [_reach(part, row) for part in source.split(",")]
    return "\n\n".join(part for part in parts if isinstance(part, str) and part.strip())


def _reach(path: str, row: Any) -> Any:
    if path in row:
        return row[path]
    for step in path.split("."):
        row = row[int(step)] if isinstance(row, (list, tuple)) else row[step]
    return row
