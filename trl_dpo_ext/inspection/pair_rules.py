"""Rules about pairs: what tells the answers of one apart, and what rows have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import statistics
from ..data.findings import NOTE, WARNING, Finding
from .contents import SCRIPTS, scripts_differ
from .pair_table import PairTable
from .row_texts import COLUMNS
from .rule import Mask, found, often, percent, plural, rule, same_answers

_MOST_SMOOTHED = 0.4
"""Label smoothing that is advised, at most: at 0.5 a label says nothing."""
MANY = 8
"""Rows with one prompt, beyond which it is pointed out."""
_NEAR, _COPIES, _SURE = 0.1, 0.01, 100
_FAIR = (0.35, 0.65)


@rule
def near_identical(table: PairTable) -> Iterator[Finding]:
    """The differing span is at most a tenth of the longer side."""
    longer = table.rows.kept.max(axis=1)
    span = longer - table.rows.common - table.rows.common_end
    mask = ~table.rows.same & (span <= _NEAR * longer)
    yield from found(
        table,
        "near_identical",
        often(table, mask),
        mask,
        "{sides} differ in at most a tenth of their tokens in {rows}",
        "Look at them; losses of single tokens or ld_alpha may suit them.",
    )


@rule
def contradictory(table: PairTable) -> Iterator[Finding]:
    """Another row has the same prompt and the same answers, swapped."""
    pairs = _groups(table.keys[:, 0], table.keys[:, 1], table.keys[:, 2])
    swapped = _groups(table.keys[:, 0], table.keys[:, 2], table.keys[:, 1])
    mask = np.isin(pairs, swapped) & ~same_answers(table)
    smoothing = min(table.examples.any(mask).mean() / 2, _MOST_SMOOTHED)
    yield from found(
        table,
        "contradictory",
        WARNING,
        mask,
        "{rows} have a counterpart with the same prompt and the same answers swapped",
        f"Decide which is right, or use loss_type cdpo or robust with label_smoothing={smoothing:.2g}.",
    )


@rule
def duplicate_row(table: PairTable) -> Iterator[Finding]:
    """Second and later copies of a row."""
    names = [*(table.columns or (name for name in COLUMNS if name in table.dataset.column_names))]
    mask = _repeated(table.example_keys(table.keys))[table.examples.of]
    yield from found(
        table,
        "duplicate_row",
        often(table, mask, _COPIES),
        mask,
        f"{{rows}} are copies of {table.unit} before them",
        f"Remove them: dataset.select(dataset.to_pandas()[{names}].astype(str).drop_duplicates().index)."
        if not table.of_lists
        else "Filter these rows.",
    )


@rule
def many_per_prompt(table: PairTable) -> Iterator[Finding]:
    """A prompt is in more than eight rows."""
    prompts = table.keys[table.examples.starts, 0]
    _, place, counts = np.unique(prompts, return_inverse=True, return_counts=True)
    mask = (counts[place] > MANY)[table.examples.of]
    yield from found(
        table,
        "many_per_prompt",
        NOTE,
        mask,
        f"{{rows}} share their prompt with at least {MANY} others "
        f"({plural(int((counts > MANY).sum()), 'prompt')}, at most {counts.max(initial=0)} {table.unit} each)",
        "A weight_column can balance them.",
    )


@rule
def length_bias(table: PairTable) -> Iterator[Finding]:
    """Length alone tells which answer is chosen."""
    kept, whole = table.rows.kept, table.rows.sides
    trained, before = (statistics.length_bias(each[:, 0], each[:, 1]) for each in (kept, whole))
    if len(table) < _SURE or not (_is_biased(trained) or _is_biased(before)):
        return
    worst = before if _distance(before) >= _distance(trained) else trained
    lengths = whole if worst is before else kept
    longer = worst["accuracy"] > 0.5
    mask = lengths[:, 0] > lengths[:, 1] if longer else lengths[:, 0] < lengths[:, 1]
    rate = worst["accuracy"] if longer else 1 - worst["accuracy"]
    cut = "" if not (table.rows.cut > 0).any() else " before truncation" if worst is before else " as trained"
    word = "better" if table.of_lists else "chosen"
    which = f"{int(mask.sum())} of {len(mask)} pairs of {{rows}}" if table.of_lists else "{rows}"
    yield from found(
        table,
        "length_bias",
        WARNING,
        mask,
        f"a rule that knows nothing but length is right in {percent(rate)} of pairs: the "
        f"{'longer' if longer else 'shorter'} answer is the {word} one in {which}{cut}",
        "Look at the data; ld_alpha, or the losses sigmoid_norm, sampo and rdpo, weaken it.",
    )


def _is_biased(bias: dict[str, Any]) -> bool:
    low, high = bias["interval"]
    return not _FAIR[0] <= bias["accuracy"] <= _FAIR[1] and not low <= 0.5 <= high


def _distance(bias: dict[str, Any]) -> float:
    return abs(bias["accuracy"] - 0.5)


@rule
def script_differs(table: PairTable) -> Iterator[Finding]:
    """The answers are in different scripts."""
    left, right = table.texts.scripts.T
    mask = scripts_differ(left, right)
    if not mask.any():
        return
    names = sorted({SCRIPTS[place] for place in {*left[mask].tolist(), *right[mask].tolist()}})
    sentence = f"{{sides}} are in different scripts in {{rows}} ({', '.join(names)})"
    yield from found(table, "script_differs", NOTE, mask, sentence, "Language, and not quality, may be learned.")


def _groups(*keys: npt.NDArray) -> npt.NDArray:
    """One key for several, side by side, (rows,)."""
    joined = np.ascontiguousarray(np.stack(keys, axis=1))
    return joined.view(f"V{16 * len(keys)}").reshape(-1)


def _repeated(keys: npt.NDArray) -> Mask:
    """Mark second and later copies, (rows,)."""
    _, first = np.unique(keys, return_index=True)
    mask = np.ones(len(keys), dtype=bool)
    mask[first] = False
    return mask
