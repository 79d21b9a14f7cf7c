"""Reads a configuration of another tool: YAML, JSON, or the command in a shell script."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError

_ENTRY = re.compile(r"rlhf|(.*/)?\w*(dpo|orpo|rlhf|cli/train)\w*\.py")
"""What a command starts whose flags are a configuration: a subcommand, or a script."""
_ENDS = ("&&", "|", ";", "&", ">", "2>", ")")
_ASSIGNMENT = re.compile(r"""^\s*(?:export\s+)?(\w+)=("[^"]*"|'[^']*'|[^\s"';]*)\s*$""", re.MULTILINE)
_ARRAY = re.compile(r"^\s*(\w+)=\((.*?)^\s*\)\s*$", re.MULTILINE | re.DOTALL)
_ARITHMETIC = re.compile(r"\$\(expr\s+(\d+)\s+([*/+-])\s+(\d+)\)")


def read_configuration(file: Path) -> dict[str, Any]:
    """Return keys and values of a configuration.

    Args:
        file: `.yaml`, `.yml`, `.json`, or a shell script (`.sh`), of which the command is read.

    Raises:
        InputError: it cannot be read, or holds no mapping and no command with flags.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} could not be read: {error}. Check the path.") from None
    if file.suffix == ".sh" or text.startswith("#!"):
        return _command(text, file)
    try:
        content = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{file} is not valid {'JSON' if file.suffix == '.json' else 'YAML'}: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{file} must hold keys and values; it holds {type(content).__name__}.")
    return {str(key): _number(value) for key, value in content.items()}


def _number(value: Any) -> Any:
    """YAML reads 5e-7 as text, which the tools take as a number."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value


def _command(text: str, file: Path) -> dict[str, Any]:
    """The flags of the command in a script that has most of them behind a trainer's name."""
    arrays = {name: " ".join(values.split()) for name, values in _ARRAY.findall(text)}
    text = _ARRAY.sub("", text)
    variables = {name: value.strip("\"'") for name, value in _ASSIGNMENT.findall(text)}
    text = re.sub(r'"?\$\{(\w+)\[@\]\}"?', lambda found: arrays.get(found[1], found[0]), text)
    found: list[dict[str, Any]] = []
    for line in _ASSIGNMENT.sub("", text).replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(_filled(line, variables), comments=True)
        except ValueError:
            continue
        starts = [place for place, word in enumerate(words) if _ENTRY.fullmatch(word)]
        flags = words[starts[-1] + 1 :] if starts else []
        found.append(_flags(itertools.takewhile(lambda word: not word.startswith(_ENDS), flags)))
    most = max(found, key=len, default={})
    if most:
        return most
    raise InputError(
        f"{file} has no command with the flags of a trainer, such as `swift rlhf --rlhf_type dpo ...`. Pass a script "
        "that has one, or a YAML file."
    )


def _filled(line: str, variables: dict[str, str]) -> str:
    """A line with the script's own variables, and what expr makes of them."""
    for _ in range(3):  # variables of variables
        line = re.sub(r"\$\{?(\w+)\}?", lambda found: variables.get(found[1], found[0]), line)

    def computed(found: re.Match[str]) -> str:
        left, right = int(found[1]), int(found[3])
        return str({"*": left * right, "+": left + right, "-": left - right, "/": left // max(right, 1)}[found[2]])

    return _ARITHMETIC.sub(computed, line)


def _flags(words: Iterable[str]) -> dict[str, Any]:
    found: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            name = name.replace("-", "_")
            found[name] = [value] if equals else []
        elif name:
            found[name].append(word)
    return {name: _value(values) for name, values in found.items()}


def _value(values: list[str]) -> Any:
    if not values:
        return True
    typed = [_number(yaml.safe_load(value)) if value.strip() else value for value in values]
    return typed[0] if len(typed) == 1 else typed
