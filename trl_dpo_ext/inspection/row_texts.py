"""What the prompts and sides of rows say, in arrays."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from ..data.batches import DatasetBatch, read_batches
from ..data.rows import SIDES
from .contents import CHARACTERS, Characters, Contents, Keys
from .token_kinds import TokenKinds

Mask = npt.NDArray[np.bool_]
COLUMNS = ("prompt", *SIDES)


@dataclass(frozen=True)
class RowTexts:
    """What rows say; arrays have shape (rows,), (rows, 2), or (rows, 3)."""

    are_texts: bool
    """Whether sides are texts, and not messages."""
    keys: Keys
    """Of prompt and sides, (rows, 3)."""
    scripts: npt.NDArray[np.uint8]
    """Main script of each side, (rows, 2)."""
    characters: dict[str, Mask]
    special: Mask
    """Whether a message, or a side of text, has the text of a special token."""
    special_prompt: Mask
    """Whether a prompt of text has it."""
    role_names: list[str] = field(default_factory=list)
    """Sequences of roles, each joined by blanks; empty for texts."""
    role_codes: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 3), np.int32))
    """The places in `role_names` of prompt and sides, (rows, 3); empty for texts."""

    def roles(self, rows: npt.NDArray[np.int64]) -> Counter[tuple[str, str, str]]:
        """Count the roles of prompt and sides of some rows."""
        if not len(self.role_codes):
            return Counter()
        codes, counts = np.unique(self.role_codes[rows], axis=0, return_counts=True)
        names = self.role_names
        return Counter(
            {(names[a], names[b], names[c]): n for (a, b, c), n in zip(codes.tolist(), counts.tolist(), strict=True)}
        )


@dataclass(frozen=True)
class ListTexts:
    """Where the texts of lists stand: in rows of pairs that hold each completion at least once.

    Attributes:
        dataset: the rows of pairs.
        starts: (lists,); the first row of each list.
    """

    dataset: Dataset
    starts: npt.NDArray[np.int64]

    def spread(self, values: npt.NDArray, of: npt.NDArray, places: npt.NDArray) -> npt.NDArray:
        """Values of the completions of other pairs of the lists, (rows, 2), given those of the rows of pairs.

        Args:
            values: (rows of pairs, 2).
            of: the list of each row.
            places: the places of both completions in their list, (rows, 2).
        """
        return values[self.starts[of][:, None] + places // 2, places % 2]


def read_texts(dataset: Dataset, kinds: TokenKinds, ends: bool = True) -> RowTexts:
    """Read what the rows of a dataset say.

    Args:
        dataset: with prompt and sides.
        kinds: the tokens' meaning.
        ends: whether TRL has appended EOS to texts, which is left out.
    """
    reader = _Reader(kinds, ends)
    for batch in read_batches(dataset, COLUMNS):
        reader.add(batch)
    return reader.read()


class _Reader:
    """Reads what prompts and sides say, batch by batch."""

    def __init__(self, kinds: TokenKinds, ends: bool) -> None:
        self.eos: str | None = kinds.tokenizer.eos_token if ends else None
        self.pattern = "|".join(re.escape(text) for text in kinds.special_texts())
        self.are_texts = False
        self.keys: list[Keys] = [np.zeros((0, 3), "V16")]
        self.scripts: list[npt.NDArray] = [np.zeros((0, 2), np.uint8)]
        self.characters: dict[str, list[Mask]] = {name: [] for name in (*CHARACTERS, "mojibake", "not_nfc")}
        self.special: list[Mask] = [np.zeros(0, bool)]
        self.special_prompt: list[Mask] = [np.zeros(0, bool)]
        self.role_names: dict[str, int] = {}
        self.role_codes: list[npt.NDArray[np.int32]] = [np.zeros((0, 3), np.int32)]

    def add(self, batch: DatasetBatch) -> None:
        contents = [Contents.of(batch, column) for column in COLUMNS]
        contents = [contents[0], *(each.without_ending(self.eos) for each in contents[1:])]
        self.are_texts = contents[1].roles is None
        self.keys.append(np.stack([each.keys() for each in contents], axis=1))
        characters = [Characters.of(each) for each in contents]
        self.scripts.append(np.stack([each.script for each in characters[1:]], axis=1))
        for name, masks in self.characters.items():
            masks.append(np.logical_or.reduce([each.found[name] for each in characters]))
        hits = [each.matching(self.pattern) if self.pattern else np.zeros(each.count, bool) for each in contents]
        in_prompt = hits[0] if contents[0].roles is None else np.zeros(contents[0].count, bool)
        self.special.append(hits[1] | hits[2] | (hits[0] & ~in_prompt))
        self.special_prompt.append(in_prompt)
        if not self.are_texts:
            known = self.role_names
            codes = [[known.setdefault(text, len(known)) for text in each.role_sequences()] for each in contents]
            self.role_codes.append(np.array(codes, np.int32).T)

    def read(self) -> RowTexts:
        return RowTexts(
            self.are_texts,
            np.concatenate(self.keys),
            np.concatenate(self.scripts),
            {name: np.concatenate([np.zeros(0, bool), *masks]) for name, masks in self.characters.items()},
            np.concatenate(self.special),
            np.concatenate(self.special_prompt),
            [*self.role_names],
            np.concatenate(self.role_codes),
        )
