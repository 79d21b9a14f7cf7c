"""The command line for the documentation: the table of commands, and every command's help."""

from __future__ import annotations

from trl_dpo_ext.cli.main import COMMANDS, PROG


def commands_as_markdown() -> str:
    """Return the commands as a Markdown table."""
    rows = (f"| `{PROG} {name}` | {text} |" for name, (_, _, text) in COMMANDS.items())
    return "\n".join(["| command | what it does |", "|---|---|", *rows])
