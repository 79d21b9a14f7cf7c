"""Arrange rows with images in batches, which the collator makes both sides of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from .image_rows import ImageRows


@dataclass(frozen=True)
class ImageBatch:
    """Rows that go through the model together, chosen and rejected side of each."""

    part: ImageRows
    """The rows; none if the batch is only there to keep other processes company."""
    collated: Mapping[str, Any] | None = None
    """What the collator made of them; None as long as it was not called."""

    @property
    def size(self) -> int:
        """Number of rows of the dataset."""
        return len(self.part.rows)

    @property
    def images(self) -> int:
        """Number of images of these rows."""
        return int(self.part.images.sum())

    @property
    def positions(self) -> int:
        """Number of token positions, padding included."""
        return 2 * self.size * int(self.part.tokens.max(initial=0))

    @property
    def tokens(self) -> int:
        """Number of token positions as if both sides of a row were as long as its longer one."""
        return 2 * int(self.part.tokens.sum())

    @property
    def sides(self) -> int:
        """Number of sequences that the store lacks."""
        return int(self.part.lacking.sum())

    @property
    def scored(self) -> int:
        """Number of log-probs that the store lacks."""
        return int(self.part.scored[self.part.lacking].sum())

    def halves(self) -> list[ImageBatch]:
        """Split the batch into two; a batch of one row stays as it is."""
        middle = self.size // 2
        parts = (slice(None, middle), slice(middle, None)) if middle else (slice(None),)
        return [ImageBatch(chosen_rows(self.part, part)) for part in parts]

    def too_large(self, max_tokens: int) -> str:
        """Say that the batch ran out of memory, and what to set below `max_tokens`."""
        smaller = "let the processor make smaller images (such as max_pixels, or size), or lower max_length."
        if self.size > 1:
            smaller = f"Set --precompute_ref_max_tokens below {min(max_tokens, self.positions)}, {smaller}"
        rows = "one row" if self.size == 1 else f"{self.size} rows"
        return (
            f"The reference pass ran out of memory on {rows} with {self.images} images, {self.positions} token "
            f"positions. {smaller[0].upper()}{smaller[1:]}"
        )


def chosen_rows(rows: ImageRows, chosen: Any) -> ImageRows:
    """Some of the rows, by a slice, a mask, or their places."""
    return ImageRows(*(getattr(rows, field.name)[chosen] for field in fields(rows)))


def make_image_batches(rows: ImageRows, max_tokens: int) -> list[ImageBatch]:
    """Make batches of at most `max_tokens` positions (or of one longer row), the longest rows first."""
    ordered = chosen_rows(rows, np.argsort(-rows.tokens, kind="stable"))
    batches, start = [], 0
    while start < len(ordered.rows):  # the first of a batch is its longest
        end = start + max(max_tokens // (2 * max(int(ordered.tokens[start]), 1)), 1)
        batches.append(ImageBatch(chosen_rows(ordered, slice(start, end))))
        start = end
    return batches
