"""The command line for the documentation: the table of commands, and every command's help."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Any
from unittest import mock

from trl_dpo_ext.cli.main import COMMANDS, PROG

from .markdown import definition, one_line


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


def flags_as_markdown() -> str:
    """Every command with what it does and its flags."""
    return "\n\n".join(_command(name) for name in COMMANDS)


OWN = {"inspect", "estimate", "score"}
"""Commands that have flags of their own beside those of `train`."""
OF_TRAIN = {"train", "precompute"}
ALL_OPTIONS = "Every option of [the configuration](configuration.md), as `--option value`"


def _command(name: str) -> str:
    heading = f"({name}-command)=\n## {PROG} {name}"
    if name in OF_TRAIN:
        return f"{heading}\n\n{one_line(COMMANDS[name][2]).capitalize()}.\n\n{_OF_TRAIN[name]}"
    parser = parser_of(name)
    usage = (
        parser.format_usage().removeprefix("usage: ")
        if name not in OWN
        else f"{PROG} {name} [FLAGS] [FLAGS OF train]\n"
    )
    entries = [_entry(name, action) for action in parser._actions if action.dest != "help"]
    also = f"{ALL_OPTIONS}." if name in OWN else ""
    parts = [heading, one_line(parser.description or ""), f"```text\n{usage}```", "\n".join(entries), also]
    return "\n\n".join(filter(None, parts))


_OF_TRAIN = {
    "train": f"{ALL_OPTIONS}, and a file of them:\n\n"
    "[`--config`]{#train-config} a YAML file, or the name of a recipe\n"
    ": Keys are the options; flags override them. An unknown key is an error.\n",
    "precompute": f"{ALL_OPTIONS}; [`ref_store`](configuration.md#option-ref_store) names the store.",
}


def _entry(command: str, action: argparse.Action) -> str:
    flags = action.option_strings
    name = flags[0] if flags else (action.metavar or action.dest)
    facts = []
    if action.choices:
        facts.append("one of " + ", ".join(f"`{choice}`" for choice in action.choices))
    elif action.option_strings and action.metavar:
        names = (action.metavar,) if isinstance(action.metavar, str) else action.metavar
        facts.append(" ".join(f"`{name}`" for name in names))
    text = one_line((action.help or "").replace("%%", "%"))
    target = f"{command}-{action.dest.replace('_', '-')}"
    return definition(
        str(name), ", ".join(facts), text[:1].upper() + text[1:] + ("" if text.endswith(".") else "."), target
    )
