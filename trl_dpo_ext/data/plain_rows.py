"""Mark rows that TRL reads as they are meant, column by column; all others are read one by one in `rows`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from . import columnar
from .batches import DatasetBatch
from .columnar import ArrowColumn, Mask, UnknownLayoutError, pc
from .messages import ANSWERING, ROLES
from .rows import SIDES, Layout

Codes = npt.NDArray[np.int8]
READ, PLAIN, WITHOUT_PROMPT = 0, 1, 2
"""Has to be read row by row; is as TRL takes it; is so without its prompt, which the sides repeat."""

_USER = ROLES.index("user")
_ASSISTANT = ROLES.index("assistant")
_SYSTEM = ROLES.index("system")
_ANSWERING = [ROLES.index(role) for role in ANSWERING]


def row_codes(batch: DatasetBatch, layout: Layout) -> tuple[Codes, bool]:
    """Return one code for each row, (rows,), and whether the rows with a code other than `READ` hold messages.

    The marking is cautious: a row that it cannot judge has to be read.
    """
    unread = np.zeros(len(batch.table), dtype=np.int8)
    if layout.conversational or layout.rejected or layout.json:
        return unread, False
    try:
        codes, is_messages = _codes(batch, layout)
    except UnknownLayoutError:
        return unread, False
    if layout.explicit:
        codes[codes == WITHOUT_PROMPT] = READ
    for column in ("system", "chat_template_kwargs"):
        if column in layout.columns:
            codes[_needs_reading(batch.column(column), column)] = READ
    return codes, is_messages


def _needs_reading(column: ArrowColumn, name: str) -> Mask:
    if name == "chat_template_kwargs":
        return columnar.is_null(column) | columnar.is_text(column.type)
    return columnar.is_truthy(column) if columnar.is_text(column.type) else np.zeros(len(column), dtype=bool)


def _codes(batch: DatasetBatch, layout: Layout) -> tuple[Codes, bool]:
    chosen, rejected = map(batch.column, SIDES)
    prompt = batch.column("prompt") if "prompt" in layout.columns else None
    if columnar.is_text(chosen.type) and columnar.is_text(rejected.type):
        if prompt is None:
            if layout.context is not None:
                raise UnknownLayoutError("texts beside messages")
            return _plain_texts(chosen, rejected).astype(np.int8), False
        if not columnar.is_text(prompt.type):
            raise UnknownLayoutError(f"prompt of type {prompt.type} beside texts")
        return _plain_prompts(prompt, chosen, rejected).astype(np.int8), False
    sides = _Messages.of(chosen), _Messages.of(rejected)
    if prompt is not None and not columnar.is_text(prompt.type):
        return _plain_messages(_Messages.of(prompt), sides).astype(np.int8), True
    whole = _plain_conversations(sides)
    if prompt is None:
        return whole.astype(np.int8), True
    return np.where(whole & _is_first_user_text(prompt, sides[0]), WITHOUT_PROMPT, READ).astype(np.int8), True


@dataclass(frozen=True)
class _Messages:
    """A column of message lists."""

    column: ArrowColumn
    lengths: npt.NDArray[np.int64]
    """Messages of each row, (rows,)."""
    items: ArrowColumn
    """All messages, one after the other."""
    roles: npt.NDArray[np.int64]
    """Position of each message's role in `ROLES`; -1 for others; (messages,)."""
    spoken: Mask
    """Whether a message has text, or none because it calls a tool; (messages,)."""
    answers: Mask
    """Whether a message says something; (messages,)."""

    @classmethod
    def of(cls, column: ArrowColumn) -> _Messages:
        lengths = columnar.list_lengths(column)
        items = column.flatten()
        if not pa.types.is_struct(items.type):
            raise UnknownLayoutError(f"messages of type {items.type}")
        fields = columnar.fields(items)
        if not {"role", "content"} <= set(fields) or {"from", "value"} & set(fields):
            raise UnknownLayoutError(f"messages with the fields {', '.join(fields)}")
        role, content = fields["role"], fields["content"]
        if not columnar.is_text(role.type) or not columnar.is_text(content.type):
            raise UnknownLayoutError(f"content of type {content.type}")
        places = pc.fill_null(pc.index_in(role, value_set=pa.array(ROLES, role.type)), -1)
        calls = np.zeros(len(items), dtype=bool)
        if "tool_calls" in fields:
            calls = columnar.is_truthy(fields["tool_calls"])
        spoken = ~columnar.is_null(content) | calls
        answers = columnar.is_truthy(content) | calls
        return cls(column, lengths, items, places.to_numpy(zero_copy_only=False), spoken, answers)

    @property
    def ends(self) -> npt.NDArray[np.int64]:
        """Index behind the last message of each row, (rows,)."""
        return self.lengths.cumsum()

    def every(self, good: Mask) -> Mask:
        """Whether all messages of a row are good, and there is one; (rows,)."""
        before = np.concatenate([[0], np.cumsum(~good)])
        return (self.lengths > 0) & (before[self.ends] == before[self.ends - self.lengths])

    def first(self, values: npt.NDArray, at: int = 0) -> npt.NDArray:
        """The value of the message at a place of each row; of some message where a row is too short; (rows,)."""
        return _take(values, self.ends - self.lengths + at)

    def last(self, values: npt.NDArray) -> npt.NDArray:
        """The value of the last message of each row, (rows,)."""
        return _take(values, self.ends - 1)

    def without_last(self) -> ArrowColumn:
        """The lists without their last messages; no row may be empty."""
        kept = np.ones(len(self.items), dtype=bool)
        kept[self.ends - 1] = False
        offsets = np.concatenate([[0], (self.lengths - 1).cumsum()]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), self.items.filter(pa.array(kept)))


def _take(values: npt.NDArray, places: npt.NDArray[np.int64]) -> npt.NDArray:
    if not len(values):
        return np.full(len(places), -1)
    return values[np.clip(places, 0, len(values) - 1)]


def _plain_messages(prompt: _Messages, sides: tuple[_Messages, _Messages]) -> Mask:
    plain = prompt.every((prompt.roles >= 0) & prompt.spoken)
    plain &= ~np.isin(prompt.first(prompt.roles), _ANSWERING) & (prompt.last(prompt.roles) != _ASSISTANT)
    for side in sides:
        plain &= side.every(np.isin(side.roles, _ANSWERING) & side.spoken)
        plain &= (side.last(side.roles) == _ASSISTANT) & (side.last(side.answers) == 1)
    return plain


def _plain_conversations(sides: tuple[_Messages, _Messages]) -> Mask:
    """Mark rows whose sides differ in the last message alone."""
    chosen, rejected = sides
    plain = (chosen.lengths == rejected.lengths) & (chosen.lengths > 1)
    for side in sides:
        plain &= side.every((side.roles >= 0) & side.spoken) & ~np.isin(side.first(side.roles), _ANSWERING)
        plain &= (side.last(side.roles) == _ASSISTANT) & (side.last(side.answers) == 1)
    if chosen.lengths.all() and rejected.lengths.all():
        starts = chosen.without_last(), rejected.without_last()
        # An answer of the assistant may end the prompt, but then it is told.
        return plain & columnar.equal_rows(*starts) & _prompt_ends_well(chosen)
    return np.zeros(len(plain), dtype=bool)


def _prompt_ends_well(side: _Messages) -> Mask:
    return _take(side.roles, side.ends - 2) != _ASSISTANT


def _is_first_user_text(prompt: ArrowColumn, side: _Messages) -> Mask:
    content = columnar.fields(side.items)["content"]
    place = (side.first(side.roles) == _SYSTEM).astype(np.int64)
    at = np.clip(side.ends - side.lengths + place, 0, max(len(content) - 1, 0))
    role = _take(side.roles, at)
    texts = content.take(pa.array(at)) if len(content) else pa.nulls(len(at), content.type)
    same = pc.fill_null(pc.equal(prompt.cast(texts.type), texts), False).to_numpy(zero_copy_only=False)
    return same & (role == _USER) & (side.lengths > place + 1)


def _plain_prompts(prompt: ArrowColumn, chosen: ArrowColumn, rejected: ArrowColumn) -> Mask:
    spoken = columnar.is_truthy(chosen) & columnar.is_truthy(rejected) & ~columnar.is_null(prompt)
    return spoken & ~(columnar.may_start_with(chosen, prompt) & columnar.may_start_with(rejected, prompt))


def _plain_texts(chosen: ArrowColumn, rejected: ArrowColumn) -> Mask:
    first = [pc.utf8_slice_codeunits(side, 0, 1) for side in (chosen, rejected)]
    same = pc.fill_null(pc.equal(first[0].cast(first[1].type), first[1]), False).to_numpy(zero_copy_only=False)
    spoken = columnar.is_truthy(chosen) & columnar.is_truthy(rejected)
    is_start = columnar.may_start_with(chosen, rejected) | columnar.may_start_with(rejected, chosen)
    return spoken & same & ~is_start
