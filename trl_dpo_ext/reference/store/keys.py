"""Keys of sequences, computed from token ids alone, and a compact sorted index of many keys."""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

KEY_BYTES = 16
_PERSON = b"trl_dpo_ext.seq1"  # another meaning of the key needs another name here
_PERSON_OF_IMAGES = b"trl_dpo_ext.img1"
_NO_CONTENT = hashlib.blake2b(digest_size=KEY_BYTES, person=_PERSON)


def sequence_key(prompt_ids: Sequence[int] | np.ndarray, completion_ids: Sequence[int] | np.ndarray) -> bytes:
    """Hash a prompt with one of its completions to 16 bytes, the same on every machine.

    BLAKE2b over both lengths (little-endian int64) and the ids (little-endian int32). The length of the prompt is part
    of the content, since only the completion is scored.

    Args:
        prompt_ids: (prompt_tokens,) token ids, as the reference is fed them.
        completion_ids: (completion_tokens,) token ids, including the final EOS.

    Raises:
        ValueError: an id is negative (a label of -100 is not a token), fractional or above 31 bits.
    """
    content = _NO_CONTENT.copy()
    content.update(len(prompt_ids).to_bytes(8, "little") + len(completion_ids).to_bytes(8, "little"))
    content.update(_little_endian(prompt_ids))
    content.update(_little_endian(completion_ids))
    return content.digest()


def image_sequence_key(
    prompt_ids: Sequence[int], completion_ids: Sequence[int], images: Sequence[bytes], max_length: int | None
) -> bytes:
    """Hash a row of a dataset with images to 16 bytes, the same on every machine, whether or not it has an image.

    BLAKE2b over the number of ids of prompt and completion, the number of images, and `max_length` or -1 (little-endian
    int64), the ids (little-endian int32), and the images' hashes. No such key is one of `sequence_key`.

    Args:
        prompt_ids: (prompt_tokens,) token ids of the prompt's text, in which a placeholder stands for each image.
        completion_ids: (completion_tokens,) token ids of the completion's text.
        images: (images,) a hash of each image's content, of equal length, in the order of the placeholders.
        max_length: what the collator cuts the row to, once the placeholders have become the tokens of images.
    """
    counts = (len(prompt_ids), len(completion_ids), len(images), -1 if max_length is None else max_length)
    content = hashlib.blake2b(digest_size=KEY_BYTES, person=_PERSON_OF_IMAGES)
    content.update(b"".join(count.to_bytes(8, "little", signed=True) for count in counts))
    content.update(_little_endian(prompt_ids))
    content.update(_little_endian(completion_ids))
    content.update(b"".join(images))
    return content.digest()


def packed_sequence_keys(ids: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Hash many sequences of one array as `sequence_key` does, in half the time.

    Args:
        ids: (tokens,) int32, of all sequences.
        bounds: (sequences, 4) where each prompt starts and ends in `ids`, and where its completion starts and ends.

    Returns:
        The packed keys, (sequences, 2) uint64, as from `pack_keys`.

    Raises:
        ValueError: an id is negative.
    """
    content = memoryview(_little_endian(ids))
    lengths = memoryview((bounds[:, 1::2] - bounds[:, ::2]).astype("<i8").tobytes())
    digests = []
    for at, (start, middle, scored, end) in enumerate((bounds * 4).tolist()):
        hashed = _NO_CONTENT.copy()
        hashed.update(lengths[16 * at : 16 * at + 16])
        hashed.update(content[start:middle])
        hashed.update(content[scored:end])
        digests.append(hashed.digest())
    return pack_keys(digests)


def _little_endian(ids: Sequence[int] | np.ndarray) -> bytes:
    if isinstance(ids, (list, tuple)):  # three times as fast as through numpy
        try:
            packed = array("i", ids)
        except (TypeError, OverflowError) as error:
            raise ValueError(f"Token ids must be integers of at most 31 bits: {error}.") from None
        if packed and min(packed) < 0:
            raise ValueError(f"Token ids must not be negative; got {min(packed)}.")
        if sys.byteorder == "big":
            packed.byteswap()
        return packed.tobytes()
    numbers = np.asarray(ids)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise ValueError(f"Token ids must be a 1-D array of integers; got {numbers.dtype} of shape {numbers.shape}.")
    if numbers.size and not (numbers.min() >= 0 and numbers.max() < 2**31):
        raise ValueError(f"Token ids must be in [0, 2**31); got {numbers.min()} to {numbers.max()}.")
    return numbers.astype("<i4").tobytes()


def pack_keys(keys: Iterable[bytes]) -> np.ndarray:
    """Pack keys as two uint64 each, shape (keys, 2), big-endian, so that their order is that of the bytes.

    Raises:
        ValueError: a key does not have 16 bytes.
    """
    keys = list(keys)
    if any(len(key) != KEY_BYTES for key in keys):
        raise ValueError(f"Keys must have {KEY_BYTES} bytes; make them with sequence_key.")
    return np.frombuffer(b"".join(keys), dtype=">u8").reshape(-1, 2).astype(np.uint64)


def unpack_keys(packed: np.ndarray) -> list[bytes]:
    """Invert `pack_keys`."""
    return packed.astype(">u8").view(f"V{KEY_BYTES}").ravel().tolist()


@dataclass(frozen=True)
class KeyIndex:
    """Finds keys by binary search; of equal keys, the first. 24 bytes per key, shared by forked workers.

    Attributes:
        high, low: (unique,) the two uint64 of each packed key, sorted.
        positions: (unique,) index of each key in the array that this was built from.
    """

    high: np.ndarray
    low: np.ndarray
    positions: np.ndarray

    @classmethod
    def build(cls, packed: np.ndarray) -> KeyIndex:
        """Index packed keys, shape (keys, 2); keys may repeat."""
        high, low = packed[:, 0], packed[:, 1]
        order = np.lexsort((low, high))  # stable: the first of equal keys stays first
        high, low = high[order], low[order]
        first = np.ones(len(order), dtype=bool)
        first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        return cls(high[first], low[first], order[first])

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def packed(self) -> np.ndarray:
        """The indexed keys, (unique, 2) uint64, sorted."""
        return np.stack([self.high, self.low], axis=1)

    def find(self, packed: np.ndarray) -> np.ndarray:
        """Return the position of each packed key, -1 for keys that are not indexed."""
        found = np.full(len(packed), -1, dtype=np.int64)
        at = np.searchsorted(self.high, packed[:, 0])
        open_ = np.arange(len(packed))
        while len(open_):  # more than one iteration only if the first halves of two keys are equal
            open_ = open_[at[open_] < len(self.high)]
            open_ = open_[self.high[at[open_]] == packed[open_, 0]]
            hit = self.low[at[open_]] == packed[open_, 1]
            found[open_[hit]] = self.positions[at[open_[hit]]]
            open_ = open_[~hit]
            at[open_] += 1
        return found
