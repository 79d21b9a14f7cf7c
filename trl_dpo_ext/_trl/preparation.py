"""Prepare data as TRL's trainer does, before there is a trainer."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import ProcessorMixin
from trl.trainer import dpo_trainer

from .batch import COMPLETION_MASK, image_columns, is_tokenized
from .patching import temporarily

_TEXTS_AT_ONCE, _IMAGES_AT_ONCE = 256, 16
DATE = "<the date>"
FIXED_DATE = f"{{% macro strftime_now(format) %}}{DATE}{{% endmacro %}}"
"""In front of a chat template, it prints `DATE` in the place of today's date."""


def tokenizer_of(processing_class: Any) -> Any:
    """The tokenizer itself, or that of a processor."""
    return processing_class.tokenizer if isinstance(processing_class, ProcessorMixin) else processing_class


def text_tokenizer(processing_class: Any) -> Any:
    """The tokenizer of a processor, with the processor's chat template; a tokenizer itself."""
    tokenizer = tokenizer_of(processing_class)
    if tokenizer is processing_class or not processing_class.chat_template:
        return tokenizer
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = processing_class.chat_template
    return tokenizer


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
        options = {**_template_options(row), "add_generation_prompt": True} if isinstance(prompt, list) else {}
        yield dpo_trainer._tokenize(processing_class, prompt, **options)["input_ids"]
    if texts:
        yield from processing_class(text=texts)["input_ids"]


def _template_options(row: Mapping[str, Any]) -> dict[str, Any]:
    """What TRL gives a chat template beside the messages."""
    tools = row.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) else tools
    return {"tools": tools, **(row.get("chat_template_kwargs") or {})}


def refused_rows(dataset: Iterable[Mapping[str, Any]], processing_class: Any) -> list[int]:
    """Return the places of rows whose messages the chat template refuses to print.

    Seam: `_prepare_dataset` gives the template the prompt alone, and with each answer behind it; `tools` and
    `chat_template_kwargs` go with them.
    """
    return [place for place, row in enumerate(dataset) if _is_refused(row, processing_class)]


def _is_refused(row: Mapping[str, Any], processing_class: Any) -> bool:
    prompt = row.get("prompt") or []
    try:
        for side in (row["chosen"], row["rejected"]):
            processing_class.apply_chat_template(prompt + side, tokenize=False, **_template_options(row))
        if prompt:
            options = {"tokenize": False, "add_generation_prompt": True, **_template_options(row)}
            processing_class.apply_chat_template(prompt, **options)
    except Exception as error:
        if not is_template_error(error):
            raise
        return True
    return False


def is_template_error(error: BaseException) -> bool:
    """Whether a chat template has raised an error.

    Seam: transformers renders templates by jinja2, whose errors, those that templates raise themselves included, are
    kinds of `TemplateError`.
    """
    return any(
        (kind.__module__, kind.__name__) == ("jinja2.exceptions", "TemplateError") for kind in type(error).__mro__
    )


def prints_date(processing_class: Any, row: Mapping[str, Any]) -> bool:
    """Whether the chat template prints today's date in a row of messages.

    Seam: a template asks for the date by `strftime_now(format)`, a global of transformers' environment, which a macro
    of that name hides.
    """
    template = getattr(processing_class, "chat_template", None)
    if not isinstance(template, str) or "strftime_now" not in template or isinstance(row["chosen"], str):
        return False
    messages = [*(row.get("prompt") or []), *row["chosen"]]
    options = {"chat_template": FIXED_DATE + template, **_template_options(row)}
    return DATE in str(processing_class.apply_chat_template(messages, tokenize=False, **options))


def tokenized_with_images(dataset: Dataset, processing_class: Any, name: str) -> Dataset:
    """Tokenize rows with images as the collator does, image tokens included, in place of the columns of images.

    Seam: `DataCollatorForVisionPreference(processor)` without `max_length` builds whole sequences, the chosen ones in
    front of the rejected ones; `attention_mask` and `completion_mask` mark their tokens.
    """
    columns = image_columns(dataset.column_names)
    collator = dpo_trainer.DataCollatorForVisionPreference(processing_class)

    def tokenize(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        batch = collator([dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)])
        fed, scored = batch["attention_mask"].bool(), batch[COMPLETION_MASK].bool()
        half, ids = len(fed) // 2, batch["input_ids"]
        return {
            "prompt_ids": [ids[row][fed[row] & ~scored[row]].tolist() for row in range(half)],
            "chosen_ids": [ids[row][scored[row]].tolist() for row in range(half)],
            "rejected_ids": [ids[row][scored[row]].tolist() for row in range(half, 2 * half)],
        }

    return dataset.map(
        tokenize,
        batched=True,
        batch_size=_IMAGES_AT_ONCE,
        remove_columns=columns,
        desc=f"Tokenizing {name} dataset with images",
    )


def kept_rows(filtered: Any) -> Any:
    """Return the places of a filtered dataset's rows in the dataset that was filtered, (rows,).

    Seam: `datasets` keeps them in `_indices`, a table of one column, or None if they are all rows.
    """
    indices = filtered._indices
    return np.arange(len(filtered)) if indices is None else indices.column(0).to_numpy()
