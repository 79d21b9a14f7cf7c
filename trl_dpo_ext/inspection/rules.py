"""The rules: what a measured dataset may have that a user would want to know. Each gives findings of one name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.findings import NOTE, WARNING, Finding, gravest_first
from . import statistics
from .contents import DAMAGE, INVISIBLE, SCRIPTS
from .pair_measures import Rows
from .pair_table import PairTable

Mask = npt.NDArray[np.bool_]
Rule = Callable[[PairTable], Iterator[Finding]]
RULES: list[Rule] = []

MANY = 8
"""Rows with one prompt, beyond which it is pointed out."""
_NEAR, _OFTEN, _COPIES, _POINTS = 0.1, 0.05, 0.01, 0.1
_TOO_LONG, _SURE = 4, 100
_FAIR = (0.35, 0.65)
_STEP = 64


def rule(function: Rule) -> Rule:
    """Declare a rule."""
    RULES.append(function)
    return function


def find(table: PairTable) -> list[Finding]:
    """Apply every rule; the gravest findings come first."""
    return gravest_first(finding for each in RULES for finding in each(table))


def enough(rows: Rows) -> int | None:
    """Return the smallest multiple of 64 at which no sequence is cut; None without rows."""
    longest = rows.prompt.astype(np.int64) + rows.sides.max(axis=1) if len(rows) else np.zeros(0)
    return _step(int(longest.max())) if len(longest) else None


def percent(share: float) -> str:
    """Return a share as text.

    >>> percent(0.0), percent(0.0004), percent(0.1234), percent(1.0)
    ('0 %', '0.04 %', '12.3 %', '100 %')
    """
    digits = 0 if share in (0, 1) else 1 if share >= 0.001 else 2
    return f"{100 * share:.{digits}f}".removesuffix(".0") + " %"


def _step(tokens: int) -> int:
    return -(-tokens // _STEP) * _STEP


def found(
    table: PairTable, name: str, level: str, mask: Any, sentence: str, remedy: str = "", **more: Any
) -> Iterator[Finding]:
    """The finding of marked rows; nothing where no row is marked. `{rows}` stands for their number."""
    count = int(mask.sum())
    if count:
        counted = f"{count} of {len(table)} rows"
        numbers = table.numbers[mask].tolist()
        yield Finding(name, level, count, len(table), sentence.replace("{rows}", counted), remedy, numbers, **more)


def _often(mask: Any, share: float = _OFTEN) -> str:
    return WARNING if mask.mean() >= share else NOTE


@rule
def dropped(table: PairTable) -> Iterator[Finding]:
    """The prompt alone fills max_length, and truncation keeps the start."""
    count = len(table.dropped)
    if not count or table.truncation.max_length is None:
        return
    sentence = (
        f"{count} of {table.loaded} rows dropped: the prompt alone fills max_length={table.truncation.max_length}"
    )
    fits = f" to {_step(int(table.dropped_prompts.max()) + 1)}" if len(table.dropped_prompts) else ""
    remedy = f"Raise max_length{fits}, or filter these rows."
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
        f"in {int(nothing.sum())} of {len(table)} rows",
        f"Raise max_length to {enough(table.rows)}, or set truncation_mode='keep_start'.",
    )


@rule
def identical_after_truncation(table: PairTable) -> Iterator[Finding]:
    """Scored tokens are equal, and the answers are not."""
    mask = table.rows.same & ~_same_answers(table)
    cut = mask & (table.rows.cut > 0).any(axis=1)
    limit = table.truncation.max_length
    remedy = "Raise max_length."
    if cut.any() and not table.truncation.keeps_end:
        apart = int((table.rows.prompt[cut].astype(np.int64) + table.rows.common_whole[cut] + 1).max())
        remedy = f"Raise max_length to {apart}, which tells all of them apart."
    yield from found(
        table,
        "identical_after_truncation",
        WARNING,
        cut,
        f"chosen and rejected are identical after truncation to max_length={limit} in {{rows}}, which teach nothing "
        "about preference",
        remedy,
    )
    yield from found(
        table,
        "identical_after_truncation",
        WARNING,
        mask & ~cut,
        "chosen and rejected are different texts and the same tokens in {rows}, which teach nothing about preference",
        "Filter these rows, or look at what the tokenizer leaves out.",
    )


@rule
def near_identical(table: PairTable) -> Iterator[Finding]:
    """The differing span is at most a tenth of the longer side."""
    longer = table.rows.kept.max(axis=1)
    span = longer - table.rows.common - table.rows.common_end
    mask = ~table.rows.same & (span <= _NEAR * longer)
    yield from found(
        table,
        "near_identical",
        _often(mask),
        mask,
        "chosen and rejected differ in at most a tenth of their tokens in {rows}",
        "Look at them; losses of single tokens or ld_alpha may suit them.",
    )


@rule
def contradictory(table: PairTable) -> Iterator[Finding]:
    """Another row has the same prompt and the same answers, swapped."""
    pairs = _groups(table.keys[:, 0], table.keys[:, 1], table.keys[:, 2])
    swapped = _groups(table.keys[:, 0], table.keys[:, 2], table.keys[:, 1])
    mask = np.isin(pairs, swapped) & ~_same_answers(table)
    yield from found(
        table,
        "contradictory",
        WARNING,
        mask,
        "{rows} have a counterpart with the same prompt and the same answers swapped",
        f"Decide which is right, or use loss_type cdpo or robust with label_smoothing near {mask.mean() / 2:.3f}.",
    )


@rule
def duplicate_row(table: PairTable) -> Iterator[Finding]:
    """Second and later copies of a row."""
    mask = _repeated(_groups(*table.keys.T))
    yield from found(
        table,
        "duplicate_row",
        _often(mask, _COPIES),
        mask,
        "{rows} are copies of rows before them",
        "Remove them: dataset.to_pandas().astype(str).drop_duplicates() lists the rows to keep.",
    )


@rule
def many_per_prompt(table: PairTable) -> Iterator[Finding]:
    """A prompt is in more than eight rows."""
    _, place, counts = np.unique(table.keys[:, 0], return_inverse=True, return_counts=True)
    mask = counts[place] > MANY
    yield from found(
        table,
        "many_per_prompt",
        NOTE,
        mask,
        f"{int((counts > MANY).sum())} prompts are in more than {MANY} rows each, at most in {counts.max(initial=0)}",
        "A weight_column can balance them.",
    )


@rule
def answer_cut(table: PairTable) -> Iterator[Finding]:
    """Truncation cuts an answer."""
    cut = table.rows.cut > 0
    mask = cut.any(axis=1)
    chosen, rejected = cut.sum(axis=0).tolist()
    yield from found(
        table,
        "answer_cut",
        _often(mask),
        mask,
        f"max_length={table.truncation.max_length} cuts the answers of {{rows}} (chosen in {chosen}, rejected in "
        f"{rejected})",
        f"Raise max_length to {enough(table.rows)}, or filter these rows.",
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
    chosen, rejected = lost.mean(axis=0).tolist()
    apart = abs(chosen - rejected) > _POINTS
    counts = lost.sum(axis=0).tolist()
    sentence = (
        f"truncation to max_length={table.truncation.max_length} takes EOS from {counts[0]} chosen "
        f"({percent(chosen)}) and {counts[1]} rejected answers ({percent(rejected)})"
    )
    if apart:
        more, less = ("rejected", "chosen") if rejected > chosen else ("chosen", "rejected")
        taught = "stopping is what is preferred" if more == "rejected" else "not to stop is what is preferred"
        sentence += f": the {more} side goes on without end more often than the {less} one, which teaches that {taught}"
    remedy = f"Raise max_length to {enough(table.rows)}, which keeps every answer whole."
    yield from found(table, "eos_cut", WARNING if apart else _often(mask), mask, sentence, remedy)


@rule
def missing_eos(table: PairTable) -> Iterator[Finding]:
    """A whole answer ends with another token than EOS."""
    if not len(table.kinds.eos_ids):
        return
    mask = ((table.rows.cut == 0) & (table.rows.ending == 0) & (table.rows.sides > 0)).any(axis=1)
    yield from found(
        table,
        "missing_eos",
        WARNING,
        mask,
        f"the answers of {{rows}} do not end with EOS ({table.kinds.tokenizer.eos_token!r}), so that the model does "
        "not learn to stop",
        "Set the tokenizer's eos_token to the token that ends a turn, or mend the chat template.",
    )


@rule
def double_eos(table: PairTable) -> Iterator[Finding]:
    """An answer ends twice."""
    yield from found(
        table,
        "double_eos",
        WARNING,
        table.rows.double_eos.any(axis=1),
        f"an answer has two EOS in a row in {{rows}}: its text has {table.kinds.tokenizer.eos_token!r}, and another is "
        "appended",
        "Remove EOS, and blanks behind it, from the texts.",
    )


@rule
def double_bos(table: PairTable) -> Iterator[Finding]:
    """A sequence begins with two BOS tokens."""
    yield from found(
        table,
        "double_bos",
        WARNING,
        table.rows.double_bos,
        f"sequences begin with two BOS tokens ({table.kinds.tokenizer.bos_token!r}) in {{rows}}",
        "Set add_bos_token to false in the tokenizer's configuration, or remove BOS from the texts.",
    )


@rule
def scored_after_eos(table: PairTable) -> Iterator[Finding]:
    """Tokens behind the last EOS are scored."""
    behind = table.rows.behind_eos > 0
    sides = int(behind.sum())
    if not sides:
        return
    text, count = tail_counts(table)[0]
    yield from found(
        table,
        "scored_after_eos",
        NOTE,
        behind.any(axis=1),
        f"what stands behind EOS is scored in {sides} answers: {text!r} in {count}",
    )


def tail_counts(table: PairTable) -> list[tuple[str, int]]:
    """What stands behind the last EOS of answers, and in how many; the most frequent first."""
    texts: dict[str, int] = {}
    for ids, count in table.tails.items():
        text = "".join(piece or "" for piece in table.kinds.texts(ids))
        texts[text] = texts.get(text, 0) + count
    return sorted(texts.items(), key=lambda item: (-item[1], item[0]))


@rule
def empty_answer(table: PairTable) -> Iterator[Finding]:
    """An answer has no scored token but EOS and whitespace."""
    mask = (table.rows.content == 0).any(axis=1)
    sentence = "an answer has no token but EOS and whitespace in {rows}, as trained"
    yield from found(table, "empty_answer", WARNING, mask, sentence, "Filter these rows, or raise max_length.")


@rule
def one_token_answer(table: PairTable) -> Iterator[Finding]:
    """An answer has one token beside EOS and whitespace."""
    mask = (table.rows.content == 1).any(axis=1)
    yield from found(table, "one_token_answer", NOTE, mask, "an answer has a single token in {rows}")


@rule
def special_token_in_text(table: PairTable) -> Iterator[Finding]:
    """A text has the name of a special token, which becomes that token."""
    sentence = "the text of a special token is in {} of {{rows}}, and becomes that token"
    remedy = "Escape or remove it."
    name = "special_token_in_text"
    where = "an answer" if table.are_texts else "a message"
    yield from found(table, name, WARNING, table.special, sentence.format(where), remedy)
    yield from found(table, name, NOTE, table.special_prompt & ~table.special, sentence.format("the prompt"))


@rule
def prompt_not_prefix(table: PairTable) -> Iterator[Finding]:
    """The prompt alone is tokenized otherwise than with an answer behind it."""
    mask = table.spread(table.tokenized_again[table.left_out > 0])
    if not mask.any():
        return
    shown = ", ".join(f"{text!r} ({count})" for text, count in table.left_out_texts.most_common(3))
    sample = len(table.tokenized_again)
    looked = "" if sample == len(table) else f" (of {sample} that were looked at)"
    yield from found(
        table,
        "prompt_not_prefix",
        WARNING,
        mask,
        f"the end of the prompt is left out of {{rows}}{looked}, because it is tokenized otherwise with an answer "
        f"behind it: {shown}",
        "End the prompt on a token boundary, not in a blank, or use a chat template that renders it the same."
        if table.are_texts
        else "Use a chat template that renders the prompt the same with and without an answer.",
    )


@rule
def first_token_unscored(table: PairTable) -> Iterator[Finding]:
    """There is no prompt and no BOS, so that an answer's first token is not scored."""
    mask = (table.rows.prompt_kept == 0).any(axis=1) & (table.rows.prompt == 0)
    sentence = "there is no prompt and no BOS token in {rows}, so that the first token of the answers is not scored"
    yield from found(table, "first_token_unscored", NOTE, mask, sentence, "Give a prompt.")


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
    yield from found(
        table,
        "length_bias",
        WARNING,
        mask,
        f"a rule that knows nothing but length is right in {percent(rate)} of pairs: the "
        f"{'longer' if longer else 'shorter'} answer is the chosen one in {{rows}}{cut}",
        "Look at the data; ld_alpha, or the losses sigmoid_norm, sampo and rdpo, weaken it.",
    )


def _is_biased(bias: dict[str, Any]) -> bool:
    low, high = bias["interval"]
    return not _FAIR[0] <= bias["accuracy"] <= _FAIR[1] and not low <= 0.5 <= high


def _distance(bias: dict[str, Any]) -> float:
    return abs(bias["accuracy"] - 0.5)


@rule
def unicode(table: PairTable) -> Iterator[Finding]:
    """Characters are damaged, invisible, or composed otherwise."""
    words = {
        "replacement": "replacement characters (U+FFFD)",
        "nul": "NUL characters",
        "mojibake": "UTF-8 that was read as cp1252",
        "zero_width": "zero-width characters",
        "bidirectional": "bidirectional controls",
        "bom": "byte order marks",
        "not_nfc": "text that is not in Unicode's NFC",
    }
    damaged = [name for name in (*DAMAGE, "mojibake") if table.characters[name].any()]
    mask = np.logical_or.reduce([np.zeros(len(table), bool), *(table.characters[name] for name in damaged)])
    sentence = "{rows} have " + ", ".join(f"{words[name]} ({int(table.characters[name].sum())})" for name in damaged)
    yield from found(table, "unicode", WARNING, mask, sentence, "Read the source again with the right encoding.")
    others = [name for name in (*INVISIBLE, "not_nfc") if table.characters[name].any()]
    rest = np.logical_or.reduce([np.zeros(len(table), bool), *(table.characters[name] for name in others)]) & ~mask
    sentence = "{rows} have " + ", ".join(f"{words[name]} ({int(table.characters[name].sum())})" for name in others)
    yield from found(table, "unicode", NOTE, rest, sentence)


@rule
def script_differs(table: PairTable) -> Iterator[Finding]:
    """The answers are in different scripts."""
    left, right = table.scripts.T
    mask = (left != right) & (left > 0) & (right > 0)
    if not mask.any():
        return
    names = sorted({SCRIPTS[place] for place in {*left[mask].tolist(), *right[mask].tolist()}})
    sentence = f"chosen and rejected are in different scripts in {{rows}} ({', '.join(names)})"
    yield from found(table, "script_differs", NOTE, mask, sentence, "Language, and not quality, may be learned.")


@rule
def long_tail(table: PairTable) -> Iterator[Finding]:
    """The longest pairs are much longer than the median."""
    longest = table.rows.fed.max(axis=1)
    spread = statistics.quantiles(longest)
    if not len(table) or spread["p99"] <= _TOO_LONG * spread["p50"]:  # type: ignore[operator]
        return
    mask = longest > _TOO_LONG * spread["p50"]  # type: ignore[operator]
    sentence = f"{{rows}} are longer than {_TOO_LONG} times the median of {spread['p50']} tokens"
    remedy = "train_sampling_strategy='group_by_length' or padding_free saves the padding."
    yield from found(table, "long_tail", NOTE, mask, sentence, remedy)


def _same_answers(table: PairTable) -> Mask:
    return table.keys[:, 1] == table.keys[:, 2]


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
