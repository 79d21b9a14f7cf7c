"""What rules are made of: their registry, and how they put what they have found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.findings import NOTE, WARNING, Finding
from .pair_table import PairTable

Mask = npt.NDArray[np.bool_]
Rule = Callable[[PairTable], Iterator[Finding]]
RULES: list[Rule] = []

_OFTEN = 0.05
_STEP = 64


def rule(function: Rule) -> Rule:
    """Declare a rule."""
    RULES.append(function)
    return function


def enough(table: PairTable) -> int | None:
    """Return the smallest multiple of 64 at which no sequence is cut, as far as rows were tokenized; None without."""
    longest = table.whole_examples
    return next_step(int(longest.max())) if len(longest) else None


def percent(share: float) -> str:
    """Return a share as text.

    >>> percent(0.0), percent(0.0004), percent(0.1234), percent(1.0)
    ('0 %', '0.04 %', '12.3 %', '100 %')
    """
    digits = 0 if share in (0, 1) else 1 if share >= 0.001 else 2
    return f"{100 * share:.{digits}f}".removesuffix(".0") + " %"


def plural(count: int, word: str) -> str:
    """Return a number with the word for what it counts.

    >>> plural(1, "row"), plural(2000, "row")
    ('1 row', '2,000 rows')
    """
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def next_step(tokens: int) -> int:
    """Return the next multiple of 64."""
    return -(-tokens // _STEP) * _STEP


def found(
    table: PairTable, name: str, level: str, mask: Any, sentence: str, remedy: str = "", **more: Any
) -> Iterator[Finding]:
    """The finding of examples with a marked row; nothing where no row is marked. `{rows}` stands for their number.
    `{sides}` stands for what the two completions of a row are.
    """
    examples = table.examples.any(mask)
    count = int(examples.sum())
    if count:
        both = "a better and a worse completion" if table.of_lists else "chosen and rejected"
        sentence = sentence.replace("{rows}", f"{count} of {len(table)} {table.unit}").replace("{sides}", both)
        numbers = table.numbers[table.examples.starts][examples].tolist()
        yield Finding(name, level, count, len(table), sentence, remedy, numbers, table.unit, **more)


def often(table: PairTable, mask: Any, share: float = _OFTEN) -> str:
    """Return the level of a finding that is a note where it is rare."""
    return WARNING if table.examples.any(mask).mean() >= share else NOTE


def by_side(table: PairTable, completions: Any) -> tuple[int, int]:
    """Count marked completions, each once: chosen and rejected ones, or the best ones of lists and the others.

    Args:
        table: with the rows.
        completions: the marks, (rows, 2).
    """
    chosen, rejected = (completions & table.examples.once).sum(axis=0).tolist()
    return chosen, rejected


def side_names(table: PairTable) -> tuple[str, str]:
    """Return what the two kinds of completions that `by_side` counts are called."""
    return ("best", "other") if table.of_lists else ("chosen", "rejected")


def sides_in_words(table: PairTable, completions: Any) -> str:
    """Return the counts of `by_side` in words."""
    chosen, rejected = by_side(table, completions)
    if table.of_lists:
        return f"{chosen} best and {rejected} other ones"
    return f"chosen in {chosen}, rejected in {rejected}"


def same_answers(table: PairTable) -> Mask:
    """Mark rows whose sides say the same, (rows,)."""
    return table.keys[:, 1] == table.keys[:, 2]
