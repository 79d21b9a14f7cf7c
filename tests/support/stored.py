"""Sequences with made-up log-probs, stores that hold them, and ways to kill a writer or to corrupt a part."""

from __future__ import annotations

import os
import subprocess
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
    """What `PartWriter.add` takes; depends on the number alone, so that any process can tell what is right."""
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


def assert_holds(store: Store, numbers: Any) -> None:
    """The store holds these, with the right log-probs, bit for bit."""
    loaded = store.load(keys(numbers))
    for number in numbers:
        key, _, logps = sequence(number)
        np.testing.assert_array_equal(loaded[key], logps, strict=True)


def first_part(store: Store) -> Path:
    return store.parts[0].path


def corrupt_values(path: Path) -> None:
    """Flip a byte in the middle of the log-probs, which are the last column before the footer."""
    content = bytearray(path.read_bytes())
    footer = int.from_bytes(content[-8:-4], "little")
    content[len(content) - footer - 100] ^= 1
    path.write_bytes(content)


def write_slowly(folder: str, start: int, stop: int, per_part: int) -> None:
    """For a process that is killed in the middle: many small parts, each number printed once it was given away."""
    store = Store.open(folder, REFERENCE)
    with store.writer(sequences=per_part) as writer:
        for number in range(start, stop):
            writer.add(*sequence(number))
            print(number, writer.written, flush=True)
            time.sleep(0.0005)


def start_writing(*arguments: Any) -> subprocess.Popen[str]:
    """`write_slowly` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.stored", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )


if __name__ == "__main__":
    write_slowly(sys.argv[1], *map(int, sys.argv[2:]))
