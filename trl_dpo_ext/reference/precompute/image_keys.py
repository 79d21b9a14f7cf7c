"""What rows with images are found by: the tokens of their texts, the content of their images, and `max_length`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ... import _trl
from ...errors import InputError
from ..store.keys import image_sequence_key, pack_keys
from .image_content import ImageContent, described_type, image_content

_TOKENS_OF_UNKNOWN = 576
"""Tokens that an image is taken to have where its processor cannot tell: those of 24 x 24 patches."""


@dataclass(frozen=True)
class ImageKeys:
    """What some rows are found by, in their order.

    Attributes:
        keys: (rows, 2, 2) uint64; the packed keys of both sides, the chosen one first.
        tokens: (rows,) int32; positions of the longer side with image tokens, which order batches.
        images: (rows,) int32; images of the row.
        answers: (rows, 2) int32; tokens of both answers.
        scored: (rows, 2) int32; how many of them `max_length` leaves behind prompt and images.
        alike: (rows,) bool; whether what it leaves of both answers is the same, though the answers are not.
    """

    keys: np.ndarray
    tokens: np.ndarray
    images: np.ndarray
    answers: np.ndarray
    scored: np.ndarray
    alike: np.ndarray

    @classmethod
    def zeros(cls, rows: int) -> ImageKeys:
        """Rows that are not known yet."""
        counts, pairs = np.zeros(rows, np.int32), np.zeros((rows, 2), np.int32)
        return cls(np.zeros((rows, 2, 2), np.uint64), counts, counts.copy(), pairs, pairs.copy(), np.zeros(rows, bool))

    def put(self, places: Sequence[int], known: ImageKeys) -> None:
        """Set some rows.

        Args:
            places: of the rows.
            known: what they are found by.
        """
        for each in fields(self):
            getattr(self, each.name)[places] = getattr(known, each.name)

    @classmethod
    def joined(cls, several: Sequence[ImageKeys]) -> ImageKeys:
        """Join rows in their order."""
        parts = [cls.zeros(0), *several]
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    @classmethod
    def of(
        cls, examples: Sequence[Mapping[str, Any]], contents: Sequence[Sequence[ImageContent]], collator: Any
    ) -> ImageKeys:
        """Compute the keys of rows; the arguments and errors are those of `with_placeholders`."""
        return cls.with_placeholders(examples, contents, collator)[0]

    @classmethod
    def with_placeholders(
        cls, examples: Sequence[Mapping[str, Any]], contents: Sequence[Sequence[ImageContent]], collator: Any
    ) -> tuple[ImageKeys, list[int | None]]:
        """Compute the keys of rows, and count the placeholders for images in their texts, None where not known.

        Args:
            examples: the rows as the collator is given them; it has not seen them yet.
            contents: of each row's images.
            collator: TRL's for images.

        Raises:
            ValueError: the number of images is not that of the placeholders in a row's messages.
        """
        if not examples:
            return cls.zeros(0), []
        texts = _trl.texts_beside_images(collator, [_stand_in(*each) for each in zip(examples, contents, strict=True)])
        several = (texts.prompts, texts.chosen, texts.rejected)
        tokenizer, most = _trl.tokenizer_of(collator.processor), collator.max_length
        prompts, chosen, rejected = (tokenizer(text=each, add_special_tokens=False)["input_ids"] for each in several)
        keys, lengths, alike = [], [], []
        for prompt, *sides, images in zip(prompts, chosen, rejected, contents, strict=True):
            digests = [image.digest for image in images]
            keys += [image_sequence_key(prompt, side, digests, most) for side in sides]
            before = len(prompt) + _positions(collator.processor, images)
            lengths.append((before, *map(len, sides)))
            left = sides if most is None else [side[: max(most - before, 0)] for side in sides]
            alike.append(left[0] == left[1] and sides[0] != sides[1])
        before, answers = np.split(np.array(lengths, np.int32), [1], axis=1)
        limit = np.iinfo(np.int32).max if most is None else most
        found = cls(
            pack_keys(keys).reshape(-1, 2, 2),
            np.minimum(before[:, 0] + answers.max(axis=1), limit),
            np.array([len(images) for images in contents], np.int32),
            answers,
            np.clip(limit - before, 0, answers),
            np.array(alike, bool),
        )
        mark = _trl.image_placeholder(collator.processor)
        counts = [None if mark is None else sum(text.count(mark) for text in row) for row in zip(*several, strict=True)]
        return found, counts


def keys_of(examples: Sequence[Mapping[str, Any]], collator: Any) -> ImageKeys:
    """Compute the keys of decoded rows, before the collator changes them.

    Raises:
        InputError: an image is not readable.
    """
    return ImageKeys.of(examples, [[image_content(image) for image in images_of(row)] for row in examples], collator)


def images_of(row: Mapping[str, Any]) -> list[Any]:
    """The images of a row, in the order in which TRL's collator gives them to the processor.

    Raises:
        InputError: the row's images are no list.
    """
    column = _trl.image_columns(row)[0]
    if column == "image":
        return [row[column]]
    images = row[column]
    if not isinstance(images, (list, tuple)):
        raise InputError(
            "images is None. Give an empty list to a row without images."
            if images is None
            else f"images is not a list. Give a list of images, or name the column image. ({described_type(images)})"
        )
    return list(images)


def _stand_in(row: Mapping[str, Any], contents: Sequence[ImageContent]) -> dict[str, Any]:
    """A row with words in the place of its images, which templates count and do not print."""
    column = _trl.image_columns(row)[0]
    return {**row, column: "image" if column == "image" else ["image"] * len(contents)}


def _positions(processor: Any, images: Sequence[ImageContent]) -> int:
    """The positions that images add to those of their placeholders."""
    counts = _trl.image_tokens(processor, [image.size for image in images])
    return sum(counts or [_TOKENS_OF_UNKNOWN] * len(images)) - len(images)
