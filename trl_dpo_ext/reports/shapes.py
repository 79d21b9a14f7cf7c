"""What a report reads of files that a run, a crash, or another program has written: values of the expected types.

A reader returns a value, or `MISSING` for one of another type, which is then left out or replaced by a default, so that
whatever reads the result finds what it expects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

MISSING: Any = object()
"""What a reader returns for a value that does not fit."""
Reader = Callable[[Any], Any]

_LARGEST = 2**53
_DEEPEST = 4


def text(value: Any) -> Any:
    """A text."""
    return value if isinstance(value, str) else MISSING


def flag(value: Any) -> Any:
    """True or false."""
    return value if isinstance(value, bool) else MISSING


def number(value: Any) -> Any:
    """A number that a float can hold; it may be NaN or infinite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return MISSING
    return value if isinstance(value, float) or abs(value) <= _LARGEST else MISSING


def whole(value: Any) -> Any:
    """A whole number, 0 or above."""
    return value if isinstance(value, int) and number(value) is not MISSING and value >= 0 else MISSING


def plain(value: Any, depth: int = _DEEPEST) -> Any:
    """Any value, down to a few levels of lists and objects."""
    if isinstance(value, Mapping):
        return {str(name): plain(each, depth - 1) for name, each in value.items()} if depth else "..."
    if isinstance(value, (list, tuple)):
        return [plain(each, depth - 1) for each in value] if depth else "..."
    if isinstance(value, int) and number(value) is MISSING and not isinstance(value, bool):
        return math.inf if value > 0 else -math.inf
    return value if isinstance(value, (str, int, float, type(None))) else str(value)


def default(reader: Reader, otherwise: Any) -> Reader:
    """Return a reader that gives another value for what does not fit."""

    def read(value: Any) -> Any:
        found = reader(value)
        return otherwise if found is MISSING else found

    return read


def items(reader: Reader) -> Reader:
    """Return a reader of lists, which leaves out what does not fit; an empty list for anything else."""

    def read(value: Any) -> Any:
        found = [reader(each) for each in value] if isinstance(value, list) else []
        return [each for each in found if each is not MISSING]

    return read


def mapping(reader: Reader) -> Reader:
    """Return a reader of objects of any keys, which leaves out what does not fit; an empty one for anything else."""

    def read(value: Any) -> Any:
        found = {str(name): reader(each) for name, each in value.items()} if isinstance(value, Mapping) else {}
        return {name: each for name, each in found.items() if each is not MISSING}

    return read


def fields(readers: Mapping[str, Reader]) -> Reader:
    """Return a reader of objects with known keys; other keys are kept as `plain` has them.

    Of a key whose value does not fit, or that is missing, the reader's default is taken; without one it is left out.
    """

    def read(value: Any) -> Any:
        if not isinstance(value, Mapping):
            value = {}
        found = {name: plain(each) for name, each in value.items() if name not in readers}
        found |= {name: reader(value.get(name, MISSING)) for name, reader in readers.items()}
        return {name: each for name, each in found.items() if each is not MISSING}

    return read


def objects(reader: Reader) -> Reader:
    """Return a reader that takes objects alone, for the items of a list."""
    return lambda value: reader(value) if isinstance(value, Mapping) else MISSING


_UNKNOWN_TEXT, _UNKNOWN_NUMBER = default(text, None), default(whole, None)
_DATASET: dict[str, Reader] = {"rows": _UNKNOWN_NUMBER, "fingerprint": _UNKNOWN_TEXT}
_LOSS = {"name": default(text, "?"), "weight": default(number, 1.0), "hyperparameters": mapping(plain)}
record = fields(
    {
        "losses": items(objects(fields(_LOSS))),
        "options": items(text),
        "model": _UNKNOWN_TEXT,
        "trained": _UNKNOWN_TEXT,
        "reference": items(text),
        "data": fields({"train": fields({"names": items(text), **_DATASET}), "evaluation": mapping(fields(_DATASET))}),
        "batch": fields(dict.fromkeys(("per_device", "accumulation", "processes", "pairs_per_step"), _UNKNOWN_NUMBER)),
        "steps": fields({"max": _UNKNOWN_NUMBER, "epochs": default(number, None)}),
        "settings": mapping(plain),
        "launch": _UNKNOWN_TEXT,
        "resumed_from": _UNKNOWN_TEXT,
        "versions": mapping(text),
    }
)
"""What this package's trainer has recorded of a run; see `model_card.record`."""
state = fields({"max_steps": whole, "train_batch_size": whole, "num_train_epochs": number})
"""What transformers saves beside the log."""
alarm = fields(
    {
        "name": default(text, "?"),
        "message": default(text, ""),
        "fired": default(flag, False),
        "stopped": default(flag, False),
    }
)
"""A line of alarms.jsonl."""
sample = fields(
    {
        "prompt": default(text, ""),
        "completion": default(text, ""),
        "ended": flag,
        "length": whole,
        "repetition": number,
    }
)
"""A line of samples.jsonl."""
