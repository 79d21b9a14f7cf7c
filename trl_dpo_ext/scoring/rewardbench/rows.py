"""Read the layouts of RewardBench: a prompt and its answers, the right ones first."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import PartialState
from datasets import Dataset

from ...data.lists.groups import Groups
from ...data.row_problems import RowError, RowProblems, rows_of
from ...errors import InputError

logger = logging.getLogger(__name__)
_ROLES = ("user", "assistant")
_SIDES = ("chosen", "rejected")
_COLUMNS = ("prompt", *_SIDES, "num_correct")
_SYSTEM = (
    "the prompt has an even number of messages, and RewardBench takes them for turns of user and assistant, the "
    "user's last. Remove system messages, or score with --protocol train"
)


@dataclass(frozen=True)
class BenchRow:
    """A prompt with its answers.

    Attributes:
        prompt: contents of the user's and the assistant's turns, the user's first and last.
        answers: texts, the right ones first.
        right: number of right answers.
    """

    prompt: tuple[str, ...]
    answers: tuple[str, ...]
    right: int = 1


def read_rows(dataset: Dataset) -> list[BenchRow]:
    """Read all rows of a dataset.

    Layouts are those of RewardBench's loaders: `prompt` with `chosen` and `rejected` as texts (core set), `prompt` as
    a list of messages (preference sets), `chosen` and `rejected` as whole conversations, and `chosen` and `rejected`
    as lists of texts (RewardBench 2). Answers may also be lists of one message.

    Raises:
        InputError: listing the columns and rows that do not fit.
    """
    missing = [name for name in _SIDES if name not in dataset.column_names]
    if missing:
        raise InputError(
            f"--protocol rewardbench needs the columns 'chosen' and 'rejected'; the dataset has "
            f"{', '.join(dataset.column_names)}. Set --dataset_columns chosen=COLUMN rejected=COLUMN."
        )
    rows, problems, changed, apart = [], RowProblems(), 0, 0
    for at, row in rows_of(dataset, _COLUMNS):
        try:
            found, other_roles, other_prompt = _read(row)
        except RowError as error:
            problems.add(at, error)
            continue
        rows.append(found)
        changed, apart = changed + other_roles, apart + other_prompt
    problems.raise_all(len(dataset))
    if changed and PartialState().is_main_process:
        logger.warning("%d prompts have other roles than user and assistant by turns, which RewardBench sets.", changed)
    if apart and PartialState().is_main_process:
        logger.warning("%d rejected conversations begin otherwise than the chosen one, whose prompt counts.", apart)
    return rows


def _read(row: Mapping[str, Any]) -> tuple[BenchRow, bool, bool]:
    """The row; whether its prompt has roles that are changed; whether the rejected side has another prompt."""
    sides = [row[side] for side in _SIDES]
    if all(_is_conversation(side) for side in sides):
        prompts = [_contents(side[:-1]) for side in sides]
        answers = tuple(_contents(side[-1:])[0] for side in sides)
        return BenchRow(_turns(prompts[0]), answers), _other_roles(sides[0][:-1]), prompts[0] != prompts[1]
    if row.get("prompt") is None:
        raise RowError("there is no prompt, and chosen and rejected are no conversations. Add a column 'prompt'")
    prompt = row["prompt"]
    contents = _contents(prompt) if isinstance(prompt, list) else (_text(prompt, "prompt"),)
    if all(_are_texts(side) for side in sides):
        number = row.get("num_correct", len(sides[0]))
        if number != len(sides[0]):
            raise RowError("num_correct is not the number of chosen answers", f"{number!r}, and {len(sides[0])} chosen")
        answers, right = (*sides[0], *sides[1]), len(sides[0])
    else:
        answers, right = tuple(_answer(side, name) for side, name in zip(sides, _SIDES, strict=True)), 1
    return BenchRow(_turns(contents), answers, right), isinstance(prompt, list) and _other_roles(prompt), False


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, Mapping) for each in value)


def _is_conversation(value: Any) -> bool:
    """Whether messages begin with a prompt."""
    return _is_messages(value) and len(value) > 1 and value[0].get("role") != "assistant"


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


def _answer(value: Any, side: str) -> str:
    if isinstance(value, str):
        return value
    if not _is_messages(value):
        raise RowError(f"{side} is neither a text nor messages nor a list of texts", f"{_shown(value)} there")
    if len(value) != 1:
        raise RowError(f"{side} has several messages after the prompt, where one answer is needed", f"{len(value)}")
    return _contents(value)[0]


def _contents(messages: list[Any]) -> tuple[str, ...]:
    if messages and not _is_messages(messages):
        raise RowError("the prompt is neither a text nor a list of messages", f"{_shown(messages)} there")
    return tuple(_text(message.get("content"), "a message") for message in messages)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"{what} has no text", f"{_shown(value)} there")
    return value


def _shown(value: Any) -> str:
    return repr(value)[:40]


def _turns(contents: tuple[str, ...]) -> tuple[str, ...]:
    if len(contents) % 2 == 0:
        raise RowError(_SYSTEM if contents else "the prompt is empty", f"{len(contents)} messages" if contents else "")
    return contents


def _other_roles(messages: list[Mapping[str, Any]]) -> bool:
    return any(message.get("role") != _ROLES[place % 2] for place, message in enumerate(messages))


def messages_of(contents: tuple[str, ...]) -> list[dict[str, str]]:
    """Return turns of user and assistant as messages."""
    return [{"role": _ROLES[place % 2], "content": content} for place, content in enumerate(contents)]


def completion_rows(prompts: Sequence[Any], completions: Sequence[Any], groups: Groups) -> list[BenchRow]:
    """Take prompts with any number of completions as rows.

    Args:
        prompts: texts or messages.
        completions: texts, or messages of one answer.
        groups: which completions belong to which prompt.

    Raises:
        InputError: listing the prompts that RewardBench cannot render.
    """
    rows, problems = [], RowProblems()
    for at, (prompt, where) in enumerate(zip(prompts, groups, strict=True)):
        try:
            contents = _contents(prompt) if isinstance(prompt, list) else (_text(prompt, "prompt"),)
            answers = tuple(_answer(completion, "a completion") for completion in completions[where])
            rows.append(BenchRow(_turns(contents), answers))
        except RowError as error:
            problems.add(at, error)
    problems.raise_all(len(prompts))
    return rows
