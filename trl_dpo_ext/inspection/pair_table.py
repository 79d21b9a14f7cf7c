"""Everything that is measured of one tokenized dataset, row by row, in arrays."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from .. import _trl
from ..data.batches import DatasetBatch, read_batches
from ..data.findings import Finding
from ..data.rows import SIDES
from .contents import CHARACTERS, Characters, Contents, Keys
from .pair_measures import PairMeasurer, Rows, Truncation
from .token_kinds import TokenKinds

Mask = npt.NDArray[np.bool_]
COLUMNS = ("prompt", *SIDES)
PROMPTS_TOKENIZED = 20_000
_PROMPT_COLUMNS = ("prompt", "tools", "chat_template_kwargs")
_ROWS_AT_ONCE = 1000


@dataclass
class PairTable:
    """Measures of the rows that are trained, in the order of the dataset; arrays have shape (rows,) or (rows, 2)."""

    dataset: Dataset
    """Tokenized by TRL."""
    kinds: TokenKinds
    truncation: Truncation
    loaded: int
    """Number of rows before any was dropped."""
    numbers: npt.NDArray[np.int64]
    """Number of each row in the loaded split."""
    dropped: npt.NDArray[np.int64]
    """Numbers of the rows that TRL dropped."""
    rows: Rows
    are_texts: bool
    """Whether sides are texts, and not messages."""
    keys: Keys
    """What prompt and sides say, (rows, 3)."""
    scripts: npt.NDArray[np.uint8]
    """Main script of each side, (rows, 2)."""
    characters: dict[str, Mask]
    special: Mask
    """Whether a message, or a side of text, has the text of a special token."""
    special_prompt: Mask
    """Whether a prompt of text has it."""
    roles: Counter[tuple[str, str, str]]
    """Roles of prompt and sides, each joined by blanks."""
    tails: Counter[tuple[int, ...]]
    left_out: npt.NDArray[np.int64]
    """Tokens at the end of the prompt that are not in the sequence, of the rows in `tokenized_again`."""
    tokenized_again: npt.NDArray[np.int64]
    """Places of the rows whose prompts were tokenized alone."""
    left_out_texts: Counter[str] = field(default_factory=Counter)
    dropped_prompts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Tokens of the prompts of dropped rows; empty where they were not counted."""
    dropped_rows: Rows | None = None
    """Measures of the dropped rows, whole; None where they were not tokenized."""
    columns: tuple[str, ...] = ()
    """Columns of the loaded split that hold prompt and sides; empty where they are not known."""
    findings: list[Finding] = field(default_factory=list)
    """By what the rules say of the table."""

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def whole_pairs(self) -> npt.NDArray[np.int64]:
        """Tokens of the longer sequence of each row, before truncation: of rows that are kept, and of dropped ones."""
        every = self.measured
        return every.prompt.astype(np.int64) + every.sides.max(axis=1) if len(every) else np.zeros(0, dtype=np.int64)

    @property
    def measured(self) -> Rows:
        """Measures of the rows that are kept, and of dropped ones where they were tokenized."""
        return self.rows if self.dropped_rows is None else Rows.joined([self.rows, self.dropped_rows])

    def spread(self, places: npt.NDArray) -> Mask:
        """Mark some places, (rows,)."""
        mask = np.zeros(len(self), dtype=bool)
        mask[places] = True
        return mask


def pair_table(
    prepared: Dataset,
    kinds: TokenKinds,
    processing_class: Any,
    args: Any,
    loaded: Sequence[int] | npt.NDArray,
    kept: npt.NDArray,
    prompts: int,
) -> PairTable:
    """Measure a tokenized dataset.

    Args:
        prepared: by TRL.
        kinds: the tokens' meaning.
        processing_class: the run's.
        args: the run's configuration.
        loaded: numbers of the rows before TRL dropped any.
        kept: numbers of the rows that are left.
        prompts: how many prompts are tokenized alone, at most.
    """
    truncation = Truncation(args.max_length, args.truncation_mode == "keep_end")
    measurer = PairMeasurer(kinds, truncation)
    reader = _Reader(kinds)
    parts: list[Rows] = []
    for batch in read_batches(prepared, [*_trl.TOKEN_IDS, *COLUMNS]):
        parts.append(measurer.measure(batch))
        reader.add(batch)
    places, left_out, texts = _left_out(prepared, processing_class, parts, prompts)
    return PairTable(
        prepared,
        kinds,
        truncation,
        len(loaded),
        kept,
        np.setdiff1d(np.asarray(loaded, dtype=np.int64), kept),
        Rows.joined(parts),
        reader.are_texts,
        np.concatenate(reader.keys),
        np.concatenate(reader.scripts),
        {name: np.concatenate(masks) for name, masks in reader.characters.items()},
        np.concatenate(reader.special),
        np.concatenate(reader.special_prompt),
        reader.roles,
        measurer.tails,
        left_out,
        places,
        texts,
    )


class _Reader:
    """Reads what prompts and sides say, batch by batch."""

    def __init__(self, kinds: TokenKinds) -> None:
        self.eos: str | None = kinds.tokenizer.eos_token
        self.pattern = "|".join(re.escape(text) for text in kinds.special_texts())
        self.are_texts = False
        self.keys: list[Keys] = []
        self.scripts: list[npt.NDArray] = []
        self.characters: dict[str, list[Mask]] = {name: [] for name in (*CHARACTERS, "mojibake", "not_nfc")}
        self.special: list[Mask] = []
        self.special_prompt: list[Mask] = []
        self.roles: Counter[tuple[str, str, str]] = Counter()

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
            self.roles.update(zip(*(each.role_sequences() for each in contents), strict=True))


def _left_out(
    prepared: Dataset, processing_class: Any, parts: list[Rows], most: int
) -> tuple[npt.NDArray, npt.NDArray, Counter[str]]:
    """Tokenize prompts alone, and count the tokens at their ends that TRL left out."""
    total = len(prepared)
    places = _even(np.arange(total), most)
    kept = np.concatenate([part.prompt for part in parts])[places]
    columns = [name for name in _PROMPT_COLUMNS if name in prepared.column_names]
    plain = prepared.select_columns(columns).with_format(None)
    texts: Counter[str] = Counter()
    lengths = np.zeros(len(places), dtype=np.int64)
    tokenizer = _trl.tokenizer_of(processing_class)
    rows = _rows_at(plain, places)
    for at, ids in enumerate(_trl.prompt_tokens(processing_class, rows)):
        lengths[at] = len(ids) - kept[at]
        if lengths[at]:
            texts[tokenizer.decode(ids[kept[at] :])] += 1
    return places, lengths, texts


def whole_rows(prepared: Dataset, kinds: TokenKinds) -> Rows:
    """Measure a dataset that was tokenized without a limit."""
    measurer = PairMeasurer(kinds, Truncation(None, False))
    return Rows.joined([measurer.measure(batch) for batch in read_batches(prepared, _trl.TOKEN_IDS)])


def alone_lengths(dataset: Dataset, places: npt.NDArray, processing_class: Any) -> npt.NDArray[np.int64]:
    """Count the tokens of some prompts, tokenized alone, (places,).

    Args:
        dataset: with a column `prompt`, not tokenized.
        places: of the rows.
        processing_class: the run's.
    """
    columns = [name for name in _PROMPT_COLUMNS if name in dataset.column_names]
    rows = _rows_at(dataset.select_columns(columns).with_format(None), places)
    return np.array([len(ids) for ids in _trl.prompt_tokens(processing_class, rows)], dtype=np.int64)


def _rows_at(dataset: Dataset, places: npt.NDArray) -> Iterator[dict[str, Any]]:
    for start in range(0, len(places), _ROWS_AT_ONCE):
        some = dataset[places[start : start + _ROWS_AT_ONCE].tolist()]
        for values in zip(*some.values(), strict=True):
            yield dict(zip(some, values, strict=True))


def check_truncation(table: PairTable, collator: Any, most: int = 256) -> None:
    """Compare what is measured with the batch that TRL's collator builds, on some rows; cut ones first.

    Args:
        table: with at least one row.
        collator: TRL's.
        most: how many rows, at most.

    Raises:
        RuntimeError: they differ.
    """
    rows = table.rows
    cut = np.flatnonzero((rows.cut > 0).any(axis=1))
    places = np.unique([*_even(cut, most // 2), *_even(np.arange(len(table)), most // 2)])
    plain = table.dataset.select_columns([*_trl.TOKEN_IDS]).with_format(None)
    batch = collator([plain[int(place)] for place in places])
    scored = batch[_trl.COMPLETION_MASK].numpy().sum(axis=1).reshape(2, -1).T
    fed = batch["attention_mask"].numpy().sum(axis=1).reshape(2, -1).T
    if not (np.array_equal(scored, rows.kept[places]) and np.array_equal(fed, rows.fed[places])):
        raise RuntimeError("TRL's collator truncates sequences otherwise than `Truncation` says.")


def _even(places: npt.NDArray, most: int) -> npt.NDArray:
    if len(places) <= most:
        return places
    return places[np.linspace(0, len(places) - 1, most).astype(np.int64)]
