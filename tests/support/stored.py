"""Sequences with made-up log-probs, and the store that holds them."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from trl_dpo_ext.reference.identity.identity import Identity
from trl_dpo_ext.reference.store.keys import sequence_key
from trl_dpo_ext.reference.store.store import Store

REFERENCE = Identity(weights="f00d", config='{"hidden_size":16,"rope_parameters":{"rope_theta":10000.0}}')


def sequence(number: int) -> tuple[bytes, int, np.ndarray]:
    """What `PartWriter.add` takes; of the number alone, so that any process can say what is right."""
    prompt, completion = [number % 97, number], [number % 89] * (number % 13)
    logps = -np.random.default_rng(number).exponential(size=len(completion)).astype(np.float32)
    return sequence_key(prompt, completion), len(prompt), logps


def keys(numbers: Any) -> list[bytes]:
    return [sequence(number)[0] for number in numbers]


def filled(folder: Path, *numbers: Any, **settings: Any) -> Store:
    """A store with one part for each range of numbers."""
    store = Store.open(folder, REFERENCE)
    for some in numbers:
        with store.writer(**settings) as writer:
            for number in some:
                writer.add(*sequence(number))
    return store


def right(store: Store, numbers: Any) -> None:
    """The store holds these, with the right log-probs, bit for bit."""
    loaded = store.load(keys(numbers))
    for number in numbers:
        key, _, logps = sequence(number)
        np.testing.assert_array_equal(loaded[key], logps, strict=True)


def write_slowly(folder: str, start: int, stop: int, per_part: int) -> None:
    """For a process that is killed in the middle: many small parts, each number said once it was given away."""
    store = Store.open(folder, REFERENCE)
    with store.writer(sequences=per_part) as writer:
        for number in range(start, stop):
            writer.add(*sequence(number))
            print(number, writer.written, flush=True)
            time.sleep(0.0005)


if __name__ == "__main__":
    write_slowly(sys.argv[1], *map(int, sys.argv[2:]))
