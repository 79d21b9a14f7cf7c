"""Rules about what truncation does."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .. import statistics
from ..data.findings import NOTE, WARNING, Finding
from .pair_table import PairTable
from .rule import (
    Mask,
    by_side,
    enough,
    found,
    next_step,
    often,
    percent,
    rule,
    same_answers,
    side_names,
    sides_in_words,
)

_POINTS = 0.1
_TOO_LONG = 4


@rule
def dropped(table: PairTable) -> Iterator[Finding]:
    """The prompt alone fills max_length, and truncation keeps the start."""
    count = len(table.dropped)
    if not count or table.truncation.max_length is None or table.of_lists:  # what is dropped of lists is told apart
        return
    sentence = (
        f"{count} of {table.loaded} rows dropped: the prompt alone fills max_length={table.truncation.max_length}"
    )
    fits = f" to {next_step(int(table.dropped_prompts.max()) + 1)}" if len(table.dropped_prompts) else ""
    remedy = f"Raise max_length{fits or ' (inspect says to what)'}, or filter these rows."
    yield Finding("dropped", WARNING, count, table.loaded, sentence, remedy, table.dropped.tolist())


@rule
def prompt_lost(table: PairTable) -> Iterator[Finding]:
    """Truncation keeps the end, and leaves less than half of the prompt."""
    if not table.truncation.keeps_end:
        return
    left = table.rows.prompt_kept.min(axis=1)
    nothing = (left == 0) & (table.rows.prompt > 0)
    yield from found(
        table,
        "prompt_lost",
        WARNING,
        (2 * left < table.rows.prompt) | nothing,
        f"truncation_mode='keep_end' leaves less than half of the prompt in {{rows}}, and leaves nothing of the prompt "
        f"in {int(table.examples.any(nothing).sum())} of {len(table)} {table.unit}",
        f"Raise max_length to {enough(table)}, or set truncation_mode='keep_start'.",
    )


@rule
def identical_after_truncation(table: PairTable) -> Iterator[Finding]:
    """Scored tokens are equal, and the answers are not."""
    mask = table.rows.same & ~same_answers(table)
    cut = mask & (table.rows.cut > 0).any(axis=1)
    limit = table.truncation.max_length
    remedy, taught = "", f"{'and such pairs' if table.of_lists else 'which'} teach nothing about preference"
    if cut.any() and table.truncation.keeps_end:
        whole = int(table.rows.sides[cut].max())
        remedy = f"Raise max_length to {whole}, which keeps these answers whole."
    elif cut.any():
        apart = int((table.rows.prompt[cut].astype(np.int64) + table.rows.common_whole[cut] + 1).max())
        remedy = f"Raise max_length to {apart}, which tells all of them apart."
    yield from found(
        table,
        "identical_after_truncation",
        WARNING,
        cut,
        f"{{sides}} are identical after truncation to max_length={limit} in {{rows}}, {taught}",
        remedy,
    )
    yield from found(
        table,
        "identical_after_truncation",
        WARNING,
        mask & ~cut,
        f"{{sides}} are different texts and the same tokens in {{rows}}, {taught}",
        "Filter these rows, or look at what the tokenizer leaves out.",
    )


@rule
def answer_cut(table: PairTable) -> Iterator[Finding]:
    """Truncation cuts an answer."""
    cut = table.rows.cut > 0
    mask = cut.any(axis=1)
    yield from found(
        table,
        "answer_cut",
        often(table, mask),
        mask,
        f"max_length={table.truncation.max_length} cuts the answers of {{rows}} ({sides_in_words(table, cut)})",
        f"Raise max_length to {enough(table)}, or filter these rows.",
    )


def ends_lost(table: PairTable) -> Mask:
    """Mark completions whose last EOS is cut off, (rows, 2)."""
    return (table.rows.ending > 0) & (table.rows.cut >= table.rows.ending)


@rule
def eos_cut(table: PairTable) -> Iterator[Finding]:
    """Truncation removes the EOS of an answer."""
    if table.truncation.keeps_end:
        return
    lost = ends_lost(table)
    mask = lost.any(axis=1)
    if not mask.any():
        return
    counts, names = by_side(table, lost), side_names(table)
    chosen, rejected = (count / every for count, every in zip(counts, by_side(table, lost | True), strict=True))
    apart = abs(chosen - rejected) > _POINTS
    sentence = (
        f"truncation to max_length={table.truncation.max_length} takes EOS from {counts[0]} {names[0]} "
        f"({percent(chosen)}) and {counts[1]} {names[1]} answers ({percent(rejected)})"
    )
    if apart:
        more, less = reversed(names) if rejected > chosen else names
        taught = "stopping is what is preferred" if more == names[1] else "not to stop is what is preferred"
        sentence += f": the {more} side goes on without end more often than the {less} one, which teaches that {taught}"
    remedy = f"Raise max_length to {enough(table)}, which keeps these answers whole."
    yield from found(table, "eos_cut", WARNING if apart else often(table, mask), mask, sentence, remedy)


@rule
def long_tail(table: PairTable) -> Iterator[Finding]:
    """The longest pairs are much longer than the median."""
    longest = table.examples.max(table.rows.fed.max(axis=1))
    spread = statistics.quantiles(longest)
    if not len(table) or spread["p99"] <= _TOO_LONG * spread["p50"]:  # type: ignore[operator]
        return
    mask = (longest > _TOO_LONG * spread["p50"])[table.examples.of]  # type: ignore[operator]
    sentence = f"{{rows}} are longer than {_TOO_LONG} times the median of {spread['p50']} tokens"
    remedy = "train_sampling_strategy='group_by_length' or padding_free saves the padding."
    yield from found(table, "long_tail", NOTE, mask, sentence, remedy)
