"""Rules about single sequences: how they begin and end, and which texts become which tokens."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..data.findings import NOTE, WARNING, Finding
from .contents import DAMAGE, INVISIBLE
from .pair_table import PairTable
from .rule import enough, found, rule


@rule
def missing_eos(table: PairTable) -> Iterator[Finding]:
    """A whole answer ends with another token than EOS."""
    if not len(table.kinds.eos_ids):
        sentence = "the tokenizer has no EOS token, so that the answers of {rows} do not end with one"
        every = np.ones(len(table.rows), dtype=bool)
        yield from found(table, "missing_eos", WARNING, every, sentence, "Set the tokenizer's eos_token.")
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
    sides = int((behind & table.examples.once).sum())
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
    empty = table.rows.content == 0
    mask, cut = empty.any(axis=1), (empty & (table.rows.cut > 0)).any(axis=1)
    sentence = "an answer has no token but EOS and whitespace in {rows}, as trained"
    remedy = "Filter these rows."
    if cut.any():
        remedy = f"Raise max_length to {enough(table)}, or filter these rows."
    yield from found(table, "empty_answer", WARNING, mask, sentence, remedy)


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
    where = "an answer" if table.texts.are_texts else "a message"
    yield from found(table, name, WARNING, table.texts.special, sentence.format(where), remedy)
    yield from found(
        table, name, NOTE, table.texts.special_prompt & ~table.texts.special, sentence.format("the prompt")
    )


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
        "Move the blanks from the end of the prompt to the start of the answers, or begin the answers with a blank."
        if table.texts.are_texts
        else "Use a chat template that renders the prompt the same with and without an answer.",
    )


@rule
def first_token_unscored(table: PairTable) -> Iterator[Finding]:
    """There is no prompt and no BOS, so that an answer's first token is not scored."""
    mask = (table.rows.prompt_kept == 0).any(axis=1) & (table.rows.prompt == 0)
    sentence = "no token stands before the answers of {rows}, so that their first token is not scored"
    remedy = "Give a prompt, or a tokenizer with a BOS token."
    yield from found(table, "first_token_unscored", NOTE, mask, sentence, remedy)


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
    characters = table.texts.characters
    counts = {name: int(table.examples.any(mask).sum()) for name, mask in characters.items()}
    damaged = [name for name in (*DAMAGE, "mojibake") if counts[name]]
    mask = np.logical_or.reduce([np.zeros(len(table.rows), bool), *(characters[name] for name in damaged)])
    sentence = "{rows} have " + ", ".join(f"{words[name]} ({counts[name]})" for name in damaged)
    yield from found(table, "unicode", WARNING, mask, sentence, "Read the source again with the right encoding.")
    others = [name for name in (*INVISIBLE, "not_nfc") if counts[name]]
    rest = np.logical_or.reduce([np.zeros(len(table.rows), bool), *(characters[name] for name in others)]) & ~mask
    sentence = "{rows} have " + ", ".join(f"{words[name]} ({counts[name]})" for name in others)
    yield from found(table, "unicode", NOTE, rest, sentence)
