"""Arrange missing sequences in rows and batches: completions share their prompt, rows of similar length a batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .sequences import TokenSequence

_MIN_FILL = 0.9
"""A row that fills less than this share of a batch's width starts the next batch, ..."""
_MIN_BATCH = 0.25
"""... provided that the batch has this share of its maximum positions, so that batches do not become small."""


@dataclass(frozen=True, slots=True)
class PromptRow:
    """Completions of one prompt that go through the model as one row."""

    keys: tuple[bytes, ...]
    sequences: tuple[TokenSequence, ...]

    @property
    def width(self) -> int:
        """Return the token positions of the row: the prompt without its last token, and for each completion that
        token and all of its own but the last."""
        return len(self.sequences[0].prompt) - 1 + sum(len(sequence.completion) for sequence in self.sequences)

    def single(self) -> list[PromptRow]:
        """Split the row into one row per sequence."""
        return [PromptRow((key,), (one,)) for key, one in zip(self.keys, self.sequences, strict=True)]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that are padded to the same width."""

    rows: tuple[PromptRow, ...]

    @property
    def positions(self) -> int:
        """Return the number of token positions, including padding."""
        return len(self.rows) * max(row.width for row in self.rows)

    @property
    def tokens(self) -> int:
        """Return the number of token positions without padding."""
        return sum(row.width for row in self.rows)

    @property
    def scored(self) -> int:
        """Return the number of log-probs that the batch gives."""
        return sum(len(sequence.completion) for row in self.rows for sequence in row.sequences)

    def halves(self) -> list[Batch]:
        """Split the batch into smaller ones; a batch of one sequence stays as it is."""
        if len(self.rows) > 1:
            middle = len(self.rows) // 2
            return [Batch(self.rows[:middle]), Batch(self.rows[middle:])]
        return [Batch((single,)) for row in self.rows for single in row.single()]


def make_batches(missing: Mapping[bytes, TokenSequence], max_tokens: int, hidden_size: int, share: bool) -> list[Batch]:
    """Make batches of at most `max_tokens` positions (or of one longer row), the longest rows first.

    Args:
        missing: sequences by key.
        max_tokens: token positions per batch, padding included.
        hidden_size: of the model; it determines the length above which attention costs more than a shared prompt saves.
        share: whether completions of one prompt may share a row.
    """
    rows = _rows(missing, hidden_size, max_tokens if share else 0)
    # Rows of one sequence need no mask, and attention without one is faster: they get batches without shared rows.
    single = [row for row in rows if len(row.keys) == 1]
    shared = [row for row in rows if len(row.keys) > 1]
    batches = [*_cut(shared, max_tokens), *_cut(single, max_tokens)]
    # Longest first: a batch that does not fit in memory fails at once, and the remaining time is not underestimated.
    return sorted(batches, key=lambda batch: -max(row.width for row in batch.rows))


def _rows(missing: Mapping[bytes, TokenSequence], hidden_size: int, max_width: int) -> list[PromptRow]:
    by_prompt: dict[bytes, list[tuple[bytes, TokenSequence]]] = {}
    for key, sequence in missing.items():
        by_prompt.setdefault(sequence.prompt.tobytes(), []).append((key, sequence))
    rows = []
    for same_prompt in by_prompt.values():
        same_prompt.sort(key=lambda item: len(item[1].completion))
        row = _row(same_prompt[:1])
        for item in same_prompt[1:]:
            alone, together = _row([item]), PromptRow((*row.keys, item[0]), (*row.sequences, item[1]))
            if together.width <= max_width and _cost(together, hidden_size) < _cost(row, hidden_size) + _cost(
                alone, hidden_size
            ):
                row = together
            else:
                rows.append(row)
                row = alone
        rows.append(row)
    return rows


def _row(items: list[tuple[bytes, TokenSequence]]) -> PromptRow:
    return PromptRow(tuple(key for key, _ in items), tuple(sequence for _, sequence in items))


def _cost(row: PromptRow, hidden_size: int) -> float:
    """Count a layer's multiplications, up to a factor: per position about 12 h^2 in weights and 2 h w in attention.

    A causal kernel skips half of the attention; a kernel with an explicit mask does not.
    """
    attention = row.width if len(row.keys) > 1 else row.width / 2
    return row.width * (6 * hidden_size + attention)


def _cut(rows: Iterable[PromptRow], max_tokens: int) -> list[Batch]:
    """Cut rows into batches that are full, or large enough when the next row would need much padding."""
    batches: list[Batch] = []
    current: list[PromptRow] = []
    for row in sorted(rows, key=lambda row: -row.width):  # the first of a batch is its widest
        if current:
            widest, positions = current[0].width, len(current) * current[0].width
            is_full = positions + widest > max_tokens
            if is_full or (row.width < _MIN_FILL * widest and positions > _MIN_BATCH * max_tokens):
                batches.append(Batch(tuple(current)))
                current = []
        current.append(row)
    return [*batches, Batch(tuple(current))] if current else batches
