"""Prepare data as TRL's trainer does, before there is a trainer."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from transformers import ProcessorMixin
from trl.trainer import dpo_trainer

from .batch import is_tokenized
from .patching import temporarily

_TEXTS_AT_ONCE = 256


def tokenizer_of(processing_class: Any) -> Any:
    """The tokenizer itself, or that of a processor."""
    return processing_class.tokenizer if isinstance(processing_class, ProcessorMixin) else processing_class


def preparation(processing_class: Any) -> Callable[..., Any]:
    """Return `DPOTrainer._prepare_dataset`, bound to a stand-in of a trainer with this tokenizer or processor.

    Seam: `_prepare_dataset(dataset, processing_class, args, dataset_name)` reads nothing of its trainer but the
    tokenizer, `_tokenizer`; columns that it does not know are kept, and rows keep their order.
    """
    stand_in = SimpleNamespace(_tokenizer=tokenizer_of(processing_class), _is_vision_dataset=False)
    return functools.partial(dpo_trainer.DPOTrainer._prepare_dataset, stand_in)  # type: ignore[arg-type]


@contextlib.contextmanager
def tokens_kept() -> Iterator[None]:
    """Inside, a dataset that has token ids is left as it is, where TRL would tokenize its texts again.

    Seam: every preparation of a dataset is `DPOTrainer._prepare_dataset`, as found on that class.
    """
    prepare = dpo_trainer.DPOTrainer._prepare_dataset

    def prepare_texts(self: Any, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset if is_tokenized(dataset) else prepare(self, dataset, *args, **kwargs)

    with temporarily(dpo_trainer.DPOTrainer, _prepare_dataset=prepare_texts):
        yield


def pair_collator(processing_class: Any, args: Any, images: bool = False) -> Any:
    """Return the collator that TRL's constructor makes.

    Seam: text is collated by `DataCollatorForPreference`, images by `DataCollatorForVisionPreference`, as found in the
    trainer's module; both truncate to `max_length`.
    """
    if images:
        return dpo_trainer.DataCollatorForVisionPreference(processing_class, max_length=args.max_length)
    tokenizer = tokenizer_of(processing_class)
    return dpo_trainer.DataCollatorForPreference(
        pad_token_id=tokenizer.pad_token_id or 0,
        max_length=args.max_length,
        truncation_mode=args.truncation_mode,
        pad_to_multiple_of=args.pad_to_multiple_of,
    )


def prompt_tokens(processing_class: Any, rows: Iterable[Mapping[str, Any]]) -> Iterator[list[int]]:
    """Tokenize the prompts of rows without an answer behind them, as TRL does; texts many at a time.

    Seam: a prompt alone is tokenized by `_tokenize` as found in the trainer's module, with a generation prompt behind
    messages; a text is given to the tokenizer as it is.
    """
    texts: list[str] = []
    for row in rows:
        prompt = row["prompt"]
        if isinstance(prompt, str) and not isinstance(processing_class, ProcessorMixin):
            texts.append(prompt)
            if len(texts) == _TEXTS_AT_ONCE:
                yield from processing_class(text=texts)["input_ids"]
                texts = []
            continue
        options = {}
        if isinstance(prompt, list):
            tools = row.get("tools")
            tools = json.loads(tools) if isinstance(tools, str) else tools
            options = {"tools": tools, **(row.get("chat_template_kwargs") or {}), "add_generation_prompt": True}
        yield dpo_trainer._tokenize(processing_class, prompt, **options)["input_ids"]
    if texts:
        yield from processing_class(text=texts)["input_ids"]


def kept_rows(filtered: Any) -> Any:
    """Return the places of a filtered dataset's rows in the dataset that was filtered, (rows,).

    Seam: `datasets` keeps them in `_indices`, a table of one column, or None if they are all rows.
    """
    indices = filtered._indices
    return np.arange(len(filtered)) if indices is None else indices.column(0).to_numpy()
