"""What is said of a split as it was loaded: its layout, its columns, and the chat template that prints it."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from .. import _trl
from ..core.registry import list_losses
from ..data.columns import loss_columns
from ..data.findings import NOTE, Finding
from ..data.lengths import samples_by_length
from ..data.prepare import Kept
from .pair_table import PairTable
from .row_texts import COLUMNS
from .row_view import short

_READ_BY_TRL = (*COLUMNS, "tools", "chat_template_kwargs", *_trl.IMAGE_COLUMNS, *_trl.REFERENCE_COLUMNS)
_DATE = "date_string"
"""What published templates call the date that they print in place of today's."""


def layout_name(table: PairTable, kept: Kept) -> str:
    """Return what a split holds, in a few words."""
    kind = "texts" if table.texts.are_texts else "messages"
    if table.of_lists:
        return f"lists, {kind}"
    if len(kept.columns) > 2:  # a prompt, or messages that end in the chosen answer, beside both sides
        return f"prompt + answers, {kind}"
    return f"whole {'texts' if table.texts.are_texts else 'conversations'}, {kind}"


def guessed_prompt(table: PairTable, kept: Kept) -> Finding | None:
    """A note that the prompt of texts is their common start."""
    if table.of_lists or not table.texts.are_texts or len(kept.columns) > 2:
        return None
    sentence = "there is no column 'prompt': the characters with which both texts begin are taken as the prompt"
    remedy = "If another column has it, set --dataset_columns prompt=COLUMN."
    return Finding("prompt_guessed", NOTE, len(table), len(table), sentence, remedy, table.numbers.tolist())


def _unused(raw: Dataset, kept: Kept, checked: Dataset, args: Any) -> list[str]:
    """Columns that are left and that nothing reads."""
    read = {*_READ_BY_TRL, *loss_columns(args, args.loss_mixture()), *kept.columns}
    read |= {args.length_column_name} if samples_by_length(args) else set()
    return [name for name in raw.column_names if name in checked.column_names and name not in read]


def unused_column(raw: Dataset, kept: Kept, checked: Dataset, args: Any, rows: int) -> Finding | None:
    """A note of the columns that nothing reads."""
    unused = _unused(raw, kept, checked, args)
    sentence = f"{', '.join(unused)}: read by no chosen loss"
    return Finding("unused_column", NOTE, 0, rows, sentence, unit="columns") if unused else None


def columns_block(raw: Dataset, kept: Kept, checked: Dataset, args: Any) -> dict[str, Any]:
    """Return which columns are used, and an example of the others, as JSON holds them."""
    unused, of_losses = _unused(raw, kept, checked, args), set(loss_columns(args, args.loss_mixture()))
    first = raw.with_format(None)[0]
    could = {column for variant in list_losses() for column in variant.columns}
    return {
        "used": [name for name in raw.column_names if name not in unused],
        "of_losses": sorted(of_losses & set(checked.column_names)),
        "unused": {name: short(first[name]) for name in unused},
        "readable": sorted((could & set(unused)) - of_losses),
    }


def dated_template(checked: Dataset, processing_class: Any, rows: int) -> Finding | None:
    """A note that the chat template prints today's date."""
    first: Any = next(iter(checked.with_format(None)))
    if not _trl.prints_date(processing_class, first):
        return None
    sentence = "the chat template prints the date, so that tokens, and with them the keys of a store, change every day"
    remedy = "Replace strftime_now in the chat template by a fixed date."
    if _DATE in str(processing_class.chat_template):
        kwargs = f'[{{"{_DATE}": "26 Jul 2024"}}] * len(dataset)'
        remedy = f'Fix it: dataset = dataset.add_column("chat_template_kwargs", {kwargs}).'
    return Finding("dated_template", NOTE, rows, rows, sentence, remedy)
