"""Read one row of preference data: its layout, what can be converted, what is wrong, and what is doubtful."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .messages import ANSWER_FIELDS, ANSWERING, ROLES, LayoutError, common_start, converted, is_set, same_messages

SIDES = ("chosen", "rejected")
Messages = list[dict[str, Any]]

LAST_TURN = "a side ends with a turn that is not the assistant's, such as the user's, and its words are trained on"
INNER_TURN = "a side has a user's turn before the answer, and its words are trained on"
OPEN_PROMPT = "the prompt ends with a message of the assistant, which the chat template closes before the answer"
NO_START = "there is no prompt, and the texts of both sides have no common start"
TEXT_REPEATED = "both sides repeat the text of the prompt, so that the model sees it twice"
EMPTY_KWARGS = "chat_template_kwargs: None -> empty"
ONE_IN_OTHER = "there is no prompt, and one side is the start of the other, so that the prompt would hold an answer"
KWARGS_TEXT = "chat_template_kwargs: JSON text -> a mapping"
PROMPT_UNUSED = "the prompt's text does not occur in the conversations of both sides, whose common start is the prompt"


@dataclass(frozen=True)
class Layout:
    """What the rows of a dataset have in common.

    Args:
        columns: the names of the dataset's columns that are looked at.
        context: column that holds the prompt where sides are answers alone, such as `messages`; None if there is none.
        rejected: column of ms-swift's layout, in which the chosen answer is the last message of `context`.
        json: columns with messages written as JSON text.
        keep_parts: whether the rows have images, so that content stays in parts.
        explicit: whether every row gets a prompt, also one that TRL would find itself.
        conversational: whether texts become messages, because other rows are messages or by `texts_to_messages`.
    """

    columns: tuple[str, ...]
    context: str | None = None
    rejected: str | None = None
    json: tuple[str, ...] = ()
    keep_parts: bool = False
    explicit: bool = False
    conversational: bool = False


@dataclass
class Reading:
    """What one row says."""

    values: dict[str, Any] = field(default_factory=dict)
    """Columns that have to change."""
    notes: set[str] = field(default_factory=set)
    """Conversions."""
    problems: dict[str, str] = field(default_factory=dict)
    """What is wrong, in words that fit every such row, and what this row has."""
    doubts: set[str] = field(default_factory=set)
    is_messages: bool = False
    unusable: str = ""
    """Why the row cannot be trained on, where other rows can."""
    without_prompt: bool = False
    """Whether TRL reads the same from the row as it is without its prompt."""


def no_answer(side: str) -> str:
    """Return how messages say that a side has no answer."""
    return f"the {side} completion is empty"


def read_row(row: Mapping[str, Any], layout: Layout) -> Reading:
    """Read one row.

    Args:
        row: with the columns of `layout`.
        layout: of the dataset.
    """
    reading = Reading()
    given = _given(row, layout, reading)
    if row.get("chat_template_kwargs", {}) is None:
        reading.values["chat_template_kwargs"] = {}
        reading.notes.add(EMPTY_KWARGS)
    elif isinstance(row.get("chat_template_kwargs"), str):
        _read_kwargs(row["chat_template_kwargs"], reading)
    for side in SIDES:
        if side in given and _says_nothing(given[side]):
            reading.problems[no_answer(side)] = ""
    if reading.problems:
        return reading
    found = {name: given.get(name) for name in ("prompt", *SIDES)}
    reading.is_messages = layout.conversational or any(isinstance(value, list) for value in given.values())
    try:
        (_read_messages if reading.is_messages else _read_texts)(found, row, layout, reading)
    except LayoutError as error:
        reading.problems[error.problem] = error.detail
    return reading


def _read_kwargs(text: str, reading: Reading) -> None:
    try:
        value = json.loads(text) if text.strip() else {}
    except ValueError:
        value = None
    if isinstance(value, dict):
        reading.values["chat_template_kwargs"] = value
        reading.notes.add(KWARGS_TEXT)
    else:
        reading.problems["chat_template_kwargs holds text that is not a JSON object"] = f"{text[:40]!r} there"


def _given(row: Mapping[str, Any], layout: Layout, reading: Reading) -> dict[str, Any]:
    """Prompt and sides as text, messages or None; without `prompt` if the row has no such column."""
    raw = {name: row[name] for name in ("prompt", *SIDES) if name in row}
    if layout.context is not None:
        raw["prompt"] = row[layout.context]
    if layout.rejected is not None:
        raw["rejected"] = row[layout.rejected]
    given = {}
    for column, value in raw.items():
        named = column
        if column == "prompt" and layout.context is not None:
            named = layout.context
        try:
            if named in layout.json and isinstance(value, str):
                value = _decoded(value, named, reading)
            given[column] = converted(value, column, layout.keep_parts, reading.notes)
        except LayoutError as error:
            reading.problems[error.problem] = error.detail
    if layout.rejected is not None and isinstance(given.get("prompt"), list) and given["prompt"]:
        *context, answer = given["prompt"]
        reading.notes.add(f"{layout.context}: its last message -> chosen")
        given |= {"prompt": context, "chosen": [answer]}
    return given


def _decoded(text: str, column: str, reading: Reading) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        raise LayoutError(
            f"{column} holds messages written as text that is not JSON. CSV cannot hold message lists; use JSONL or "
            "Parquet",
            f"{text[:40]!r} there",
        ) from None
    reading.notes.add(f"{column}: JSON text -> messages")
    return value


def _says_nothing(side: Any) -> bool:
    if isinstance(side, list):
        return not (side and is_set(side[-1], ANSWER_FIELDS))
    return not side


def _read_texts(found: dict[str, Any], row: Mapping[str, Any], layout: Layout, reading: Reading) -> None:
    prompt, chosen, rejected = found["prompt"], found["chosen"], found["rejected"]
    if row.get("system"):
        raise LayoutError(
            "text prompts have no place for the text in column 'system'. Add it to the prompt (--dataset_columns "
            "prompt=system,COLUMN), use messages, or remove the column"
        )
    if "prompt" not in row:
        start, as_trl = _common_text(chosen, rejected, reading)
        if layout.explicit or not as_trl:
            found |= {"prompt": chosen[:start], "chosen": chosen[start:], "rejected": rejected[start:]}
    elif prompt is None:
        raise LayoutError("the prompt is missing (None). Filter these rows")
    elif prompt.strip() and chosen.startswith(prompt) and rejected.startswith(prompt):
        reading.doubts.add(TEXT_REPEATED)
    _keep_changes(found, row, reading)


def _common_text(chosen: str, rejected: str, reading: Reading) -> tuple[int, bool]:
    """The number of characters that are the prompt of two texts, and whether TRL takes as many."""
    shorter = min(len(chosen), len(rejected))
    start = next((at for at in range(shorter) if chosen[at] != rejected[at]), shorter)
    if start == shorter:
        if chosen != rejected:
            reading.unusable = ONE_IN_OTHER
        return start - 1, True
    if start == 0:
        reading.doubts.add(NO_START)
        return 0, not chosen.endswith(" ")  # then, TRL takes the chosen answer as the prompt
    return start - (chosen[start - 1] == " "), True


def _read_messages(found: dict[str, Any], row: Mapping[str, Any], layout: Layout, reading: Reading) -> None:
    was_text = isinstance(found["prompt"], str)
    if layout.conversational and "prompt" not in row and layout.context is None and isinstance(found["chosen"], str):
        raise LayoutError("there is no prompt beside texts that become messages. Add a column 'prompt'")
    for column, value in found.items():
        if isinstance(value, str):
            role = "user" if column == "prompt" else "assistant"
            found[column] = [{"role": role, "content": value}] if value or column != "prompt" else []
            reading.notes.add(f"{column}: text -> a message of the {role}")
    prompt, sides = found["prompt"] or [], [found["chosen"], found["rejected"]]
    if layout.context is not None and layout.rejected is None and _all_whole(sides):
        prompt = []  # `messages` beside whole conversations is not read
    before = set(reading.notes)
    prompt, sides = _split(prompt, sides, was_text, reading)
    if not prompt:
        raise LayoutError(
            "the prompt is empty or missing (None), and the sides begin with different messages or with the answer"
        )
    system = row.get("system")
    if isinstance(system, str) and system and prompt[0]["role"] not in ("system", "developer"):
        prompt = [{"role": "system", "content": system}, *prompt]
        reading.notes.add("system: text -> the first message of the prompt")
    for side, messages in zip(SIDES, sides, strict=True):
        if not messages:
            reading.problems[no_answer(side)] = ""
    if prompt[-1]["role"] == "assistant" and any(same_messages(prompt[-1:], side[:1]) for side in sides):
        raise LayoutError("the prompt ends with the answer that a side begins with. Remove it from the prompt")
    _doubt(prompt, sides, reading)
    result = {"prompt": prompt, "chosen": sides[0], "rejected": sides[1]}
    if not layout.explicit and _trl_reads(row, result):
        reading.without_prompt = True
        reading.notes = before if "prompt" in row else set()
        if "prompt" in row:
            reading.notes = {"prompt: repeated by whole conversations -> dropped"}
        return
    _keep_changes(result, row, reading)


def _all_whole(sides: Sequence[Messages]) -> bool:
    """Whether the sides begin with a prompt."""
    return all(side and side[0]["role"] not in ANSWERING for side in sides)


def _split(
    prompt: Messages, sides: list[Messages], was_text: bool, reading: Reading
) -> tuple[Messages, list[Messages]]:
    """Part prompt and answers, where the sides repeat the prompt or hold it alone."""
    if _all_whole(sides):
        start = common_start(*sides)
        shared = sides[0][:start]
        held = not prompt or was_text or (len(prompt) < start and same_messages(prompt, shared[-len(prompt) :]))
        if held and start:
            if was_text and prompt and not _occurs(prompt[0]["content"], shared):
                reading.doubts.add(PROMPT_UNUSED)
            return shared, [side[start:] for side in sides]
    parted = []
    for side in sides:
        repeats = bool(prompt) and _same_start(prompt, side, was_text)
        if repeats:
            reading.notes.add("chosen, rejected: a repeated prompt -> dropped")
        elif was_text and prompt and side and side[0]["role"] not in ANSWERING:
            raise LayoutError(
                "one side begins with other messages than the prompt and than the other side. Give both sides as "
                "answers alone"
            )
        parted.append(side[len(prompt) :] if repeats else side)
    return prompt, parted


def _same_start(prompt: Messages, side: Messages, was_text: bool) -> bool:
    start = side[: len(prompt)]
    if was_text and len(start) == 1:
        return start[0]["role"] == "user" and str(start[0]["content"]).strip() == prompt[0]["content"].strip()
    return same_messages(prompt, start)


def _occurs(text: str, messages: Messages) -> bool:
    return any(text.strip() in content for message in messages if isinstance(content := message.get("content"), str))


def _doubt(prompt: Messages, sides: list[Messages], reading: Reading) -> None:
    unknown = {m["role"] for messages in (prompt, *sides) for m in messages} - set(ROLES)
    reading.doubts |= {f"a message has the role {role!r}, which most chat templates do not know" for role in unknown}
    if prompt[-1]["role"] == "assistant":
        reading.doubts.add(OPEN_PROMPT)
    if any(side and side[-1]["role"] != "assistant" and side[-1]["role"] in ROLES for side in sides):
        reading.doubts.add(LAST_TURN)
    if any(message["role"] == "user" for side in sides for message in side[:-1]):
        reading.doubts.add(INNER_TURN)


def _trl_reads(row: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
    """Whether TRL's own search for the common start gives `result` from the sides as they are in the row."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if not (isinstance(chosen, list) and isinstance(rejected, list)):
        return False
    shorter = min(len(chosen), len(rejected))
    start = next((at for at in range(shorter) if chosen[at] != rejected[at]), shorter - 1)
    read = {"prompt": chosen[:start], "chosen": chosen[start:], "rejected": rejected[start:]}
    return read == result


def _keep_changes(result: Mapping[str, Any], row: Mapping[str, Any], reading: Reading) -> None:
    for column, value in result.items():
        if value is not None and (column not in row or row[column] != value):
            reading.values[column] = value
