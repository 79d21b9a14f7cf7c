"""The command line for the documentation: the table of commands, and every command's help."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Any
from unittest import mock

from trl_dpo_ext.cli.main import COMMANDS, PROG


def commands_as_markdown() -> str:
    """Return the commands as a Markdown table."""
    rows = (f"| `{PROG} {name}` | {text} |" for name, (_, _, text) in COMMANDS.items())
    return "\n".join(["| command | what it does |", "|---|---|", *rows])


class _Found(Exception):
    """Carries the parser of a command out of the command."""


def parser_of(command: str) -> argparse.ArgumentParser:
    """Return the parser of a command's flags, as the command makes it; of `score`, say, without those of `train`."""
    module, function, _ = COMMANDS[command]

    def found(self: argparse.ArgumentParser, *_: Any, **__: Any) -> Any:
        raise _Found(self)

    run = getattr(import_module(f"trl_dpo_ext.cli.{module}"), function)
    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", found):
        try:
            run([], prog=f"{PROG} {command}")
        except _Found as caught:
            return caught.args[0]
    raise TypeError(f"{PROG} {command} parses no arguments.")
