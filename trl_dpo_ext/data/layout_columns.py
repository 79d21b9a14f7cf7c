"""Decide from a dataset's columns which layout it has: where the prompt is, and which columns may be meant as one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from .. import _trl
from .findings import WARNING, Finding
from .public_layouts import missing_sides
from .rows import SIDES, Layout

_CONTEXTS = ("messages", "conversations", "conversation")
_REJECTED = ("rejected_response", "rejected_messages")
_PROMPTS = ("question", "instruction", "query", "input")
_BESIDE = ("context", "system_prompt", "history", "problem", "user", "article", "post", "title")
_BESIDE_PROMPT = (*_PROMPTS, "context", "system_prompt", "history")
_SAMPLE = 200


@dataclass(frozen=True)
class Suspect:
    """Columns that look like a prompt and are not read."""

    text: str
    instead: bool
    """Whether there is no column `prompt`; conversations hold theirs, so that these columns are no loss to them."""
    is_prompt: bool = False
    """Whether exactly one of them has a name that means a prompt."""

    def stops(self, are_texts: bool, no_start: bool, has_problems: bool) -> bool:
        """Whether this is an error: texts with the sign of a missing prompt, or messages that cannot do without one."""
        return self.instead and ((self.is_prompt or no_start) if are_texts else has_problems)

    def warns(self, are_texts: bool) -> bool:
        """Whether this is a warning where it is no error."""
        return are_texts or not self.instead

    def finding(self, rows: int) -> Finding:
        """What is told where it is no error; of so many rows."""
        sentence, _, remedy = self.text.partition(". ")
        return Finding("prompt_guessed" if self.instead else "layout", WARNING, rows, rows, sentence, remedy)


def find_layout(dataset: Any, first: Mapping[str, Any]) -> tuple[Layout, list[str], list[Suspect]]:
    """Return a dataset's layout, what makes that impossible, and columns that may be meant as its prompt.

    Args:
        dataset: with at least one row.
        first: its first row.
    """
    context = next((name for name in _CONTEXTS if _is_list_of_messages(first.get(name))), None)
    rejected = None
    if not set(SIDES) & set(first) and context is not None:
        rejected = next((name for name in _REJECTED if name in first), None)
    if rejected is None and not set(SIDES) <= set(first):
        return Layout(()), [missing_sides(first)], []
    if rejected is None and ("prompt" in first or context is None):
        context = None
    wanted = ("prompt", *SIDES) if rejected is None else ()
    named = (*wanted, context, rejected, "system", "chat_template_kwargs")
    columns = tuple(name for name in named if name is not None and name in first)
    layout = Layout(
        columns,
        context=context,
        rejected=rejected,
        json=tuple(name for name in columns if _is_written_messages(first[name])),
        keep_parts=bool(_trl.image_columns(first)),
    )
    if context is not None:
        return layout, [], []
    return layout, [], _beside_prompt(dataset, first) if "prompt" in first else _instead_of_prompt(first)


def _is_list_of_messages(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, Mapping) and {"role", "from"} & set(item) for item in value)


def _is_written_messages(value: Any) -> bool:
    """Whether a text is a list of messages, as JSON or as Python writes it."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[{", "[ {", "{'role", '{"role')):
        return False
    try:
        decoded = json.loads(value)
    except ValueError:
        return any(f"{quote}{key}{quote}:" in value for quote in "'\"" for key in ("role", "from"))
    return _is_list_of_messages(decoded if isinstance(decoded, list) else [decoded])


def _instead_of_prompt(first: Mapping[str, Any]) -> list[Suspect]:
    prompts = [name for name in _PROMPTS if isinstance(first.get(name), (str, list))]
    others = [name for name in _BESIDE if isinstance(first.get(name), str)]
    if not prompts and not others:
        return []
    names = ", ".join(map(repr, [*prompts, *others]))
    flag = f"--dataset_columns prompt={prompts[0] if prompts else others[0]}"
    if len(prompts) > 1:
        flag += f", or prompt={','.join(prompts)} to join them"
    is_one = len(prompts) + len(others) == 1
    which = f"column {names} is" if is_one else f"the columns {names} are"
    text = (
        f"there is no column 'prompt', and {which} not read. If {'it' if is_one else 'one'} is the prompt, set {flag}; "
        f"otherwise remove {'it' if is_one else 'them'}."
    )
    return [Suspect(text, instead=True, is_prompt=len(prompts) == 1)]


def _beside_prompt(dataset: Any, first: Mapping[str, Any]) -> list[Suspect]:
    """Columns whose text the prompt does not contain, in any of the first rows."""
    names = [name for name in _BESIDE_PROMPT if isinstance(first.get(name), str)]
    if not names:
        return []
    read = ["prompt", *names]
    rows: Sequence[Any] = [first]
    if isinstance(dataset, Dataset):
        rows = dataset.select_columns(read).with_format(None).select(range(min(_SAMPLE, len(dataset)))).to_list()
    lost = []
    for name in names:
        said = [(row[name].strip(), str(row["prompt"])) for row in rows if row[name] and row[name].strip()]
        # Escapes of a prompt in messages are told apart by its first line alone.
        if said and not any(text.splitlines()[0].strip("\"'")[:40] in prompt for text, prompt in said):
            lost.append(name)
    return [
        Suspect(
            f"column {name!r} looks like a part of the prompt and is not read: its text is not in 'prompt'. If it "
            f"belongs there, set --dataset_columns prompt={name},prompt; otherwise remove it.",
            instead=False,
        )
        for name in lost
    ]
