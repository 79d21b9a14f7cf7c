"""One text per option: the `Args` of a dataclass's docstring are also the `help` of its fields."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

Options = TypeVar("Options")

_WIDTH = 116  # of a docstring's line, which is indented by 4 in its file
_ENTRY = re.compile(r"    (\w+): (.*)")


def document_options(cls: type[Options]) -> type[Options]:
    """Give every field the help that the class docstring has under `Args`, for `--help`.

    A class that inherits from documented ones gets their entries added to its own docstring, so that `help(cls)` lists
    every option.
    """
    fields: Mapping[str, Any] = cls.__dict__["__dataclass_fields__"]
    texts = read_args(cls)
    for name in texts.keys() & inspect.get_annotations(cls).keys():  # the fields of parents are shared with them
        escaped = texts[name].replace("%", "%%")  # argparse formats help with %
        fields[name].metadata = MappingProxyType({**fields[name].metadata, "help": escaped})
    blocks = (parent.__dict__.get("__documented_args__", []) for parent in cls.__mro__[1:])
    inherited = [line for block in blocks if block for line in ("", *block)]
    cls.__documented_args__ = _args_lines(cls)  # type: ignore[attr-defined]
    if cls.__doc__ and inherited:
        cls.__doc__ = _with_args(cls, inherited)
    return cls


def read_args(cls: type, inherited: bool = False) -> dict[str, str]:
    """Return the text of every entry under `Args` in the docstring of `cls`, each in one line.

    Args:
        cls: a class, documented or not.
        inherited: whether to include the entries that `document_options` has added from its parents.
    """
    lines = _args_lines(cls)
    if not inherited:
        lines = cls.__dict__.get("__documented_args__", lines)
    entries: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in lines:
        entry = _ENTRY.fullmatch(line)
        if entry:
            current = entries.setdefault(entry[1], [entry[2]])
        elif not line.startswith("        "):  # a heading, or the blank lines around it
            current = None
        elif current is not None:
            current.append(line.strip())
    return {name: " ".join(parts) for name, parts in entries.items()}


def format_args(groups: Mapping[str, Mapping[str, str]]) -> str:
    """Return the entries of an `Args` section, {heading: {name: text}}, in the form that `read_args` reads."""
    lines = []
    for heading, entries in groups.items():
        lines += ["", f"    > {heading}", ""]
        for name, text in entries.items():
            lines += textwrap.wrap(
                f"{name}: {text}", _WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 8, break_on_hyphens=False
            )
    return "\n".join(lines[1:])


def _args_lines(cls: type) -> list[str]:
    """The lines under `Args:`, indented by 4 spaces, without the blank ones at the end."""
    lines = inspect.cleandoc(cls.__doc__ or "").splitlines()
    if "Args:" not in lines:
        return []
    start = lines.index("Args:") + 1
    end = next((at for at in range(start, len(lines)) if lines[at] and not lines[at].startswith(" ")), len(lines))
    while not lines[end - 1]:
        end -= 1
    return lines[start:end]


def _with_args(cls: type, added: list[str]) -> str:
    """The docstring of `cls` with more lines at the end of its `Args`."""
    lines, own = inspect.cleandoc(cls.__doc__ or "").splitlines(), _args_lines(cls)
    end = lines.index("Args:") + 1 + len(own)
    return "\n".join([*lines[:end], *added, *lines[end:]])
