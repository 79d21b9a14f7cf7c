"""In which rows and batches missing sequences are computed: each prompt once, rows of like length together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .sequences import Sequence

_LEAST_FILLED = 0.9
"""A row that would fill less of a batch's width begins another batch, ..."""
_LARGE_ENOUGH = 0.25
"""... once the batch has this share of the positions it may have, so that batches do not get small."""


@dataclass(frozen=True, slots=True)
class Row:
    """Sequences of one prompt that go through the model as one row."""

    keys: tuple[bytes, ...]
    sequences: tuple[Sequence, ...]

    @property
    def width(self) -> int:
        """Token positions of the row: the prompt but its last token, and for each completion that token and its own
        but the last."""
        return len(self.sequences[0].prompt) - 1 + sum(len(sequence.completion) for sequence in self.sequences)

    def single(self) -> list[Row]:
        """Each sequence in a row of its own."""
        return [Row((key,), (one,)) for key, one in zip(self.keys, self.sequences, strict=True)]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that are padded to one width."""

    rows: tuple[Row, ...]

    @property
    def positions(self) -> int:
        """Token positions fed, padding included."""
        return len(self.rows) * max(row.width for row in self.rows)

    @property
    def tokens(self) -> int:
        """Token positions fed that are not padding."""
        return sum(row.width for row in self.rows)

    @property
    def scored(self) -> int:
        """Log-probs computed."""
        return sum(len(sequence.completion) for row in self.rows for sequence in row.sequences)

    def halves(self) -> list[Batch]:
        """The same work in smaller batches; itself alone where it is one sequence."""
        if len(self.rows) > 1:
            middle = len(self.rows) // 2
            return [Batch(self.rows[:middle]), Batch(self.rows[middle:])]
        return [Batch((single,)) for row in self.rows for single in row.single()]


def make_batches(missing: Mapping[bytes, Sequence], max_tokens: int, hidden_size: int, share: bool) -> list[Batch]:
    """Batches of at most `max_tokens` positions (or of one row that is longer), the longest rows first.

    Args:
        missing: the sequences by key.
        max_tokens: token positions per batch, padding included.
        hidden_size: of the model; it tells from which length attention outweighs what sharing a prompt saves.
        share: whether completions of one prompt may share a row.
    """
    rows = _rows(missing, hidden_size, max_tokens if share else 0)
    # Rows of one sequence need no mask, and attention without one is faster; they keep to themselves.
    plain = [row for row in rows if len(row.keys) == 1]
    shared = [row for row in rows if len(row.keys) > 1]
    batches = [*_cut(shared, max_tokens), *_cut(plain, max_tokens)]
    # Longest first: what does not fit in memory shows at once, and the time left is never promised too short.
    return sorted(batches, key=lambda batch: -max(row.width for row in batch.rows))


def _rows(missing: Mapping[bytes, Sequence], hidden_size: int, max_width: int) -> list[Row]:
    by_prompt: dict[bytes, list[tuple[bytes, Sequence]]] = {}
    for key, sequence in missing.items():
        by_prompt.setdefault(sequence.prompt.tobytes(), []).append((key, sequence))
    rows = []
    for same_prompt in by_prompt.values():
        same_prompt.sort(key=lambda item: len(item[1].completion))
        row = _row(same_prompt[:1])
        for item in same_prompt[1:]:
            alone, together = _row([item]), Row((*row.keys, item[0]), (*row.sequences, item[1]))
            if together.width <= max_width and _cost(together, hidden_size) < _cost(row, hidden_size) + _cost(
                alone, hidden_size
            ):
                row = together
            else:
                rows.append(row)
                row = alone
        rows.append(row)
    return rows


def _row(items: list[tuple[bytes, Sequence]]) -> Row:
    return Row(tuple(key for key, _ in items), tuple(sequence for _, sequence in items))


def _cost(row: Row, hidden_size: int) -> float:
    """Multiplications of a layer, up to a factor: about 12 h^2 in weights and 2 h w in attention for each position.

    A kernel that knows the row to be causal skips half of the attention; one that is given a mask does not.
    """
    attention = row.width if len(row.keys) > 1 else row.width / 2
    return row.width * (6 * hidden_size + attention)


def _cut(rows: Iterable[Row], max_tokens: int) -> list[Batch]:
    """Batches that are full, or of some size and about to be padded by much."""
    batches: list[Batch] = []
    current: list[Row] = []
    for row in sorted(rows, key=lambda row: -row.width):  # the first of a batch is its widest
        if current:
            widest, fed = current[0].width, len(current) * current[0].width
            full = fed + widest > max_tokens
            if full or (row.width < _LEAST_FILLED * widest and fed > _LARGE_ENOUGH * max_tokens):
                batches.append(Batch(tuple(current)))
                current = []
        current.append(row)
    return [*batches, Batch(tuple(current))] if current else batches
