"""What TRL's collator makes of rows with images, and what a processor makes of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from transformers import image_utils
from trl.trainer import dpo_trainer

from .preparation import DATE, FIXED_DATE


def collates_images(collator: Any) -> bool:
    """Whether a collator is TRL's own for rows with images.

    Seam: `DataCollatorForVisionPreference` reads `prompt`, `chosen`, `rejected`, `image` or `images`, `tools` and
    `chat_template_kwargs`, and cuts a row to its `max_length`, if it has one.
    """
    return type(collator) is dpo_trainer.DataCollatorForVisionPreference


def lacks_image_tokens(error: BaseException) -> bool:
    """Whether a model was given more or fewer images than image tokens.

    Seam: models of transformers say so in an error of these words, which TRL's `compute_loss` looks for, too.
    """
    return "Image features and image tokens do not match" in str(error)


@dataclass(frozen=True)
class ImageTexts:
    """The texts that a processor is given of some rows, before it puts image tokens into them."""

    prompts: list[str]
    chosen: list[str]
    rejected: list[str]


class _TextsAlone:
    """Stands in for a processor: keeps the texts that it is called with, and processes nothing."""

    def __init__(self, processor: Any) -> None:
        self._processor, self.texts = processor, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def __call__(self, *, text: list[str], **_: Any) -> dict[str, torch.Tensor]:
        self.texts.append(list(text))
        nothing = torch.zeros(len(text), 1, dtype=torch.long)
        return {"input_ids": nothing, "attention_mask": torch.ones_like(nothing)}


def texts_beside_images(collator: Any, examples: Sequence[Mapping[str, Any]]) -> ImageTexts:
    """Return the texts of rows as TRL's collator gives them to the processor, without processing an image.

    Seam: `DataCollatorForVisionPreference` calls its `processor` three times, with the prompts of all rows (twice, for
    both sides), with the chosen answers, and with the rejected ones, and changes the examples that it is given.

    Raises:
        ValueError: the number of images is not that of the placeholders in a row's messages.
    """
    stand_in = _TextsAlone(collator.processor)
    replace(collator, processor=stand_in)([dict(example) for example in examples])
    prompts, chosen, rejected = stand_in.texts
    return ImageTexts(prompts[: len(examples)], chosen, rejected)


def date_beside_images(collator: Any, example: Mapping[str, Any]) -> bool:
    """Whether the chat template prints today's date in the texts of a row with images.

    Seam: `strftime_now(format)`, as in `prints_date`; `chat_template_kwargs` may hold a `chat_template`.
    """
    template, given = collator.processor.chat_template, example.get("chat_template_kwargs") or {}
    if not isinstance(template, str) or "strftime_now" not in template or "chat_template" in given:
        return False
    dated = {**example, "chat_template_kwargs": {**given, "chat_template": FIXED_DATE + template}}
    texts = texts_beside_images(collator, [dated])
    return any(DATE in text for side in (texts.prompts, texts.chosen, texts.rejected) for text in side)


def placeholder_problem(prompt: list[dict[str, Any]], images: int) -> str | None:
    """Return why the messages of a prompt do not go with a number of images; None if they do.

    Seam: the collator calls `prepare_multimodal_messages(messages, images)` as found in the trainer's module, which
    raises where the numbers of images and of parts for images differ.
    """
    try:
        dpo_trainer.prepare_multimodal_messages(prompt, images=[None] * images)
    except ValueError as error:
        said = str(error)
        return said[:1].lower() + said[1:].rstrip(".")
    return None


def image_placeholder(processor: Any) -> str | None:
    """The text that a processor replaces by the tokens of one image; None if that is not known.

    Seam: processors keep it as `image_token`.
    """
    token = getattr(processor, "image_token", None)
    return None if token is None else str(token)


def image_tokens(processor: Any, sizes: Sequence[tuple[int, int]]) -> list[int] | None:
    """The number of tokens that a processor makes of images; None if it cannot tell.

    Seam: `_get_num_multimodal_tokens(image_sizes)` gives `num_image_tokens` for sizes of (height, width).

    Args:
        processor: of a vision-language model.
        sizes: (images, 2); height and width of each, in pixels.
    """
    if not sizes:
        return []
    try:
        found = processor._get_num_multimodal_tokens(image_sizes=[list(size) for size in sizes])
        counts = found["num_image_tokens"]
    except Exception:  # of each processor's own code, which not all have
        return None
    return None if counts is None or len(counts) != len(sizes) else [int(count) for count in counts]


def has_image_tokens(processor: Any, ids: Sequence[int]) -> bool:
    """Whether a sequence has tokens of images, as far as that can be told.

    Seam: `image_token_id`, the token that stands for a part of an image. Processors of transformers 5.17 take images
    for which a text has no placeholder, and leave their tokens out.

    Args:
        processor: that made it.
        ids: of the sequence.
    """
    token = getattr(processor, "image_token_id", None)
    return token is None or token in ids


def load_image(source: str) -> Any:
    """Load an image from a path, an address or base64, as processors do that are given a string.

    Seam: `fetch_images` of image processors calls `transformers.image_utils.load_image`.
    """
    return image_utils.load_image(source)


def is_picture(image: Any) -> bool:
    """Whether a value is an image of PIL, which text runs may lack."""
    return image_utils.is_pil_image(image)


def hashed(value: Any) -> str:
    """Hash Python values as `datasets` hashes what is computed of a dataset."""
    return Hasher.hash(value)


def cache_file(dataset: Dataset, fingerprint: str) -> Path:
    """The file in which `datasets` would keep what is computed of a dataset, by the fingerprint of the computation.

    Seam: `_get_cache_file_path`, which gives a temporary file for data in memory.
    """
    return Path(dataset._get_cache_file_path(fingerprint))


def fingerprint(dataset: Dataset) -> str:
    """What `datasets` tells contents and order of datasets apart by.

    Seam: `_fingerprint`, from which TRL, too, names the files of what it computes of a dataset.
    """
    return dataset._fingerprint
