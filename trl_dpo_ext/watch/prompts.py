"""Which prompts a run samples answers to: the same ones each time, whatever the order of the rows is."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from .. import _trl
from ..data.batches import read_batches
from ..data.positions import learned_positions
from ..errors import InputError
from .prompts_file import read_prompts

_STREAMED_ROWS = 1000
"""How many rows of a stream are read for prompts."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as training feeds it."""

    ids: tuple[int, ...]
    text: str
    """Its tokens as text, special ones included."""

    @property
    def name(self) -> str:
        """What identifies the prompt over runs: a hash of its tokens."""
        return _hash(self.ids).hex()


def watched_prompts(host: _trl.Host, args: Any, room: int) -> tuple[list[Prompt], str]:
    """Choose the prompts to sample answers to, and say where they are from.

    Every process calls this; the first one reads the data.

    Args:
        host: a constructed trainer.
        args: the run's configuration: `watch_prompts`, `watch_prompts_file`.
        room: how many tokens an answer may have.

    Raises:
        InputError: the file of prompts cannot be used.
    """
    found: Any = None
    if host.is_main_process:
        try:
            found = _chosen(host, args, room)
        except InputError as error:
            found = error
    found = _trl.gather_object(found)[0]
    if isinstance(found, InputError):
        raise found
    chosen, source = found
    tokenizer = _trl.tokenizer_of(host.trainer.processing_class)
    return [Prompt(tuple(ids), visible_text(tokenizer, ids)) for ids in chosen], source


def visible_text(tokenizer: Any, ids: Iterable[int]) -> str:
    """Token ids as text in which special tokens can be seen."""
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _chosen(host: _trl.Host, args: Any, room: int) -> tuple[list[tuple[int, ...]], str]:
    limit = learned_positions(host.causal_model(host.trainer.model))

    def fits(ids: tuple[int, ...]) -> bool:
        return bool(ids) and (limit is None or len(ids) + room <= limit)

    if args.watch_prompts_file:
        return list(
            dict.fromkeys(filter(fits, _of_file(host, args.watch_prompts_file)))
        ), f"of {args.watch_prompts_file}"
    data, source = _first_dataset(host)
    first: dict[bytes, tuple[int, ...]] = {}
    for batch in _batches(data):
        first |= {_hash(ids): ids for ids in filter(fits, batch)}
        first = dict(sorted(first.items())[: args.watch_prompts])
    return list(first.values()), source


def _first_dataset(host: _trl.Host) -> tuple[Any, str]:
    evaluated, trained = host.trainer.eval_dataset, host.trainer.train_dataset
    if evaluated is None or evaluated == {}:
        return trained, "of the training set"
    if not isinstance(evaluated, Mapping):
        return evaluated, "of the evaluation set"
    name = next(iter(evaluated))
    return evaluated[name], f"of the evaluation set {name!r}"


def _batches(data: Any) -> Iterator[Iterable[tuple[int, ...]]]:
    """The tokenized prompts of a dataset, many at a time; those of the first rows of a stream."""
    column = _trl.TOKEN_IDS[0]
    if isinstance(data, Dataset):
        for batch in read_batches(data, [column]):
            yield (tuple(row[column]) for row in batch.rows(column))
    else:
        yield (tuple(row[column]) for row in itertools.islice(data, _STREAMED_ROWS))


def _of_file(host: _trl.Host, file: str) -> Iterator[tuple[int, ...]]:
    """The prompts of a file, tokenized as those of the training set: a text becomes a message where those are some."""
    rows = read_prompts(file)
    first = next(iter(host.trainer.train_dataset), {})
    if isinstance(first.get("prompt"), list):
        rows = [
            {**row, "prompt": [{"role": "user", "content": row["prompt"]}]} if isinstance(row["prompt"], str) else row
            for row in rows
        ]
    return (tuple(ids) for ids in _trl.prompt_tokens(host.trainer.processing_class, rows))


def _hash(ids: tuple[int, ...]) -> bytes:
    return hashlib.blake2b(np.asarray(ids, dtype="<i8").tobytes(), digest_size=8).digest()
