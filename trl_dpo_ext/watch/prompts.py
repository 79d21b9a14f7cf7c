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
from .prompts_file import read_prompts

Ids = tuple[int, ...]
_STREAMED_ROWS = 1000
"""How many rows of a stream are read for prompts."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as training feeds it."""

    ids: Ids
    text: str
    """Its tokens as text, special ones included."""
    last_message: str
    """What it asks, for people: the text of its last message, or the whole text."""

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
        except Exception as error:  # which the other processes would wait for
            found = error
    found = _trl.gather_object(found)[0]
    if isinstance(found, Exception):
        raise found
    chosen, source = found
    tokenizer = _trl.tokenizer_of(host.trainer.processing_class)
    texts = [visible_text(tokenizer, ids) for ids in chosen]
    prompts = [
        Prompt(ids, text, text if asked is None else last_message(asked))
        for (ids, asked), text in zip(chosen.items(), texts, strict=True)
    ]
    return prompts, source


def visible_text(tokenizer: Any, ids: Iterable[int]) -> str:
    """Token ids as text in which special tokens can be seen."""
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def last_message(prompt: Any) -> str:
    """The text of the last message of a prompt, or of one that is a text."""
    content = prompt[-1].get("content") if isinstance(prompt, list) and prompt else prompt
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content)


def _chosen(host: _trl.Host, args: Any, room: int) -> tuple[dict[Ids, Any], str]:
    """The chosen prompts, each with what it was tokenized from, if that is known, and where they are from."""
    limit = learned_positions(host.causal_model(host.trainer.model))

    def fitting(batch: Iterable[tuple[Ids, Any]]) -> dict[Ids, Any]:
        return {ids: asked for ids, asked in batch if ids and (limit is None or len(ids) + room <= limit)}

    if args.watch_prompts_file:
        return fitting(_of_file(host, args.watch_prompts_file)), f"of {args.watch_prompts_file}"
    data, source = _first_dataset(host)
    first: dict[Ids, Any] = {}
    for batch in _batches(data):
        first |= fitting(batch)
        first = {ids: first[ids] for ids in sorted(first, key=_hash)[: args.watch_prompts]}
    return first, source


def _first_dataset(host: _trl.Host) -> tuple[Any, str]:
    evaluated, trained = host.trainer.eval_dataset, host.trainer.train_dataset
    if evaluated is None or evaluated == {}:
        return trained, "of the training set"
    if not isinstance(evaluated, Mapping):
        return evaluated, "of the evaluation set"
    name = next(iter(evaluated))
    return evaluated[name], f"of the evaluation set {name!r}"


def _batches(data: Any) -> Iterator[Iterable[tuple[Ids, Any]]]:
    """The tokenized prompts of a dataset and the prompts, many at a time; those of the first rows of a stream."""
    ids, prompt = _trl.TOKEN_IDS[0], "prompt"
    if isinstance(data, Dataset):
        columns = [ids, prompt] if prompt in data.column_names else [ids]
        for batch in read_batches(data, columns):
            yield ((tuple(row[ids]), row.get(prompt)) for row in batch.rows(*columns))
    else:
        yield ((tuple(row[ids]), row.get(prompt)) for row in itertools.islice(data, _STREAMED_ROWS))


def _of_file(host: _trl.Host, file: str) -> Iterator[tuple[Ids, Any]]:
    """The prompts of a file, tokenized as those of the training set: a text becomes a message where those are some."""
    rows = read_prompts(file)
    first = next(iter(host.trainer.train_dataset), {})
    if isinstance(first.get("prompt"), list):
        rows = [
            {**row, "prompt": [{"role": "user", "content": row["prompt"]}]} if isinstance(row["prompt"], str) else row
            for row in rows
        ]
    tokens = _trl.prompt_tokens(host.trainer.processing_class, rows)
    return ((tuple(ids), row["prompt"]) for ids, row in zip(tokens, rows, strict=True))


def _hash(ids: Ids) -> bytes:
    return hashlib.blake2b(np.asarray(ids, dtype="<i8").tobytes(), digest_size=8).digest()
