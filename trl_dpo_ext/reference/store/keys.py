"""The key of a sequence, made of its token ids alone, and a compact sorted index of many keys."""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

KEY_BYTES = 16
_PERSON = b"trl_dpo_ext.seq1"  # another meaning of the key needs another name here


def sequence_key(prompt_ids: Sequence[int] | np.ndarray, completion_ids: Sequence[int] | np.ndarray) -> bytes:
    """The 16 bytes that name a prompt with one of its completions, the same on every machine.

    BLAKE2b over both lengths (little-endian int64) and the ids (little-endian int32). Where the prompt ends is part of
    the content, since only the completion is scored.

    Args:
        prompt_ids (`Sequence[int]` of shape `(prompt_tokens,)`): Token ids, as the reference is fed them.
        completion_ids (`Sequence[int]` of shape `(completion_tokens,)`): Token ids, the closing EOS included.

    Raises:
        ValueError: For ids that are negative (a label of -100 is no token), fractional or above 31 bits.
    """
    content = hashlib.blake2b(digest_size=KEY_BYTES, person=_PERSON)
    content.update(len(prompt_ids).to_bytes(8, "little") + len(completion_ids).to_bytes(8, "little"))
    content.update(_little_endian(prompt_ids))
    content.update(_little_endian(completion_ids))
    return content.digest()


def _little_endian(ids: Sequence[int] | np.ndarray) -> bytes:
    if isinstance(ids, (list, tuple)):  # three times as fast as through numpy
        try:
            packed = array("i", ids)
        except (TypeError, OverflowError) as error:
            raise ValueError(f"Token ids must be whole numbers of 31 bits: {error}.") from None
        if packed and min(packed) < 0:
            raise ValueError(f"Token ids must not be negative; got {min(packed)}.")
        if sys.byteorder == "big":
            packed.byteswap()
        return packed.tobytes()
    numbers = np.asarray(ids)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise ValueError(f"Token ids must be one row of whole numbers; got {numbers.dtype} of shape {numbers.shape}.")
    if numbers.size and not (numbers.min() >= 0 and numbers.max() < 2**31):
        raise ValueError(f"Token ids must lie in 0 ... 2**31 - 1; got {numbers.min()} ... {numbers.max()}.")
    return numbers.astype("<i4").tobytes()


def pack_keys(keys: Iterable[bytes]) -> np.ndarray:
    """Keys as numbers of shape `(keys, 2)`: two uint64 each, big-endian, so that their order is that of the bytes."""
    keys = list(keys)
    if any(len(key) != KEY_BYTES for key in keys):
        raise ValueError(f"Keys have {KEY_BYTES} bytes: make them with sequence_key.")
    return keys_from_bytes(b"".join(keys))


def keys_from_bytes(joined: bytes) -> np.ndarray:
    """The same, of keys that lie one after the other."""
    return np.frombuffer(joined, dtype=">u8").reshape(-1, 2).astype(np.uint64)


def keys_to_bytes(words: np.ndarray) -> bytes:
    """Keys one after the other, of their numbers; the inverse of `keys_from_bytes`."""
    return words.astype(">u8").tobytes()


def unpack_keys(words: np.ndarray) -> list[bytes]:
    """The keys of `(keys, 2)` numbers."""
    joined = keys_to_bytes(words)
    return [joined[at : at + KEY_BYTES] for at in range(0, len(joined), KEY_BYTES)]


@dataclass(frozen=True)
class KeyIndex:
    """Finds keys by binary search; of a key that is there twice, the first. 24 bytes per key, shared by forks.

    Attributes:
        high, low (`np.ndarray` of shape `(unique,)`): The keys' numbers, sorted.
        positions (`np.ndarray` of shape `(unique,)`): Where each stood in what the index was built from.
    """

    high: np.ndarray
    low: np.ndarray
    positions: np.ndarray

    @classmethod
    def build(cls, words: np.ndarray) -> KeyIndex:
        """Of `(keys, 2)` numbers; keys may repeat."""
        high, low = words[:, 0], words[:, 1]
        order = np.lexsort((low, high))  # stable: the first of equal keys stays first
        high, low = high[order], low[order]
        first = np.ones(len(order), dtype=bool)
        first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        return cls(high[first], low[first], order[first])

    def __len__(self) -> int:
        return len(self.positions)

    def find(self, words: np.ndarray) -> np.ndarray:
        """Positions of `(keys, 2)` numbers, -1 where one is not there."""
        found = np.full(len(words), -1, dtype=np.int64)
        at = np.searchsorted(self.high, words[:, 0])
        open_ = np.arange(len(words))
        while len(open_):  # more than one turn only where the first halves of two keys are equal
            open_ = open_[at[open_] < len(self.high)]
            open_ = open_[self.high[at[open_]] == words[open_, 0]]
            hit = self.low[at[open_]] == words[open_, 1]
            found[open_[hit]] = self.positions[at[open_[hit]]]
            open_ = open_[~hit]
            at[open_] += 1
        return found
