"""The command `trl-dpo-ext`, also `python -m trl_dpo_ext` (so that `accelerate launch -m trl_dpo_ext train` works)."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from importlib import import_module

from ..errors import AlarmStop, InputError, StoreWriteError
from ..logging_setup import is_unicode, mute_import_messages
from ..version import __version__

PROG = "trl-dpo-ext"
COMMANDS = {
    "train": ("train", "run", "train a model; usually `accelerate launch -m trl_dpo_ext train`"),
    "precompute": ("train", "run_precompute", "fill a store of reference log-probs; accepts the flags of `train`"),
    "inspect": ("inspect", "run", "show preference data as `train` will see it; accepts the flags of `train`"),
    "score": (
        "score",
        "run",
        "score preference data by a trained model's rewards; accepts the flags of `train`",
    ),
    "estimate": ("estimate", "run", "estimate memory per GPU and list known pitfalls, without loading a model"),
    "recipes": ("listings", "run_recipes", "list the shipped recipes, show one, or copy one"),
    "losses": ("listings", "run_losses", "list the loss variants, or show one"),
    "report": ("report", "run", "summarize the metrics of a run, and plot them"),
    "migrate": ("migrate", "run", "translate the configuration of another tool"),
    "store": ("store", "run", "show what a store of reference log-probs holds, and verify it"),
}
"""Command -> the module in this folder, its function, and the help text.

Modules are imported when their command is called, because some of them import TRL. Each function takes the remaining
arguments and the name to show in its help, and returns the exit status.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 2 for invalid input or an unwritable store, 3 where an alarm stops."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command = _parser().parse_args(argv[:1]).command  # everything behind it is for the command's own parser
    module, function, _ = COMMANDS[command]
    mute_import_messages()
    _print_every_character()
    run = getattr(import_module(f".{module}", __package__), function)
    try:
        return run(argv[1:], prog=f"{PROG} {command}")
    except (InputError, StoreWriteError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3 if isinstance(error, AlarmStop) else 2


def _print_every_character() -> None:
    """Print what standard output cannot encode, on Windows or with LC_ALL=C, as escapes in place of failing."""
    if isinstance(sys.stdout, io.TextIOWrapper) and not is_unicode(sys.stdout.encoding):
        sys.stdout.reconfigure(errors="backslashreplace")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(PROG, description="Preference optimization with TRL: losses, references, recipes.")
    parser.add_argument("--version", action="version", version=f"{PROG} {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")
    for name, (_, _, text) in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    parser.epilog = f"`{PROG} COMMAND --help` lists the flags of a command."
    return parser
