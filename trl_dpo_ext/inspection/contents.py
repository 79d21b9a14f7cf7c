"""Read what prompts and answers say, column by column: roles, keys to compare rows by, damaged text, scripts."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..data import columnar
from ..data.batches import DatasetBatch
from ..data.columnar import pc

Mask = npt.NDArray[np.bool_]
Keys = npt.NDArray[np.void]

_MOJIBAKE = "[\u00c2\u00c3\u00d0\u00d1\u00e2\u00f0][^\\x00-\\x7f]"
_SPACE = r"\s+"


@dataclass(frozen=True)
class Contents:
    """What one column of a batch says: texts, or the contents of messages one after the other."""

    count: int
    """Number of rows."""
    texts: pa.Array
    """(messages,) strings, without nulls; one for each row where the column holds text."""
    rows: npt.NDArray[np.int64]
    """The row of each message, (messages,)."""
    roles: pa.Array | None
    """(messages,) strings; None where the column holds text."""

    @classmethod
    def of(cls, batch: DatasetBatch, column: str) -> Contents:
        """Read a column."""
        array = batch.column(column)
        count = len(array)
        if columnar.is_text(array.type):
            return cls(count, pc.fill_null(array.cast(pa.large_string()), ""), np.arange(count), None)
        try:
            return cls._of_messages(array)
        except (columnar.UnknownLayoutError, KeyError, pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return cls._of_rows([row[column] for row in batch.rows(column)])

    @classmethod
    def _of_messages(cls, array: Any) -> Contents:
        lengths = columnar.list_lengths(array)
        messages = array.flatten()
        if not pa.types.is_struct(messages.type):
            raise columnar.UnknownLayoutError("messages")
        fields = columnar.fields(messages)
        if set(fields) != {"role", "content"}:
            raise columnar.UnknownLayoutError("more than text")
        texts, roles = (fields[name].cast(pa.large_string()) for name in ("content", "role"))
        rows = np.repeat(np.arange(len(array)), lengths)
        return cls(len(array), pc.fill_null(texts, ""), rows, pc.fill_null(roles, ""))

    @classmethod
    def _of_rows(cls, values: list[Any]) -> Contents:
        texts: list[str] = []
        roles: list[str] = []
        rows: list[int] = []
        for row, value in enumerate(values):
            for message in value if isinstance(value, list) else [{"role": "", "content": value}]:
                texts.append(_said(message))
                roles.append(str(message.get("role") or ""))
                rows.append(row)
        strings = [pa.array(each, pa.large_string()) for each in (texts, roles)]
        return cls(len(values), strings[0], np.array(rows, dtype=np.int64), strings[1])

    def without_ending(self, ending: str | None) -> Contents:
        """Leave out one ending of texts: the EOS that TRL appends to them."""
        if self.roles is not None or not ending:
            return self
        ends = pc.ends_with(self.texts, pattern=ending)
        cut = pc.utf8_slice_codeunits(self.texts, 0, -len(ending))
        return Contents(self.count, pc.if_else(ends, cut, self.texts), self.rows, None)

    def in_rows(self, messages: Any) -> Mask:
        """Mark rows with a marked message, (rows,)."""
        found = np.zeros(self.count, dtype=bool)
        found[self.rows[np.asarray(messages, dtype=bool)]] = True
        return found

    def matching(self, pattern: str) -> Mask:
        """Mark rows in which a regular expression of RE2 occurs, (rows,)."""
        found = pc.match_substring_regex(self.texts, pattern=pattern)
        return self.in_rows(found.to_numpy(zero_copy_only=False))

    def role_sequences(self) -> list[str]:
        """The roles of each row's messages, joined by blanks; empty for texts."""
        if self.roles is None:
            return [""] * self.count
        return self._joined(self.roles, " ").to_pylist()

    def keys(self, loose: bool = False, fold: bool = False) -> Keys:
        """A key of 16 bytes for what each row says, (rows,): roles and contents, in Unicode's NFC.

        Args:
            loose: whether whitespace counts as one blank, and not at all at the ends.
            fold: whether upper and lower case are the same.
        """
        texts = self.texts
        texts = _composed(texts)
        if loose:
            texts = pc.utf8_trim_whitespace(pc.replace_substring_regex(texts, pattern=_SPACE, replacement=" "))
        if fold:
            texts = pc.utf8_lower(texts)
        if self.roles is not None:
            texts = self._joined(pc.binary_join_element_wise(self.roles, texts, _scalar("\x01")), "\x02")
        return _hashes(texts)

    def _joined(self, strings: Any, separator: str) -> pa.Array:
        offsets = np.searchsorted(self.rows, np.arange(self.count + 1)).astype(np.int64)
        strings = pc.cast(strings, pa.large_string())
        return pc.binary_join(pa.LargeListArray.from_arrays(pa.array(offsets), strings), _scalar(separator))


def _composed(texts: Any) -> Any:
    """Texts in Unicode's NFC; by Python, because Arrow's function gives NFD for NFC in some versions (21)."""
    others = pc.invert(pc.string_is_ascii(texts))
    if not pc.any(others).as_py():
        return texts
    composed = [unicodedata.normalize("NFC", text) for text in texts.filter(others).to_pylist()]
    return pc.replace_with_mask(texts, others, pa.array(composed, pa.large_string()))


def _scalar(text: str) -> Any:
    return pa.scalar(text, pa.large_string())


def _said(message: Any) -> str:
    """The content of a message as text; with its other fields where it has some."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    rest = {key: value for key, value in message.items() if key not in ("role", "content") and value}
    text = "" if content is None else str(content)
    return text + (json.dumps(rest, ensure_ascii=False, sort_keys=True, default=str) if rest else "")


def _hashes(texts: Any) -> Keys:
    _, offsets, data = texts.buffers()
    places = np.frombuffer(offsets, dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1].tolist()
    view = memoryview(data or b"")
    digests = [hashlib.blake2b(view[start:end], digest_size=16).digest() for start, end in itertools.pairwise(places)]
    return np.frombuffer(b"".join(digests), dtype="V16")


# --- characters ---

SCRIPTS = ("none", "Latin", "Cyrillic", "Han", "Kana", "Hangul", "Arabic", "Devanagari", "other")
_RANGES = {
    "Latin": [(0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x24F), (0x1E00, 0x1EFF), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A)],
    "Cyrillic": [(0x400, 0x52F), (0x1C80, 0x1C8F), (0x2DE0, 0x2DFF), (0xA640, 0xA69F)],
    "Han": [(0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF)],
    "Kana": [(0x3041, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F)],
    "Hangul": [(0x1100, 0x11FF), (0x3130, 0x318F), (0xAC00, 0xD7AF)],
    "Arabic": [(0x620, 0x64A), (0x66E, 0x6D3), (0x750, 0x77F), (0x8A0, 0x8C9), (0xFB50, 0xFDFB), (0xFE70, 0xFEFC)],
    "Devanagari": [(0x900, 0x963), (0x971, 0x97F), (0xA8E0, 0xA8FF)],
    # other alphabets: Greek, Armenian, Hebrew, scripts of India and South-East Asia, Georgian, Ethiopic, ...
    "other": [(0x370, 0x3FF), (0x531, 0x587), (0x5D0, 0x5F2), (0x710, 0x74F), (0x980, 0x10FF), (0x1200, 0x1C7F)],
}
_JAPANESE = (SCRIPTS.index("Han"), SCRIPTS.index("Kana"))


def scripts_differ(left: npt.NDArray, right: npt.NDArray) -> Mask:
    """Whether two texts have different main scripts, by their places in `SCRIPTS`; Japanese is written in two."""
    japanese = np.isin(left, _JAPANESE) & np.isin(right, _JAPANESE)
    return (left != right) & (left > 0) & (right > 0) & ~japanese


DAMAGE = {"replacement": [(0xFFFD, 0xFFFD)], "nul": [(0, 0)]}
"""Characters that stand where a text was damaged."""
INVISIBLE = {
    "zero_width": [(0x200B, 0x200B), (0x2060, 0x2060)],
    "bidirectional": [(0x202A, 0x202E), (0x2066, 0x2069)],
    "bom": [(0xFEFF, 0xFEFF)],
}
CHARACTERS = {**DAMAGE, **INVISIBLE}


def _table() -> npt.NDArray[np.uint8]:
    """Script of each code point in the lower half, kind of `CHARACTERS` in the upper half of a byte."""
    table = np.zeros(0x110000, dtype=np.uint8)
    for script, ranges in _RANGES.items():
        for first, last in ranges:
            table[first : last + 1] = SCRIPTS.index(script)
    for number, ranges in enumerate(CHARACTERS.values(), 1):
        for first, last in ranges:
            table[first : last + 1] = number << 4
    return table


_TABLE = _table()


@dataclass(frozen=True)
class Characters:
    """What the characters of a column are, row by row."""

    script: npt.NDArray[np.uint8]
    """Place in `SCRIPTS` of the script of most letters, (rows,)."""
    found: dict[str, Mask]
    """By kind of `CHARACTERS`, and `mojibake` and `not_nfc`: the rows that have it, (rows,)."""

    @classmethod
    def of(cls, contents: Contents) -> Characters:
        """Look at every character that is not ASCII."""
        texts = contents.texts
        ascii_only = pc.string_is_ascii(texts).to_numpy(zero_copy_only=False)
        letters = np.zeros((contents.count, len(SCRIPTS)), dtype=np.int64)
        latin = SCRIPTS.index("Latin")
        spoken = ascii_only & pc.match_substring_regex(texts, pattern="[A-Za-z]").to_numpy(zero_copy_only=False)
        lengths = pc.binary_length(texts).to_numpy(zero_copy_only=False)
        # An ASCII text counts by its length: whatever letters it has are Latin.
        np.add.at(letters[:, latin], contents.rows[spoken], lengths[spoken])
        found = {name: np.zeros(contents.count, dtype=bool) for name in (*CHARACTERS, "mojibake", "not_nfc")}
        found["nul"] |= contents.in_rows(pc.match_substring(texts, pattern="\x00").to_numpy(zero_copy_only=False))
        others = np.flatnonzero(~ascii_only)
        if len(others):
            cls._look(texts.take(pa.array(others)), contents.rows[others], letters, found)
        script = np.where(letters[:, 1:].any(axis=1), letters[:, 1:].argmax(axis=1) + 1, 0)
        return cls(script.astype(np.uint8), found)

    @staticmethod
    def _look(texts: Any, rows: npt.NDArray, letters: npt.NDArray, found: dict[str, Mask]) -> None:
        pieces = texts.to_pylist()
        joined = "".join(pieces)
        points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        lengths = pc.utf8_length(texts).to_numpy(zero_copy_only=False)
        of_point = np.repeat(rows, lengths)
        kinds = _TABLE[points]
        scripts = kinds & 15
        width = len(SCRIPTS)
        letters += np.bincount(of_point * width + scripts, minlength=len(letters) * width).reshape(-1, width)
        letters[:, 0] = 0
        for number, name in enumerate(CHARACTERS, 1):
            found[name][of_point[(kinds >> 4) == number]] = True
        changed = [not unicodedata.is_normalized("NFC", text) for text in pieces]
        found["not_nfc"][rows[changed]] = True
        hits = np.flatnonzero(pc.match_substring_regex(texts, pattern=_MOJIBAKE).to_numpy(zero_copy_only=False))
        for place, text in zip(hits.tolist(), texts.take(pa.array(hits)).to_pylist(), strict=True):
            found["mojibake"][rows[place]] |= is_mojibake(text)


_FOLLOWING = "\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u203a\u20ac\u2122"
"""What cp1252 reads the bytes behind the first of a character as."""
_QUOTES = "\u2013\u2014\u2018-\u201e\u2022\u2026\u2030\u2039\u203a"
"""Those of them that stand behind a word, too; a letter has to follow."""
_SUSPECT = re.compile(
    rf"\u00c3(?:(?![{_QUOTES}])[{_FOLLOWING}]|[{_QUOTES}](?=\w))|\u00c2[\u00a0-\u00bf]|\u00e2[{_FOLLOWING}]{{2}}"
    rf"|\u00f0[{_FOLLOWING}]{{3}}"
    rf"|(?:[\u00d0\u00d1][{_FOLLOWING}]){{2,}}"
)


def is_mojibake(text: str) -> bool:
    """Whether some characters of a text are UTF-8 that was read as cp1252.

    >>> is_mojibake("don\u00e2\u20ac\u2122t"), is_mojibake("N\u00c3O")
    (True, False)
    """
    return any(_reread(piece) for piece in _SUSPECT.findall(text))


def _reread(piece: str) -> bool:
    for start in range(len(piece) - 1):
        for end in range(start + 2, min(start + 5, len(piece) + 1)):
            data = bytearray()
            for character in piece[start:end]:
                try:
                    data += character.encode("cp1252")
                except UnicodeEncodeError:
                    if ord(character) > 255:
                        break
                    data.append(ord(character))
            try:
                if len(data) == end - start and len(data.decode("utf-8")) == 1:
                    return True
            except UnicodeDecodeError:
                continue
    return False
