"""Bring one value of a preference row, a prompt or a side, to text or to a list of messages with role and content."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
"""Roles that chat templates know."""
ANSWERING = ("assistant", "tool", "function", "ipython")
"""Roles of a completion."""
ANSWER_FIELDS = ("content", "tool_calls", "thinking", "reasoning_content", "reasoning")
"""A message with any of these says something."""

_SENDERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
}
_RENAMED_ROLES = {"human": "user", "gpt": "assistant"}
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value")


class LayoutError(ValueError):
    """A value that cannot be converted.

    Args:
        problem: what is wrong, in words that fit every row with this problem.
        detail: what the row at hand has.
    """

    def __init__(self, problem: str, detail: str = "") -> None:
        self.problem, self.detail = problem, detail
        super().__init__(problem)


def converted(value: Any, column: str, keep_parts: bool, notes: set[str]) -> str | list[dict[str, Any]] | None:
    """Return a value as text or messages; None for a null.

    Args:
        value: of `column` in one row.
        column: `prompt`, `chosen` or `rejected`.
        keep_parts: whether content in parts is left as it is, because the row has images.
        notes: conversions are added here.

    Raises:
        LayoutError: there is more than one way to read the value, or none.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        notes.add(f"{column}: one message -> a list of messages")
        value = [value]
    if not isinstance(value, (list, tuple)):
        raise LayoutError(f"{column} is neither text nor a list of messages", f"{type(value).__name__} there")
    if any(isinstance(item, (list, tuple)) for item in value) or _are_texts(value):
        return _only_one(value, column, keep_parts, notes)
    if _are_parts(value) and not keep_parts:
        notes.add(f"{column}: parts -> text")
        return _join(value, column)
    return [_message(item, column, keep_parts, notes) for item in value]


def is_set(message: Message, keys: Iterable[str]) -> bool:
    """Whether one of the keys has a value that says something."""
    return any(message.get(key) for key in keys)


def same_messages(left: Sequence[Message], right: Sequence[Message]) -> bool:
    """Whether messages are equal but for fields that are None, which `datasets` adds to make one type of all rows."""
    return len(left) == len(right) and all(
        _without_nulls(a) == _without_nulls(b) for a, b in zip(left, right, strict=True)
    )


def common_start(left: Sequence[Message], right: Sequence[Message]) -> int:
    """Return with how many equal messages both begin; at least one of each is left out, as TRL does."""
    shorter = min(len(left), len(right))
    same = (at for at in range(shorter) if not same_messages(left[at : at + 1], right[at : at + 1]))
    return next(same, max(shorter - 1, 0))


def _only_one(items: Sequence[Any], column: str, keep_parts: bool, notes: set[str]) -> Any:
    if len(items) != 1:
        what = "prompts" if column == "prompt" else "answers"
        raise LayoutError(
            f"{column} is a list of several {what}. Give one row per pair",
            f"{len(items)} {what} there",
        )
    notes.add(f"{column}: a list of one -> its item")
    return converted(items[0], column, keep_parts, notes)


def _message(message: Any, column: str, keep_parts: bool, notes: set[str]) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise LayoutError(f"{column} is a list with items that are no messages", f"{type(message).__name__} there")
    role = _role(message, column, notes)
    content_key = next((key for key in _CONTENT_KEYS if message.get(key) is not None), "content")
    content = message.get(content_key)
    if content_key == "value":
        notes.add(f"{column}: from/value -> role/content")
    if isinstance(content, (list, tuple)) and not keep_parts:
        notes.add(f"{column}: content in parts -> text")
        content = _join(content, column)
    elif content is None and is_set(message, ANSWER_FIELDS[1:]):
        # Many templates add content to other text, which fails for None.
        content = None if message.get("tool_calls") else ""
    elif content is None and not _of_side(column, role):
        raise LayoutError(
            f"a message of the {column} has no content", f"its keys are {', '.join(map(repr, sorted(message)))}"
        )
    elif not (content is None or isinstance(content, (str, list, tuple))):
        raise LayoutError(f"the content of a message of {column} is no text", f"{type(content).__name__} there")
    rest = {key: value for key, value in message.items() if key not in (*_ROLE_KEYS, *_CONTENT_KEYS)}
    return {"role": role, "content": content, **rest}


def _of_side(column: str, role: str) -> bool:
    """Whether a message without content is an empty answer, which is reported as such."""
    return column != "prompt" and role in ANSWERING


def _role(message: Message, column: str, notes: set[str]) -> str:
    role, sender = message.get("role"), message.get("from")
    if isinstance(role, str) and role:
        if role in _RENAMED_ROLES:
            notes.add(f"{column}: role {role!r} -> {_RENAMED_ROLES[role]!r}")
        return _RENAMED_ROLES.get(role, role)
    if isinstance(sender, str) and sender:
        if sender not in _SENDERS:
            raise LayoutError(
                f"a message of {column} is from {sender!r}, which is none of {', '.join(_SENDERS)}. Rename it"
            )
        return _SENDERS[sender]
    raise LayoutError(
        f"{column} has a message without a role. Messages have the keys 'role' and 'content', or 'from' and 'value'",
        f"its keys are {', '.join(map(repr, sorted(message)))}",
    )


def _join(parts: Sequence[Any], column: str) -> str:
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping) and kind in ("text", None) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise LayoutError(
                f"{column} has a content part of type {kind!r}, and the dataset has no column 'images'. Text models "
                "take parts of type 'text' alone"
            )
    return "".join(texts)


def _are_texts(items: Sequence[Any]) -> bool:
    return bool(items) and all(isinstance(item, str) for item in items)


def _are_parts(items: Sequence[Any]) -> bool:
    return bool(items) and all(
        isinstance(item, Mapping) and item.get("type") is not None and not is_set(item, _ROLE_KEYS) for item in items
    )


def _without_nulls(message: Message) -> dict[str, Any]:
    return {key: value for key, value in message.items() if value is not None}
