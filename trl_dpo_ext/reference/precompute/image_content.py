"""Hash what an image shows: two images are the same if and only if their decoded pixels are.

The file that held the pixels does not count, nor does its name. Another decoder of JPEG may give other pixels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ... import _trl
from ...errors import InputError

HASH_BYTES = 16
UNREADABLE = "an image cannot be decoded ({}). Remove the row, or replace the image."
_PERSON = b"trl_dpo_ext.pic1"  # another meaning of the hash needs another name here


_ORIENTATION = 0x0112  # the tag of EXIF


@dataclass(frozen=True, slots=True)
class ImageContent:
    """What a key needs to know of an image."""

    digest: bytes
    """`HASH_BYTES` that are equal for equal pixels."""
    size: tuple[int, int]
    """Height and width in pixels."""


def image_content(image: Any) -> ImageContent:
    """Hash an image as the processor is given it: a PIL image, an array, a tensor, or a string that names one.

    Args:
        image: a PIL image counts by mode, size, pixels, palette and transparency, and by an orientation that is not
            applied yet; an array or tensor by dtype, shape and values.

    Raises:
        InputError: the image is of another type, or cannot be decoded.
    """
    try:
        if isinstance(image, str):
            image = _trl.load_image(image)
        if _trl.is_picture(image):
            return _of_picture(image)
    except Exception as error:  # decoders raise errors of many kinds
        raise InputError(UNREADABLE.format(type(error).__name__)) from error
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        values = image.contiguous().view(torch.uint8).numpy() if image.dim() else image.numpy()
        return _of_values(f"tensor {image.dtype}", tuple(image.shape), np.ascontiguousarray(values))
    if isinstance(image, np.ndarray) and image.dtype != object:
        return _of_values(f"array {image.dtype.str}", image.shape, np.ascontiguousarray(image))
    raise InputError(described_type(image))


def described_type(image: Any) -> str:
    """Say why a value is no image."""
    if image is None:
        return "an image is None. Remove the row; a row without images has an empty list in the column images."
    named = f"an image is of type {type(image).__name__}, which processors do not take."
    return f"{named} Cast the column to datasets.Image(), or give PIL images."


def _of_picture(image: Any) -> ImageContent:
    image.load()
    palette = image.getpalette() if image.mode in ("P", "PA") else None
    facts = (image.mode, image.size, palette, image.info.get("transparency"), _orientation(image))
    return ImageContent(_hashed(repr(facts), image.tobytes()), (image.height, image.width))


def _orientation(image: Any) -> int:
    """The orientation that is left to whoever reads the image; `datasets` applies it."""
    return image.getexif().get(_ORIENTATION, 1) if "exif" in image.info else 1


def _of_values(kind: str, shape: tuple[int, ...], values: np.ndarray) -> ImageContent:
    if len(shape) not in (2, 3):
        raise InputError(
            f"an image has {len(shape)} dimensions. Give arrays of (height, width), (height, width, channels) or "
            "(channels, height, width)."
        )
    first = len(shape) == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4)
    height, width = shape[1:] if first else shape[:2]
    return ImageContent(_hashed(f"{kind} {shape}", values.tobytes()), (height, width))


def _hashed(facts: str, content: bytes) -> bytes:
    hashed = hashlib.blake2b(digest_size=HASH_BYTES, person=_PERSON)
    hashed.update(len(facts).to_bytes(8, "little") + facts.encode())
    hashed.update(content)
    return hashed.digest()
