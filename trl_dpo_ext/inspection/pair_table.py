"""Everything that is measured of one tokenized dataset, pair by pair, in arrays."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from .. import _trl
from ..core.lists import Order
from ..data.batches import read_batches
from ..data.findings import Finding
from ..data.rows import SIDES
from ..forward.list_rows import LIST_IDS
from .contents import Keys
from .examples import Examples
from .pair_measures import PairMeasurer, Rows, Truncation
from .row_texts import ListTexts, RowTexts, read_texts
from .token_kinds import TokenKinds

Mask = npt.NDArray[np.bool_]
PROMPTS_TOKENIZED = 20_000
_PROMPT_COLUMNS = ("prompt", "tools", "chat_template_kwargs")
_ROWS_AT_ONCE = 1000


@dataclass
class Measured:
    """Measures of tokenized examples, whose pairs are the rows."""

    rows: Rows
    examples: Examples
    chain: Rows
    """Pairs that tell what each example's sequences share: one less than it has sequences, neighbors by their tokens;
    the rows themselves where an example is a pair."""
    gaps: npt.NDArray[np.float64] | None = None
    """By how much the score of a chosen completion is higher, (rows,); None for pairs."""

    @classmethod
    def of_pairs(cls, rows: Rows) -> Measured:
        """Each row by itself."""
        return cls(rows, Examples.of_pairs(len(rows)), rows)

    @property
    def whole(self) -> npt.NDArray[np.int64]:
        """Tokens of the longest sequence of each example, before truncation, (examples,)."""
        rows = self.rows
        return self.examples.max(rows.prompt.astype(np.int64) + rows.sides.max(axis=1, initial=0))


@dataclass
class PairTable:
    """Measures of the pairs that are trained, in the order of the dataset; arrays have shape (rows,) or (rows, 2).

    A row is a pair. Of a list, each better completion makes a row with each worse one, and what is counted is lists.
    """

    dataset: Dataset
    """Tokenized, one row for each example."""
    kinds: TokenKinds
    truncation: Truncation
    loaded: int
    """Number of examples before any was dropped."""
    numbers: npt.NDArray[np.int64]
    """Number of each row in the loaded split; the rows of a list have one number."""
    dropped: npt.NDArray[np.int64]
    """Numbers of the examples that were dropped after tokenization."""
    measured: Measured
    texts: RowTexts
    left_out: npt.NDArray[np.int64]
    """Tokens at the end of the prompt that are not in the sequence, of the rows in `tokenized_again`."""
    tokenized_again: npt.NDArray[np.int64]
    """Places of the rows whose prompts were tokenized alone."""
    left_out_texts: Counter[str] = field(default_factory=Counter)
    tails: Counter[tuple[int, ...]] = field(default_factory=Counter)
    list_texts: ListTexts | None = None
    """Where the texts of lists stand; None for pairs."""
    dropped_prompts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Tokens of the prompts that fill `max_length`; empty where they were not counted."""
    dropped_measured: Measured | None = None
    """Measures of what was dropped, whole; None where it was not tokenized."""
    columns: tuple[str, ...] = ()
    """Columns of the loaded split that hold prompt and sides; empty where they are not known."""
    origin: Dataset | None = None
    """The loaded split, whose rows `numbers` counts; None where it is not known."""
    order: Order | None = None
    """What orders the completions of lists; None for pairs."""
    findings: list[Finding] = field(default_factory=list)
    """By what the rules say of the table."""

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.examples)

    @property
    def rows(self) -> Rows:
        """Measures of the rows."""
        return self.measured.rows

    @property
    def examples(self) -> Examples:
        """Which rows belong together."""
        return self.measured.examples

    @property
    def of_lists(self) -> bool:
        """Whether the examples are lists."""
        return self.examples.of_lists

    @property
    def unit(self) -> str:
        """What examples are called."""
        return "lists" if self.of_lists else "rows"

    @property
    def keys(self) -> Keys:
        """What prompt and sides say, (rows, 3)."""
        return self.texts.keys

    @property
    def whole_examples(self) -> npt.NDArray[np.int64]:
        """Tokens of the longest sequence of each example, before truncation: of those kept, and of dropped ones."""
        parts = [self.measured, *filter(None, [self.dropped_measured])]
        return np.concatenate([part.whole for part in parts])

    def spread(self, places: npt.NDArray) -> Mask:
        """Mark some places, (rows,)."""
        mask = np.zeros(len(self.rows), dtype=bool)
        mask[places] = True
        return mask

    def example_keys(self, keys: Keys) -> Keys:
        """A key for all that each example says, given those of its rows, (rows, 3)."""
        joined = np.ascontiguousarray(keys).view(f"V{16 * keys.shape[1]}").reshape(-1)
        if not self.of_lists:
            return joined
        parts = np.split(joined, self.examples.starts[1:])
        digests = [hashlib.blake2b(b"".join(sorted(map(bytes, part))), digest_size=16).digest() for part in parts]
        return np.frombuffer(b"".join(digests), dtype="V16")

    def row(self, place: int) -> dict[str, Any]:
        """The tokenized row of a pair, with the columns of its example."""
        example: dict[str, Any] = self.dataset.with_format(None)[int(self.examples.of[place])]
        if not self.of_lists:
            return example
        sides = {
            _trl.COMPLETION_IDS[side]: example[LIST_IDS][at]
            for side, at in zip(SIDES, self.examples.places[place].tolist(), strict=True)
        }
        return {name: value for name, value in example.items() if name != LIST_IDS} | sides


def pair_table(
    prepared: Dataset,
    kinds: TokenKinds,
    processing_class: Any,
    args: Any,
    loaded: Sequence[int] | npt.NDArray,
    kept: npt.NDArray,
    prompts: int,
) -> PairTable:
    """Measure a tokenized dataset of pairs.

    Args:
        prepared: by TRL.
        kinds: the tokens' meaning.
        processing_class: the run's.
        args: the run's configuration.
        loaded: numbers of the rows before TRL dropped any.
        kept: numbers of the rows that are left.
        prompts: how many prompts are tokenized alone, at most.
    """
    truncation = Truncation.of(args)
    measurer = PairMeasurer(kinds, truncation)
    parts = [measurer.measure(batch) for batch in read_batches(prepared, _trl.TOKEN_IDS)]
    rows = Rows.joined(parts)
    places, left_out, texts = left_out_of_prompts(prepared, processing_class, rows.prompt, prompts)
    return PairTable(
        prepared,
        kinds,
        truncation,
        len(loaded),
        kept,
        np.setdiff1d(np.asarray(loaded, dtype=np.int64), kept),
        Measured.of_pairs(rows),
        read_texts(prepared, kinds),
        left_out,
        places,
        texts,
        measurer.tails,
    )


def left_out_of_prompts(
    prepared: Dataset, processing_class: Any, lengths: npt.NDArray, most: int
) -> tuple[npt.NDArray, npt.NDArray, Counter[str]]:
    """Tokenize prompts alone, and count the tokens at their ends that TRL left out.

    Args:
        prepared: the tokenized rows.
        processing_class: the run's.
        lengths: tokens of their prompts, (rows,).
        most: how many, at most.

    Returns:
        The places of the rows that were looked at, the number of tokens left out of each, and their texts.
    """
    total = len(prepared)
    places = _even(np.arange(total), most)
    kept = lengths[places]
    columns = [name for name in _PROMPT_COLUMNS if name in prepared.column_names]
    plain = prepared.select_columns(columns).with_format(None)
    texts: Counter[str] = Counter()
    missing = np.zeros(len(places), dtype=np.int64)
    tokenizer = _trl.tokenizer_of(processing_class)
    rows = _rows_at(plain, places)
    for at, ids in enumerate(_trl.prompt_tokens(processing_class, rows)):
        missing[at] = len(ids) - kept[at]
        if missing[at]:
            texts[tokenizer.decode(ids[kept[at] :])] += 1
    return places, missing, texts


def whole_rows(prepared: Dataset, kinds: TokenKinds) -> Measured:
    """Measure a dataset of pairs that was tokenized without a limit."""
    measurer = PairMeasurer(kinds, Truncation(None, False))
    rows = Rows.joined([measurer.measure(batch) for batch in read_batches(prepared, _trl.TOKEN_IDS)])
    return Measured.of_pairs(rows)


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
    places = np.unique([*_even(cut, most // 2), *_even(np.arange(len(rows)), most // 2)])
    columns = [LIST_IDS] if table.of_lists else []
    plain = replace(table, dataset=table.dataset.select_columns([*_trl.TOKEN_IDS, *columns]))
    batch = collator([plain.row(int(place)) for place in places])
    scored = batch[_trl.COMPLETION_MASK].numpy().sum(axis=1).reshape(2, -1).T
    fed = batch["attention_mask"].numpy().sum(axis=1).reshape(2, -1).T
    if not (np.array_equal(scored, rows.kept[places]) and np.array_equal(fed, rows.fed[places])):
        raise RuntimeError("TRL's collator truncates sequences otherwise than `Truncation` says.")


def _even(places: npt.NDArray, most: int) -> npt.NDArray:
    if len(places) <= most:
        return places
    return places[np.linspace(0, len(places) - 1, most).astype(np.int64)]
