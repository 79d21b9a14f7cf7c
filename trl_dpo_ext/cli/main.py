"""The command `trl-dpo-ext`, also `python -m trl_dpo_ext` (so that `accelerate launch -m trl_dpo_ext train` works)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import InputError, StoreWriteError
from ..losses import tables

PROG = "trl-dpo-ext"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(argv)
    except (InputError, StoreWriteError) as error:  # wrong input is said in words, without a traceback
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(argv: Sequence[str]) -> int:
    if argv[:1] in (["train"], ["precompute"]):  # hundreds of flags, parsed by TRL's parser
        from . import train

        command = train.run if argv[0] == "train" else train.run_precompute
        command(argv[1:], prog=f"{PROG} {argv[0]}")
        return 0
    if argv[:1] == ["estimate"]:  # takes the same flags
        from ..estimate.search import run as run_estimate

        run_estimate(argv[1:], prog=f"{PROG} estimate")
        return 0
    parsed = _parser().parse_args(argv)
    return parsed.run(parsed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(PROG, description="TRL's DPO trainer with every loss variant.")
    parser.add_argument("--version", action="version", version=f"{PROG} {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    commands.add_parser("train", help="train a model; usually through `accelerate launch -m trl_dpo_ext train`")
    commands.add_parser("estimate", help="what a run needs per GPU, what fits, and known traps; nothing is loaded")

    recipes = commands.add_parser("recipes", help="list the shipped recipes, show one, or copy one")
    recipes.add_argument("name", nargs="?", help="show this recipe")
    form = recipes.add_mutually_exclusive_group()
    form.add_argument("--copy", metavar="DIR", help="copy it, with its accelerate configuration, to that folder")
    form.add_argument("--markdown", action="store_true", help="print the table of recipes/README.md")
    recipes.set_defaults(run=_recipes)

    commands.add_parser("precompute", help="fill a store of reference log-probs; takes what `train` takes")

    losses = commands.add_parser("losses", help="list the loss variants, or show one")
    losses.add_argument("name", nargs="?", help="show this variant in full")
    form = losses.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print every declaration as JSON")
    form.add_argument("--markdown", action="store_true", help="print the table of the README")
    losses.set_defaults(run=_losses)

    report = commands.add_parser("report", help="what a run learned: first and last values, and a plot")
    report.add_argument("output_dir", help="the run's output folder, or one of its checkpoints")
    report.add_argument("--plot", metavar="PNG", help="write a plot there (needs the extra `plot`)")
    report.set_defaults(run=_report)

    store = commands.add_parser("store", help="what a store of reference log-probs holds")
    store.add_argument("folder", help="the store, as given to --ref_store")
    store.add_argument("--verify", action="store_true", help="read every part; exit with 1 when something is damaged")
    store.set_defaults(run=_store)
    return parser


def _losses(parsed: argparse.Namespace) -> int:
    if parsed.name:
        try:
            print(tables.describe(parsed.name))
        except ValueError as error:
            raise InputError(str(error)) from None
    elif parsed.json:
        print(tables.as_json())
    else:
        print(tables.as_markdown() if parsed.markdown else tables.as_text())
    return 0


def _recipes(parsed: argparse.Namespace) -> int:
    from .. import recipe_registry

    if parsed.copy and not parsed.name:
        raise InputError("--copy needs the name of a recipe.")
    if parsed.copy:
        files = recipe_registry.copy_recipe(parsed.name, parsed.copy)
        print("\n".join(str(file) for file in files))
        print(recipe_registry.read_recipe(files[0]).header.get("Launch", ""))
    elif parsed.name:
        print(recipe_registry.describe(parsed.name))
    else:
        print(recipe_registry.as_markdown() if parsed.markdown else recipe_registry.as_text())
    return 0


def _report(parsed: argparse.Namespace) -> int:
    from .report import plot_run, read_run

    print(read_run(parsed.output_dir).summary())
    if parsed.plot:
        plot_run(parsed.output_dir, parsed.plot)
    return 0


def _store(parsed: argparse.Namespace) -> int:
    from .store import show

    text, sound = show(parsed.folder, check=parsed.verify)
    print(text)
    return 0 if sound else 1
