"""Which tokens end a sequence, begin one, or are whitespace; and what tokens look like as text."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _trl

Ids = npt.NDArray[np.int64]

_CONTROL = re.compile(r"<\|.*\|>", re.DOTALL)
_BROKEN = "\N{REPLACEMENT CHARACTER}"
_BROKEN_BYTES = "\u00ef\u00bf\u00bd"
_LONGEST_CHARACTER = 8
"""Tokens that make up one character, at most."""
_CONTEXT = 12
"""Tokens in front of another that tell how it looks."""
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(0x100 + place): byte for place, byte in enumerate(sorted({*range(0x100)} - {*_PRINTABLE}))
}
"""What tokenizers of bytes write for each byte."""


def _as_bytes(token: str) -> str:
    """A token that is no text, as bytes.

    >>> _as_bytes("<0xE2>"), _as_bytes("\u00e6\u0139")
    ('<0xE2>', '<0xE6><0x97>')
    """
    if token.startswith("<0x") or not {*token} <= {*_BYTES}:
        return f"<{token.strip('<>')}>"
    return "".join(f"<0x{_BYTES[letter]:02X}>" for letter in token)


class TokenKinds:
    """The tokens of one tokenizer, by what they mean for a sequence.

    Args:
        processing_class: a tokenizer, or a processor with one.
        eos_ids: further tokens that end a sequence, such as those of a generation configuration.
    """

    def __init__(self, processing_class: Any, eos_ids: Iterable[int] = ()) -> None:
        self.tokenizer = _trl.tokenizer_of(processing_class)
        own = self.tokenizer.eos_token_id
        self.eos_ids = np.unique([*([] if own is None else [own]), *eos_ids]).astype(np.int64)
        self.bos_id: int | None = self.tokenizer.bos_token_id
        self.special_ids = frozenset(self.tokenizer.all_special_ids)
        self._known = np.zeros(max(len(self.tokenizer), 1), dtype=bool)
        self._blank = np.zeros_like(self._known)
        self._texts: dict[int, str] = {}

    def is_eos(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Mark tokens that end a sequence; the shape of `ids`."""
        return np.isin(ids, self.eos_ids) if len(self.eos_ids) != 1 else ids == self.eos_ids[0]

    def is_blank(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Mark tokens of whitespace alone; the shape of `ids`."""
        self._learn(ids)
        return self._blank[ids]

    def _learn(self, ids: Ids) -> None:
        if ids.size and ids.max() >= len(self._known):
            grown = int(ids.max()) + 1
            self._known, self._blank = np.resize(self._known, grown), np.resize(self._blank, grown)
            self._known[len(self.tokenizer) :] = False
        seen = np.zeros_like(self._known)
        seen[ids] = True
        new = np.flatnonzero(seen & ~self._known)
        if not len(new):
            return
        texts = self.tokenizer.batch_decode([[index] for index in new.tolist()], clean_up_tokenization_spaces=False)
        special = np.isin(new, [*self.special_ids])
        self._blank[new] = np.array([not text.strip() for text in texts]) & ~special
        self._known[new] = True

    def special_texts(self) -> list[str]:
        """Texts of tokens that control the model: special ones, and added ones of the form `<|name|>`."""
        added = self.tokenizer.added_tokens_decoder.values()
        texts = {token.content for token in added if token.special or _CONTROL.fullmatch(token.content)}
        return sorted(text for text in texts | {*self.tokenizer.all_special_tokens} if text.strip())

    def texts(self, ids: Sequence[int], before: Sequence[int] = ()) -> list[str | None]:
        """Return what each token looks like behind the one in front of it.

        A token that is a part of a character has the character's text if it is its first, and None otherwise. Bytes
        that belong to no character are shown as `<0xE2>`.

        Args:
            ids: of the tokens.
            before: the tokens in front of them, which are not shown.
        """
        alone = [self._alone(index) for index in ids]
        if _BROKEN not in (whole := self._decode(ids)) and "".join(alone) == whole:
            return [*alone]  # of most tokenizers, a token looks the same everywhere
        shown: list[str | None] = []
        context, at = list(before)[-_CONTEXT:], 0
        while at < len(ids):
            text, width = self._piece(ids, at, context)
            shown += [text, *[None] * (width - 1)]
            context, at = [*context, *ids[at : at + width]][-_CONTEXT:], at + width
        return shown

    def _piece(self, ids: Sequence[int], at: int, context: list[int]) -> tuple[str, int]:
        """The text of the tokens that make up the next character or word, and their number."""
        for width in range(1, min(_LONGEST_CHARACTER, len(ids) - at) + 1):
            text = self._behind(context, list(ids[at : at + width]))
            if _BROKEN not in text or self._has_broken(ids[at]):
                return text, width
        if list(ids[at : at + len(self._broken_ids)]) == self._broken_ids:
            return _BROKEN, len(self._broken_ids)
        return _as_bytes(str(self.tokenizer.convert_ids_to_tokens(ids[at]))), 1

    def _behind(self, context: list[int], ids: list[int]) -> str:
        """What tokens add to the text of others; decoders put blanks between words, and leave out the first."""
        while context and self._decode(context).startswith(_BROKEN):  # it begins inside a character
            context = context[1:]
        start = self._decode(context) if context else ""
        whole = self._decode([*context, *ids])
        return whole[len(start) :] if start and whole.startswith(start) else self._decode(ids)

    def _has_broken(self, index: int) -> bool:
        """Whether a token has the replacement character itself, as such or as tokenizers of bytes write it."""
        token = str(self.tokenizer.convert_ids_to_tokens(index))
        return _BROKEN in token or _BROKEN_BYTES in token

    @functools.cached_property
    def _broken_ids(self) -> list[int]:
        """The tokens of a replacement character that is made up of several."""
        ids = self.tokenizer(_BROKEN, add_special_tokens=False)["input_ids"]
        return list(itertools.dropwhile(lambda index: not self._decode([index]).strip(), ids))

    def _alone(self, index: int) -> str:
        if index not in self._texts:
            self._texts[index] = self._decode([index])
        return self._texts[index]

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
